import { cp, readdir, rename } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
// The log of a pipeline has no public name. Its file format and its faults need tests of their own: this is the one file
// through which they reach it.
import type { EventCodec, EventLog, SourceLog } from '../../src/meter/event-log.js';
import { type CreateSpoolOptions, createSpool } from '../../src/meter/spool.js';

export { OptionsParser } from '../../src/errors/options-parser.js';
export { removeInstance } from '../../src/meter/spool-files.js';
export { parseSpoolOptions } from '../../src/meter/spool-options.js';
export { encodeHeader, RecordEncoder, RecordType } from '../../src/meter/spool-record.js';
export { recoverSource } from '../../src/meter/spool-recovery.js';
export type { SourceContext } from '../../src/meter/spool-source.js';
export type { EventLog };

/** A request, as far as a log is concerned. */
export interface Entry {
  readonly id: string;
  /** What was used; it grows while the request runs. */
  used?: number;
}

/** The shortest codec that keeps its promises. */
export const entryCodec: EventCodec<Entry> = {
  id: ({ id }) => id,
  intent: ({ id }) => JSON.stringify({ id, kind: 'intent' }),
  checkpoint: ({ id, used }) => JSON.stringify({ id, used }),
  final: ({ id, used }, seq, source) => JSON.stringify({ id, seq, source, outcome: 'complete', used }),
  orphan(intent, checkpoint, seq, source) {
    const { id } = JSON.parse(intent) as { id: string };
    const used = checkpoint === undefined ? undefined : (JSON.parse(checkpoint) as Entry).used;
    return JSON.stringify({ id, seq, source, outcome: 'unknown', used });
  },
};

export interface StoredEntry extends Entry {
  readonly seq: number;
  readonly source: string;
  readonly outcome: 'complete' | 'unknown';
}

export type SpoolOverrides = Partial<CreateSpoolOptions<Entry>> & {
  readonly directory: string;
  readonly billing?: readonly string[];
  readonly observational?: readonly string[];
};

/** A spool that is not opened yet. */
export function makeSpool({ billing = ['ledger'], observational = [], ...options }: SpoolOverrides): EventLog<Entry> {
  const spool = createSpool<Entry>({
    maxBytes: 64 * 1024 * 1024,
    fsync: 'os',
    source: 'app',
    codec: entryCodec,
    ...options,
  });
  spool.holdFor(billing, observational);
  return spool;
}

export async function openSpool(options: SpoolOverrides): Promise<EventLog<Entry>> {
  const spool = makeSpool(options);
  await spool.ready();
  return spool;
}

/** Everything of a source that can be read after a sequence number. */
export async function readAll(source: SourceLog, after = 0): Promise<StoredEntry[]> {
  const events: StoredEntry[] = [];
  for (let at = after; ; ) {
    const batch = await source.read(at, { maxEvents: 100, maxBytes: 256 * 1024 });
    const last = batch.at(-1);
    if (last === undefined) return events;
    for (const { json } of batch) events.push(JSON.parse(json) as StoredEntry);
    at = last.seq;
  }
}

/** Tells a sink's part: it has everything, and knows about closed sources. */
export async function deliver(spool: EventLog<Entry>, sink: string): Promise<StoredEntry[]> {
  const events: StoredEntry[] = [];
  for (const source of spool.sources()) {
    const { closed, lastSeq } = source;
    events.push(...(await readAll(source, source.cursor(sink))));
    source.advance(sink, lastSeq);
    if (closed) source.finished(sink);
  }
  return events;
}

export async function until(condition: () => boolean | Promise<boolean>, ms = 10_000): Promise<void> {
  for (const end = Date.now() + ms; !(await condition()); ) {
    if (Date.now() > end) throw new Error(`it did not happen within ${ms} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** What `kill -9` leaves of an instance at this instant: a copy of its directory, in another spool, and a dead socket. */
export async function crashCopy(directory: string, instance: string, to: string): Promise<string> {
  const copy = join(to, instance);
  await cp(join(directory, instance), copy, { recursive: true, filter: (path) => !path.endsWith('/alive') });
  const server = createServer();
  const path = join(to, 's');
  await new Promise<void>((resolve) => server.listen(path, resolve));
  await rename(path, join(copy, 'alive'));
  await new Promise((resolve) => server.close(resolve));
  return copy;
}

export async function segmentsOf(instanceDirectory: string): Promise<string[]> {
  const names = await readdir(instanceDirectory);
  return names.filter((name) => name.endsWith('.log')).sort();
}

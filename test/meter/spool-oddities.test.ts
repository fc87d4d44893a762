import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { readlinkSync } from 'node:fs';
import { type FileHandle, mkdir, readdir, readFile, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { tempFolder } from '../support/index.js';
import { failing, interceptFiles } from './disk-faults.js';
import {
  crashCopy,
  deliver,
  type Entry,
  type EventLog,
  encodeHeader,
  entryCodec,
  makeSpool,
  OptionsParser,
  openSpool,
  parseSpoolOptions,
  RecordEncoder,
  RecordType,
  readAll,
  type SpoolOverrides,
  segmentsOf,
  until,
} from './spool-fixture.js';

const MIB = 1024 * 1024;
const DEAD = '11111111-2222-4333-8444-555555555555';

let folder: ReturnType<typeof tempFolder>;
let directory: string;
const opened: EventLog<Entry>[] = [];
const restore: (() => void)[] = [];
let alerts: { type: string; reason?: string }[] = [];
const listen = (message: unknown) => alerts.push(message as { type: string });
beforeEach(() => {
  folder = tempFolder('spool-odd');
  directory = join(folder.path, 'spool');
  alerts = [];
  subscribe('tollkeeper:pipeline', listen);
});
afterEach(async () => {
  for (const undo of restore.splice(0)) undo();
  await Promise.all(opened.splice(0).map((spool) => spool.close(AbortSignal.timeout(1000))));
  unsubscribe('tollkeeper:pipeline', listen);
  folder.remove();
});

async function open(options: Partial<SpoolOverrides> = {}): Promise<EventLog<Entry>> {
  const spool = await openSpool({ directory, ...options });
  opened.push(spool);
  return spool;
}

async function intercept(...fault: Parameters<typeof interceptFiles>): Promise<() => void> {
  const undo = await interceptFiles(...fault);
  restore.push(undo);
  return undo;
}

async function serve(spool: EventLog<Entry>, id: string): Promise<void> {
  const entry = { id };
  await spool.intent(entry);
  spool.final(entry);
}

/** Cursors are written while a segment hangs. */
function isSegment(handle: FileHandle): boolean {
  return readlinkSync(`/proc/self/fd/${handle.fd}`).includes('/seg-');
}

type RecordLine = readonly [type: RecordType, json: object | string];

/** A segment of any records, numbered from `firstNumber`. */
function segment(records: readonly RecordLine[], firstNumber = 1, lastSeq = 0): Buffer {
  const encoder = new RecordEncoder();
  for (const [index, [type, json]] of records.entries()) {
    encoder.append(type, firstNumber + index, typeof json === 'string' ? json : JSON.stringify(json));
  }
  return Buffer.concat([encodeHeader({ firstNumber, lastSeq }), encoder.take()]);
}

/** The directory of a dead instance with these segments. */
async function dead(...segments: Buffer[]): Promise<string> {
  const path = join(directory, DEAD);
  await mkdir(path, { recursive: true });
  await writeFile(join(path, 'instance.json'), JSON.stringify({ source: `app/${DEAD}` }));
  // A file where the socket was refuses as well.
  await writeFile(join(path, 'alive'), '');
  for (const [index, bytes] of segments.entries()) {
    await writeFile(join(path, `seg-${String(index + 1).padStart(16, '0')}.log`), bytes);
  }
  return path;
}

async function adopt(options: Partial<SpoolOverrides> = {}, id = DEAD) {
  const spool = await open(options);
  const find = () => spool.sources().find(({ source }) => source === `app/${id}`);
  await until(() => find()?.closed === true);
  const source = find() as NonNullable<ReturnType<typeof find>>;
  return { spool, source, events: await readAll(source) };
}

const { intent, checkpoint, final, cancel } = RecordType;
const event = (id: string, seq: number) => [final, { id, seq, outcome: 'complete' }] as const;

describe('defaults and bounds', () => {
  test('maxBytes is 1 GiB, fsync is group', () => {
    const parser = new OptionsParser('test');
    expect(parseSpoolOptions(parser, { directory: '/spool' })).toEqual({
      directory: '/spool',
      maxBytes: 1024 * MIB,
      fsync: 'group',
    });
    parser.done();
  });

  test('a segment has 64 MiB then, and 256 KiB are kept aside', async () => {
    const spool = await open({ maxBytes: 1024 * MIB });
    const id = 'x'.repeat(60_000);
    for (let index = 0; index < 1150; index++) {
      spool.final({ id });
      if (index % 50 === 0) await spool.flush();
    }
    await spool.flush();
    const own = join(directory, spool.instance);
    const [first, second] = await segmentsOf(own);
    const { size } = await stat(join(own, first as string));
    expect(size).toBeLessThanOrEqual(64 * MIB);
    expect(size).toBeGreaterThan(63 * MIB);
    expect(second).toBe('seg-0000000000000002.log');
    expect((await stat(join(own, 'reserve'))).size).toBe(256 * 1024);
  });

  test('16,384 records may wait to be serialised', async () => {
    const spool = await open();
    let answer!: () => void;
    const hang = new Promise<void>((resolve) => {
      answer = resolve;
    });
    await intercept('write', () => hang);
    spool.final({ id: 'first' });
    await new Promise((resolve) => setTimeout(resolve, 20));
    for (let index = 0; index < 16_384; index++) spool.final({ id: `${index}` });
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(spool.refusal).toBeUndefined();
    spool.final({ id: 'last' });
    await until(() => spool.refusal !== undefined);
    expect(spool.refusal?.reason).toBe('the disk of the spool does not keep up');
    answer();
    await until(() => spool.refusal === undefined);
    await until(() => spool.stats().written === 16_386);
  });
});

describe('what a record may hold', () => {
  test('a codec that writes its members in another order is understood, only slower', async () => {
    const reordered: typeof entryCodec = {
      ...entryCodec,
      intent: ({ id }) => JSON.stringify({ kind: 'intent', id }),
      final: ({ id }, seq, source) => JSON.stringify({ source, outcome: 'complete', seq, id }),
    };
    const spool = await openSpool({ directory: join(folder.path, 'elsewhere'), codec: reordered });
    opened.push(spool);
    await serve(spool, 'done');
    await spool.intent({ id: 'open' });
    await spool.flush();
    await mkdir(directory);
    await crashCopy(join(folder.path, 'elsewhere'), spool.instance, directory);
    const { events } = await adopt({ codec: reordered }, spool.instance);
    expect(events.map(({ id, seq }) => [id, seq])).toEqual([
      ['done', 1],
      ['open', 2],
    ]);
  });

  test.each([
    ['no JSON', 'not json'],
    ['no id', { seq: 2 }],
    ['an id that is no text', { id: 7, seq: 2 }],
    ['no sequence number', { id: 'b' }],
    ['a sequence number of 0', { id: 'b', seq: 0 }],
    ['half a sequence number', { id: 'b', seq: 1.5 }],
  ])('a final event with %s is passed over and counted', async (_what, json) => {
    await dead(segment([event('a', 1), [final, json], event('c', 3)]));
    const { spool, events } = await adopt();
    expect(events.map(({ id }) => id)).toEqual(['a', 'c']);
    expect(spool.stats().corrupt).toBe(1);
  });

  test('an intent that stands there twice, a checkpoint without one and a second cancel change nothing', async () => {
    await dead(
      segment([
        [intent, { id: 'carried' }],
        [checkpoint, { id: 'carried', used: 1 }],
        [intent, { id: 'void' }],
        [cancel, { id: 'void' }],
        event('a', 1),
      ]),
      segment(
        [
          [intent, { id: 'carried' }],
          [checkpoint, { id: 'nobody', used: 9 }],
          [cancel, { id: 'void' }],
        ],
        6,
        1,
      ),
    );
    const { events } = await adopt();
    expect(events.map(({ id, seq, used }) => [id, seq, used])).toEqual([
      ['a', 1, undefined],
      ['carried', 2, 1],
    ]);
  });

  test('a segment of a version to come is read as far as it is understood, and counted', async () => {
    const bytes = segment([event('a', 1)]);
    bytes.writeUInt32LE(2, 8);
    bytes.writeUInt32LE(crc32(bytes.subarray(0, 28)), 28);
    await dead(bytes);
    const { spool, events } = await adopt();
    expect(events.map(({ id }) => id)).toEqual(['a']);
    expect(spool.stats().corrupt).toBe(1);
  });

  test('an orphan of 10,000 is one event of 10,000', async () => {
    const records: RecordLine[] = Array.from({ length: 10_000 }, (_, index) => [
      intent,
      { id: `open-${index}`, text: 'x'.repeat(100) },
    ]);
    await dead(segment(records));
    const { source, events, spool } = await adopt();
    expect(source.lastSeq).toBe(10_000);
    expect(events.map(({ seq }) => seq)).toEqual(Array.from({ length: 10_000 }, (_, index) => index + 1));
    expect(spool.stats().recovered).toBe(10_000);
  });
});

describe('the writer', () => {
  test('takes only the latest of several checkpoints in a tick, and none after the final event', async () => {
    const spool = await open();
    const entry = { id: 'a', used: 1 };
    await spool.intent(entry);
    spool.checkpoint(entry);
    entry.used = 2;
    spool.checkpoint(entry);
    await spool.flush();
    spool.final(entry);
    spool.checkpoint(entry);
    await spool.flush();
    const bytes = await readFile(join(directory, spool.instance, 'seg-0000000000000001.log'), 'latin1');
    expect(bytes.match(/"used":\d/g)).toEqual(['"used":2', '"used":2']);
  });

  test('takes one final event of a request, and none of one that was cancelled', async () => {
    const spool = await open();
    const [twice, gone] = [{ id: 'twice' }, { id: 'gone' }];
    await Promise.all([spool.intent(twice), spool.intent(gone)]);
    spool.final(twice);
    spool.final(twice);
    spool.cancel(gone);
    spool.cancel(gone);
    spool.final(gone);
    await spool.flush();
    expect((await readAll(spool.sources()[0] as never)).map(({ id }) => id)).toEqual(['twice']);
  });

  test('with a checkpoint and no intent, writes the intent too: durability completion with a long stream', async () => {
    const elsewhere = join(folder.path, 'elsewhere');
    const spool = await openSpool({ directory: elsewhere });
    opened.push(spool);
    spool.checkpoint({ id: 'stream', used: 3 });
    await spool.flush();
    await mkdir(directory);
    await crashCopy(elsewhere, spool.instance, directory);
    const { events } = await adopt({}, spool.instance);
    expect(events.map(({ id, outcome, used }) => [id, outcome, used])).toEqual([['stream', 'unknown', 3]]);
  });

  test('deletes no segment before the open intents in it are durable elsewhere', async () => {
    const spool = await open({ maxBytes: 16 * MIB });
    await spool.intent({ id: 'stream' });
    for (let index = 0; index < 4000; index++) spool.final({ id: `${index}-${'x'.repeat(1000)}` });
    await spool.flush();
    const own = join(directory, spool.instance);
    const before = await segmentsOf(own);
    let release!: () => void;
    const hang = new Promise<void>((resolve) => {
      release = resolve;
    });
    await intercept('write', (handle) => (isSegment(handle) ? hang : undefined));
    for (let seq = 3980; seq <= 4000; seq++) {
      spool.sources()[0]?.advance('ledger', seq);
      await new Promise((resolve) => setTimeout(resolve, 15));
    }
    expect(await segmentsOf(own)).toEqual(before);
    release();
    await until(async () => (await segmentsOf(own)).length === 1);
    // Once, however often its sinks moved on meanwhile.
    const [last = ''] = await segmentsOf(own);
    const text = await readFile(join(own, last), 'latin1');
    expect(text.match(/"id":"stream"/g)).toHaveLength(1);
  });

  test('refuses intents that were still queued when the disk failed, and writes nothing of them', async () => {
    const spool = await open({ fsync: 'group' });
    let fail!: () => void;
    const failure = new Promise<void>((_, reject) => {
      fail = () => reject(Object.assign(new Error('EIO: injected'), { code: 'EIO' }));
    });
    let first = true;
    await intercept('datasync', async () => {
      if (first) {
        first = false;
        await failure;
      }
    });
    const written = spool.intent({ id: 'written' });
    await new Promise((resolve) => setTimeout(resolve, 20));
    const queued = spool.intent({ id: 'queued' });
    await new Promise((resolve) => setTimeout(resolve, 20));
    fail();
    await expect(written).rejects.toThrow('EIO');
    await expect(queued).rejects.toThrow('EIO');
    await until(() => spool.refusal === undefined);
    await spool.flush();
    const own = join(directory, spool.instance);
    const texts = await Promise.all((await segmentsOf(own)).map((name) => readFile(join(own, name), 'latin1')));
    expect(texts.join('')).not.toContain('queued');
    expect(texts.join('')).toContain('{"id":"written"}');
  });

  test('loses nothing when an fsync fails while the next write is under way', async () => {
    const spool = await open({ fsync: 'group' });
    let release!: () => void;
    const writing = new Promise<void>((resolve) => {
      release = resolve;
    });
    let writes = 0;
    const syncs: FileHandle[] = [];
    await intercept('write', async () => {
      writes++;
      if (writes === 2) await writing;
    });
    await intercept('datasync', async (handle) => {
      syncs.push(handle);
      if (syncs.length > 1) return;
      await until(() => writes === 2);
      throw Object.assign(new Error('EIO: injected'), { code: 'EIO' });
    });
    spool.final({ id: 'a' });
    await until(() => syncs.length === 1);
    spool.final({ id: 'b' });
    await until(() => spool.refusal !== undefined);
    spool.final({ id: 'c' });
    release();
    await until(() => spool.refusal === undefined);
    await spool.flush();
    expect((await readAll(spool.sources()[0] as never)).map(({ id, seq }) => [id, seq])).toEqual([
      ['a', 1],
      ['b', 2],
      ['c', 3],
    ]);
  });

  test('ignores the success of an fsync that began before a write failed', async () => {
    const spool = await open({ fsync: 'group' });
    const gates: (() => void)[] = [];
    let syncs = 0;
    let writes = 0;
    // The first one hangs, and what begins after the recovery does too.
    let hangs = true;
    await intercept(
      'datasync',
      () => void syncs++,
      () => (hangs ? new Promise<void>((resolve) => gates.push(resolve)) : undefined),
    );
    await intercept('write', () => {
      if (++writes === 2) throw Object.assign(new Error('EIO: injected'), { code: 'EIO' });
    });
    spool.final({ id: 'a' });
    await until(() => syncs === 1 && gates.length === 1);
    hangs = false;
    spool.final({ id: 'b' });
    await until(() => spool.stats().written === 2);
    await until(() => spool.refusal === undefined);
    hangs = true;
    const written = writes;
    spool.final({ id: 'c' });
    await until(() => writes > written);
    await new Promise((resolve) => setTimeout(resolve, 20));
    gates.shift()?.();
    await until(() => gates.length === 1);
    // Nobody has asked the disk about it yet.
    expect(spool.stats().written).toBe(2);
    hangs = false;
    gates.shift()?.();
    await until(() => spool.stats().written === 3);
    expect((await readAll(spool.sources()[0] as never)).map(({ id }) => id)).toEqual(['a', 'b', 'c']);
  });

  test.each(['os', 'interval'] as const)(
    'recovers from a failed write without an fsync of its own (fsync %s)',
    async (fsync) => {
      const spool = await open({ fsync });
      await serve(spool, 'before');
      await spool.flush();
      const heal = await intercept('write', failing('EIO', Number.POSITIVE_INFINITY));
      spool.final({ id: 'a' });
      await until(() => spool.refusal !== undefined);
      spool.final({ id: 'b' });
      heal();
      await until(() => spool.stats().written === 3);
      expect((await readAll(spool.sources()[0] as never)).map(({ id }) => id)).toEqual(['before', 'a', 'b']);
    },
  );

  test('survives a failed fsync in the middle of a change of segments', async () => {
    const spool = await open({ fsync: 'interval', maxBytes: MIB });
    await intercept('datasync', failing('EIO'));
    const ids = Array.from({ length: 200 }, (_, index) => `${index}-${'x'.repeat(1000)}`);
    for (const [index, id] of ids.entries()) {
      spool.final({ id });
      if (index % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 10));
    }
    await until(() => spool.stats().written === 200);
    expect((await readAll(spool.sources()[0] as never)).map(({ id }) => id)).toEqual(ids);
    expect(alerts.map(({ type }) => type)).toContain('refusing');
  });
});

describe('reading', () => {
  test('where the last event is damaged gives nothing, although there is a sequence number', async () => {
    await dead(segment([event('a', 1), [final, { id: 'b' }]]), segment([[RecordType.closing, { lastSeq: 2 }]], 3, 2));
    const { source } = await adopt();
    expect(source.lastSeq).toBe(2);
    expect(await source.read(1, { maxEvents: 10, maxBytes: MIB })).toEqual([]);
    source.advance('ledger', 2);
    expect(source.cursor('ledger')).toBe(2);
  });

  test('goes on behind a segment that gives nothing, and fails where a file cannot be read', async () => {
    const spool = await open({ maxBytes: 16 * MIB });
    for (let index = 0; index < 2500; index++) spool.final({ id: `${index}-${'x'.repeat(1000)}` });
    await spool.flush();
    const own = join(directory, spool.instance);
    const [first, second] = (await segmentsOf(own)).map((name) => join(own, name)) as [string, string];
    await truncate(first, 32);
    const [source] = spool.sources();
    const events = await readAll(source as never);
    expect(events.length).toBeGreaterThan(1000);
    expect(events.at(-1)?.seq).toBe(2500);
    await rm(first);
    expect(await readAll(source as never)).toHaveLength(events.length);
    await rm(second);
    await mkdir(second);
    await expect(source?.read(0, { maxEvents: 10, maxBytes: MIB })).rejects.toThrow('EISDIR');
  });
});

describe('adoption', () => {
  test('is told on the diagnostics channel, and so is damage', async () => {
    await dead(segment([event('a', 1), [final, {}], event('c', 3)]));
    await adopt();
    expect(alerts).toContainEqual({ type: 'adopted', source: `app/${DEAD}` });
    expect(alerts).toContainEqual({ type: 'corrupt' });
  });

  test('of one that cannot be taken over holds up no other, and is tried again', async () => {
    const path = await dead(segment([event('a', 1)]));
    await rm(join(path, 'adopted'), { recursive: true, force: true });
    const spool = makeSpool({ directory });
    opened.push(spool);
    const inTheWay = join(directory, `.new-${spool.instance}`, 'adopted', DEAD);
    await mkdir(join(inTheWay, 'x'), { recursive: true });
    await spool.ready();
    await until(() => alerts.some(({ type }) => type === 'spool_error'));
    await rm(join(directory, spool.instance, 'adopted', DEAD), { recursive: true, force: true });
    await until(() => spool.sources()[1]?.closed === true);
    expect((await deliver(spool, 'ledger')).map(({ id }) => id)).toEqual(['a']);
    await until(() => spool.sources().length === 1);
  });

  test('waits for too many open files, wherever they are met', async () => {
    await dead(segment([event('a', 1)]));
    let reads = 0;
    await intercept('read', () => {
      if (++reads === 2) throw Object.assign(new Error('EMFILE: injected'), { code: 'EMFILE' });
    });
    const { events, spool } = await adopt();
    expect(events.map(({ id }) => id)).toEqual(['a']);
    expect(spool.stats()).toMatchObject({ corrupt: 0, adopted: 1 });
  });

  test('delivers what there is while its own records cannot be written', async () => {
    await dead(segment([event('a', 1), [intent, { id: 'open' }]]));
    const spool = makeSpool({ directory, billing: ['ledger'] });
    opened.push(spool);
    await spool.ready();
    const heal = await intercept('write', failing('ENOSPC', Number.POSITIVE_INFINITY));
    await until(() => spool.stats().adopted === 1);
    const [, source] = spool.sources();
    expect((await readAll(source as never)).map(({ id }) => id)).toEqual(['a']);
    source?.advance('ledger', 1);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(source?.closed).toBe(false);
    heal();
    await until(() => source?.closed === true);
    expect((await readAll(source as never, 1)).map(({ id, outcome }) => [id, outcome])).toEqual([['open', 'unknown']]);
  });

  test('leaves alone whatever shows no clear sign of death', async () => {
    const path = await dead(segment([event('a', 1)]));
    await rm(join(path, 'alive'));
    // A loop of links: neither a refused connection nor a missing socket.
    await symlink('alive', join(path, 'alive'));
    const spool = await open();
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    expect(spool.sources()).toHaveLength(1);
    expect(await readdir(directory)).toContain(DEAD);
  });

  test('stops when the spool is closed, and the next one goes on', async () => {
    await dead(segment([event('a', 1)]));
    const spool = await openSpool({ directory });
    await spool.close();
    const { events } = await adopt();
    expect(events.map(({ id }) => id)).toEqual(['a']);
  });

  test('that was never finished does not go with the directory of a spool that is done', async () => {
    const spool = await openSpool({ directory });
    await spool.seal();
    await deliver(spool, 'ledger');
    await dead(segment([event('a', 1)]));
    await mkdir(join(directory, spool.instance, 'adopted', DEAD));
    for (const name of await readdir(join(directory, DEAD))) {
      await writeFile(
        join(directory, spool.instance, 'adopted', DEAD, name),
        await readFile(join(directory, DEAD, name)),
      );
    }
    await rm(join(directory, DEAD), { recursive: true });
    await spool.close();
    const { events } = await adopt();
    expect(events.map(({ id }) => id)).toEqual(['a']);
  });
});

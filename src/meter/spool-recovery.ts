import { type FileHandle, mkdir, open, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { EventCodec } from './event-log.js';
import { SpoolCursors } from './spool-cursors.js';
import { codeOf, DIRECTORY_MODE, FILE_MODE, RESERVE, syncDirectory, writeAll } from './spool-files.js';
import {
  decodeHeader,
  encodeHeader,
  HEADER_BYTES,
  RecordEncoder,
  RecordType,
  type RecordView,
  readKeys,
  type SegmentHeader,
} from './spool-record.js';
import { scanRecords } from './spool-scan.js';
import { listSegments, newSegment, noteEvents, type Segment } from './spool-segment.js';
import { type SourceContext, SpoolSource } from './spool-source.js';

/** Who an instance was: written once, when its directory is made. */
export const INSTANCE_FILE = 'instance.json';
/** Orphans that are serialised at once. */
const CHUNK_BYTES = 512 * 1024;

interface Orphan {
  readonly intent: string;
  checkpoint: string | undefined;
}

/** What is known of a dead instance's log. */
export interface Recovered {
  readonly source: SpoolSource;
  /** Intents without a final event, by id. */
  readonly orphans: Map<string, Orphan>;
  /** The number of its last record. */
  lastNumber: number;
  lastOrdinal: number;
}

/**
 * Reads a dead instance's log once, a window at a time: in memory it keeps the intents that are still open, nothing of
 * the events. Whatever it finds, it goes on: damaged bytes are copied to `quarantine` and counted, a torn tail of the
 * last segment is cut off.
 *
 * @returns undefined when there is no segment: nothing was ever written, or everything was delivered.
 */
export async function recoverSource(
  directory: string,
  quarantine: string,
  fallbackSource: string,
  context: SourceContext,
): Promise<Recovered | undefined> {
  await rm(join(directory, RESERVE), { force: true });
  const ordinals = await listSegments(directory);
  const lastOrdinal = ordinals.at(-1);
  if (lastOrdinal === undefined) return undefined;
  const cursors = new SpoolCursors(directory);
  await cursors.load();
  const source = new SpoolSource(context, {
    source: await readSource(directory, fallbackSource),
    directory,
    segments: [],
    cursors,
    lastSeq: 0,
    closed: false,
  });
  const recovered: Recovered = { source, orphans: new Map(), lastNumber: 0, lastOrdinal };
  const headers = new Map<number, SegmentHeader | undefined>();
  for (const ordinal of ordinals) headers.set(ordinal, await readHeader(newSegment(directory, ordinal, 0).path));
  for (const [index, ordinal] of ordinals.entries()) {
    const segment = newSegment(directory, ordinal, source.lastSeq);
    const next = headers.get(ordinals[index + 1] ?? 0);
    const name = `${basename(directory)}-${basename(segment.path)}`;
    try {
      await readSegment(segment, headers.get(ordinal), next, join(quarantine, name), recovered, context);
      source.segments.push(segment);
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      // Out of the way, and on with the rest.
      context.damaged();
      await mkdir(quarantine, { recursive: true, mode: DIRECTORY_MODE }).catch(() => undefined);
      await rename(segment.path, join(quarantine, name)).catch(() => undefined);
    }
  }
  source.attach();
  return recovered;
}

async function readSegment(
  segment: Segment,
  header: SegmentHeader | undefined,
  next: SegmentHeader | undefined,
  quarantine: string,
  recovered: Recovered,
  context: SourceContext,
): Promise<void> {
  const { source } = recovered;
  const file = await open(segment.path, 'r+');
  if (header === undefined) context.damaged();
  else {
    // Greater than what was read: the events between are damaged, or delivered and deleted.
    source.lastSeq = Math.max(source.lastSeq, header.lastSeq);
    segment.lastSeq = source.lastSeq;
    recovered.lastNumber = Math.max(recovered.lastNumber, header.firstNumber - 1);
  }
  // After a failed write or fsync the next segment has these again, and all of them.
  const rewrittenFrom = next?.firstNumber ?? Number.POSITIVE_INFINITY;
  try {
    const { size } = await file.stat();
    const last = segment.ordinal === recovered.lastOrdinal;
    const damage = async (from: number, to: number): Promise<void> => {
      segment.damaged.add(from);
      context.damaged();
      await copyBytes(file, from, to, `${quarantine}-${from}.bad`);
    };
    const { validEnd, tail } = await scanRecords(file, Math.min(HEADER_BYTES, size), size, {
      record(view, bytes, offset) {
        if (view.number >= rewrittenFrom) return false;
        readRecord(view, bytes, offset, segment, recovered, context);
        return true;
      },
      damage,
    });
    if (tail > 0 && last) await file.truncate(validEnd);
    else if (tail > 0) await damage(validEnd, validEnd + tail);
    segment.end = validEnd;
    segment.bytes = last ? validEnd : size;
    // It may have been read from memory alone: before a sink gets it, the disk has it.
    await file.datasync();
  } finally {
    await file.close();
  }
}

async function readHeader(path: string): Promise<SegmentHeader | undefined> {
  try {
    const file = await open(path, 'r');
    try {
      const bytes = Buffer.alloc(HEADER_BYTES);
      await file.read(bytes, 0, HEADER_BYTES, 0);
      return decodeHeader(bytes);
    } finally {
      await file.close();
    }
  } catch (error) {
    if (!isUnreadable(error)) throw error;
    return undefined;
  }
}

/** The file is at fault, and will be the next time; anything else (too many open files) passes. */
function isUnreadable(error: unknown): boolean {
  return ['EIO', 'EISDIR', 'EACCES', 'EPERM', 'ENXIO', 'EBADMSG', 'EUCLEAN'].includes(codeOf(error));
}

function readRecord(
  view: RecordView,
  bytes: Buffer,
  offset: number,
  segment: Segment,
  recovered: Recovered,
  context: SourceContext,
): void {
  const { source, orphans } = recovered;
  recovered.lastNumber = Math.max(recovered.lastNumber, view.number);
  if (view.type === RecordType.closing) {
    source.closed = true;
    return;
  }
  const keys = readKeys(bytes, view);
  if (keys === undefined) {
    context.damaged();
    return;
  }
  const { id, seq } = keys;
  if (view.type === RecordType.intent) {
    // An intent that was carried into a later segment stands there again.
    if (!orphans.has(id)) {
      orphans.set(id, { intent: bytes.toString('utf8', view.start, view.end), checkpoint: undefined });
    }
  } else if (view.type === RecordType.checkpoint) {
    const orphan = orphans.get(id);
    if (orphan !== undefined) orphan.checkpoint = bytes.toString('utf8', view.start, view.end);
  } else {
    orphans.delete(id);
    if (view.type === RecordType.final && seq > source.lastSeq) {
      noteEvents(segment, seq, seq, offset);
      source.lastSeq = seq;
    }
  }
}

/**
 * Goes on where the dead instance stopped: its orphans become final events, and the closing marker says that no event
 * follows. All of it appears in one step, so that it may be done again after a failure, or by the next adopter.
 *
 * @returns how many orphans there were.
 */
export async function finishSource<R>(recovered: Recovered, codec: EventCodec<R>, context: SourceContext) {
  const { source, orphans } = recovered;
  const segment = newSegment(source.directory, recovered.lastOrdinal + 1, source.lastSeq);
  const encoder = new RecordEncoder();
  let { lastSeq } = source;
  let number = recovered.lastNumber;
  const temporary = `${segment.path}.tmp`;
  const file = await open(temporary, 'w', FILE_MODE);
  try {
    await writeAll(file, encodeHeader({ firstNumber: number + 1, lastSeq }), 0);
    const write = async (): Promise<void> => {
      await writeAll(file, encoder.take(), segment.bytes);
      segment.bytes = segment.end;
    };
    for (const { intent, checkpoint } of orphans.values()) {
      const json = orphanEvent(codec, intent, checkpoint, lastSeq + 1, source.source);
      const at = segment.bytes + encoder.size;
      if (json === undefined || !encoder.append(RecordType.final, number + 1, json)) {
        context.damaged();
        continue;
      }
      number++;
      noteEvents(segment, ++lastSeq, lastSeq, at);
      segment.end = segment.bytes + encoder.size;
      if (encoder.size >= CHUNK_BYTES) await write();
    }
    encoder.append(RecordType.closing, ++number, JSON.stringify({ lastSeq }));
    segment.end = segment.bytes + encoder.size;
    await write();
    await file.datasync();
  } finally {
    await file.close();
  }
  await rename(temporary, segment.path);
  await syncDirectory(source.directory);
  const count = lastSeq - source.lastSeq;
  source.segments.push(segment);
  source.lastSeq = lastSeq;
  source.closed = true;
  orphans.clear();
  return count;
}

function orphanEvent<R>(
  codec: EventCodec<R>,
  intent: string,
  checkpoint: string | undefined,
  seq: number,
  source: string,
) {
  try {
    return codec.orphan(intent, checkpoint, seq, source);
  } catch {
    return undefined;
  }
}

/** The source's name, under which the sinks know the instance. */
async function readSource(directory: string, fallback: string): Promise<string> {
  try {
    const { source } = JSON.parse(await readFile(join(directory, INSTANCE_FILE), 'utf8')) as { source: unknown };
    if (typeof source === 'string') return source;
  } catch {
    // It is damaged.
  }
  return `${fallback}/${basename(directory)}`;
}

/** Puts damaged bytes aside; they stay where they are too, until their segment is deleted. */
async function copyBytes(file: FileHandle, from: number, to: number, path: string): Promise<void> {
  const bytes = Buffer.alloc(Math.min(to - from, CHUNK_BYTES));
  const { bytesRead } = await file.read(bytes, 0, bytes.length, from);
  try {
    await mkdir(dirname(path), { recursive: true, mode: DIRECTORY_MODE });
    await writeFile(path, bytes.subarray(0, bytesRead), { mode: FILE_MODE });
  } catch {
    // On a full disk the copy is missing: the events behind the damage matter more.
  }
}

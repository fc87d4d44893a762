import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { StoredEvent } from './event-log.js';
import { HEADER_BYTES, RECORD_HEAD_BYTES, RecordType, readKeys } from './spool-record.js';
import { type ScanVisitor, scanRecords } from './spool-scan.js';

const NAME = /^seg-([0-9a-f]{16})\.log$/;
/** One entry of a segment's index for so many bytes. */
const INDEX_EVERY_BYTES = 64 * 1024;
/** Readers that are remembered: a few for each sink. */
const MAX_RESUME = 32;
/** Batches are small: a window that holds the largest record, filled by less than that. */
const READ_BYTES = 64 * 1024;
const WINDOW_BYTES = 2 * READ_BYTES;

/** One file of a log, as far as it is known. */
export interface Segment {
  readonly path: string;
  /** Counts the segments of an instance; it is in the file's name. */
  readonly ordinal: number;
  /** The sequence number of its first final event; 0 while it has none. */
  firstSeq: number;
  /** The last sequence number given up to its end, in this segment or before. */
  lastSeq: number;
  /** Bytes that may be read. */
  end: number;
  /** Bytes that the file has. */
  bytes: number;
  /** Sparse, ascending: at `offsets[i]` or behind it stand the events from `seqs[i]` on. */
  readonly seqs: number[];
  readonly offsets: number[];
  /** Where a reader goes on after a sequence number: the last few that stopped in the middle. */
  readonly resume: Map<number, number>;
  /** Offsets of damage that has been counted. */
  readonly damaged: Set<number>;
}

export function newSegment(directory: string, ordinal: number, lastSeq: number): Segment {
  const name = `seg-${ordinal.toString(16).padStart(16, '0')}.log`;
  return {
    path: join(directory, name),
    ordinal,
    firstSeq: 0,
    lastSeq,
    end: HEADER_BYTES,
    bytes: HEADER_BYTES,
    seqs: [],
    offsets: [],
    resume: new Map(),
    damaged: new Set(),
  };
}

/** The ordinals of the segments in a directory, ascending. */
export async function listSegments(directory: string): Promise<number[]> {
  const ordinals: number[] = [];
  for (const name of await readdir(directory)) {
    const match = NAME.exec(name);
    if (match !== null) ordinals.push(Number.parseInt(match[1] as string, 16));
  }
  return ordinals.sort((a, b) => a - b);
}

/** Notes that events from `firstSeq` to `lastSeq` stand from `offset` on. */
export function noteEvents(segment: Segment, firstSeq: number, lastSeq: number, offset: number): void {
  if (segment.firstSeq === 0) segment.firstSeq = firstSeq;
  segment.lastSeq = lastSeq;
  const last = segment.offsets.at(-1);
  if (last !== undefined && offset - last < INDEX_EVERY_BYTES) return;
  segment.seqs.push(firstSeq);
  segment.offsets.push(offset);
}

/**
 * Adds the segment's events after `afterSeq` to `events` until the limits are reached; at least one, if there is any.
 * What cannot be read is passed over and told to `onDamage`, each time.
 */
export async function readEvents(
  segment: Segment,
  afterSeq: number,
  limits: { maxEvents: number; maxBytes: number },
  events: StoredEvent[],
  onDamage: (offset: number) => void,
): Promise<void> {
  const file = await open(segment.path, 'r');
  let bytes = events.reduce((sum, event) => sum + event.json.length, 0);
  let behind = 0;
  const visitor: ScanVisitor = {
    record(view, buffer, offset) {
      if (view.type !== RecordType.final) return true;
      const seq = readKeys(buffer, view)?.seq ?? 0;
      if (seq <= afterSeq) return true;
      const size = view.end - view.start;
      if (events.length >= limits.maxEvents || (events.length > 0 && bytes + size > limits.maxBytes)) return false;
      events.push({ seq, json: buffer.toString('utf8', view.start, view.end) });
      bytes += size;
      behind = offset + RECORD_HEAD_BYTES + size;
      return true;
    },
    damage: onDamage,
  };
  const from = segment.resume.get(afterSeq) ?? startFor(segment, afterSeq);
  try {
    await scanRecords(file, from, segment.end, visitor, WINDOW_BYTES, READ_BYTES);
  } finally {
    await file.close();
  }
  const last = events.at(-1);
  if (last === undefined) return;
  segment.resume.set(last.seq, behind);
  const [oldest] = segment.resume.keys();
  if (segment.resume.size > MAX_RESUME && oldest !== undefined) segment.resume.delete(oldest);
}

/** Records as they were written, with the sequence numbers of the final events among them. */
export interface RecentGroup {
  readonly bytes: Buffer;
  readonly firstSeq: number;
  readonly lastSeq: number;
}

/**
 * Adds the group's events after `afterSeq` to `events`.
 *
 * @returns false when the limits are reached.
 */
export function takeEvents(
  { bytes, firstSeq }: RecentGroup,
  afterSeq: number,
  limits: { maxEvents: number; maxBytes: number },
  events: StoredEvent[],
): boolean {
  let left = limits.maxBytes - events.reduce((sum, event) => sum + event.json.length, 0);
  let seq = firstSeq - 1;
  for (let at = 0; at < bytes.length; ) {
    const start = at + RECORD_HEAD_BYTES;
    const end = start + bytes.readUInt32LE(at);
    const isFinal = bytes[at + 8] === RecordType.final;
    at = end;
    if (!isFinal || ++seq <= afterSeq) continue;
    left -= end - start;
    if (events.length >= limits.maxEvents || (events.length > 0 && left < 0)) return false;
    events.push({ seq, json: bytes.toString('utf8', start, end) });
  }
  return true;
}

/** The last indexed offset before which no event after `afterSeq` stands. */
function startFor(segment: Segment, afterSeq: number): number {
  let low = 0;
  let high = segment.seqs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((segment.seqs[middle] as number) <= afterSeq + 1) low = middle + 1;
    else high = middle;
  }
  return low === 0 ? HEADER_BYTES : (segment.offsets[low - 1] as number);
}

import { crc32 } from 'node:zlib';

/**
 * The kinds of record. `intent`, `checkpoint` and `final` carry the codec's JSON; `cancel` is `{"id"}` of an intent that
 * is void; `closing` is `{"lastSeq"}` and says that no event follows.
 */
export const RecordType = { intent: 1, checkpoint: 2, final: 3, cancel: 4, closing: 5 } as const;
export type RecordType = (typeof RecordType)[keyof typeof RecordType];

/** Bytes of JSON in one record, at most. */
export const MAX_PAYLOAD_BYTES = 65_536;
/** A segment's header: magic (8 bytes), version u32, number of its first record u64, last `seq` before it u64, crc32 u32. */
export const HEADER_BYTES = 32;
/** Before the JSON of a record: length u32, crc32 u32, type u8, record number u64. Integers are little-endian. */
export const RECORD_HEAD_BYTES = 17;

const MAGIC = Buffer.from('TOLLSPL\n', 'latin1');
const VERSION = 1;
/** The CRC covers type, number and payload. */
const CRC_FROM = 8;
const TWO_32 = 2 ** 32;
const MIN_PAYLOAD_BYTES = 2;

/** What a segment's header says. */
export interface SegmentHeader {
  /** The number of the first record. */
  readonly firstNumber: number;
  /** The last sequence number given before this segment. */
  readonly lastSeq: number;
}

/** The header of a new segment. */
export function encodeHeader({ firstNumber, lastSeq }: SegmentHeader): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  MAGIC.copy(header);
  header.writeUInt32LE(VERSION, 8);
  writeU64(header, firstNumber, 12);
  writeU64(header, lastSeq, 20);
  header.writeUInt32LE(crc32(header.subarray(0, 28)), 28);
  return header;
}

/** A segment's header; undefined when it is damaged, or of a version that this package does not know. */
export function decodeHeader(bytes: Buffer): SegmentHeader | undefined {
  if (bytes.length < HEADER_BYTES || !MAGIC.equals(bytes.subarray(0, 8))) return undefined;
  if (crc32(bytes.subarray(0, 28)) !== bytes.readUInt32LE(28)) return undefined;
  if (bytes.readUInt32LE(8) !== VERSION) return undefined;
  return { firstNumber: readU64(bytes, 12), lastSeq: readU64(bytes, 20) };
}

/** Where a record stands in a buffer. */
export interface RecordView {
  readonly type: RecordType;
  readonly number: number;
  /** The JSON: from `start` to `end`. */
  readonly start: number;
  readonly end: number;
}

/**
 * The record that begins at `offset`; `'short'` when its bytes go on behind `limit`; undefined when none begins there.
 * A wrong length, an unknown type and a wrong CRC all mean: none.
 */
export function decodeRecord(bytes: Buffer, offset: number, limit: number): RecordView | 'short' | undefined {
  const start = offset + RECORD_HEAD_BYTES;
  if (start > limit) return 'short';
  const length = bytes.readUInt32LE(offset);
  if (length < MIN_PAYLOAD_BYTES || length > MAX_PAYLOAD_BYTES) return undefined;
  const type = bytes[offset + 8] as number;
  if (type < RecordType.intent || type > RecordType.closing) return undefined;
  const end = start + length;
  if (end > limit) return 'short';
  if (crc32(bytes.subarray(offset + CRC_FROM, end)) !== bytes.readUInt32LE(offset + 4)) return undefined;
  return { type: type as RecordType, number: readU64(bytes, offset + 9), start, end };
}

/** Collects records into one buffer, for one write. */
export class RecordEncoder {
  #bytes = Buffer.allocUnsafe(256 * 1024);
  #used = 0;

  get size(): number {
    return this.#used;
  }

  /** Adds a record. False when its JSON is too long: then nothing is added. */
  append(type: RecordType, number: number, json: string): boolean {
    const at = this.#used;
    this.#reserve(RECORD_HEAD_BYTES + json.length * 3);
    const bytes = this.#bytes;
    const length = bytes.write(json, at + RECORD_HEAD_BYTES);
    if (length > MAX_PAYLOAD_BYTES) return false;
    const end = at + RECORD_HEAD_BYTES + length;
    bytes.writeUInt32LE(length, at);
    bytes[at + 8] = type;
    writeU64(bytes, number, at + 9);
    bytes.writeUInt32LE(crc32(bytes.subarray(at + CRC_FROM, end)), at + 4);
    this.#used = end;
    return true;
  }

  /** What was added since the last time, as a copy. */
  take(): Buffer {
    const taken = Buffer.from(this.#bytes.subarray(0, this.#used));
    this.#used = 0;
    return taken;
  }

  #reserve(more: number): void {
    if (this.#used + more <= this.#bytes.length) return;
    const larger = Buffer.allocUnsafe(Math.max(this.#bytes.length * 2, this.#used + more));
    this.#bytes.copy(larger, 0, 0, this.#used);
    this.#bytes = larger;
  }
}

/** Whether a text fits into a record, without encoding it where its length alone decides. */
export function fitsRecord(json: string): boolean {
  if (json.length * 3 <= MAX_PAYLOAD_BYTES) return true;
  return Buffer.byteLength(json) <= MAX_PAYLOAD_BYTES;
}

/** Longer than any id with its member name: what is looked at before the whole payload is parsed. */
const PREFIX_BYTES = 128;
const ID_FIRST = /^\{"id":"([A-Za-z0-9._-]+)"(?:,"seq":([1-9]\d*))?[,}]/;

/** The id and, for a final event, the sequence number of a record; undefined when its JSON lacks them. */
export function readKeys(bytes: Buffer, { type, start, end }: RecordView): { id: string; seq: number } | undefined {
  const final = type === RecordType.final;
  const prefix = ID_FIRST.exec(bytes.toString('latin1', start, Math.min(end, start + PREFIX_BYTES)));
  if (prefix !== null && (!final || prefix[2] !== undefined))
    return { id: prefix[1] as string, seq: Number(prefix[2]) };
  try {
    const { id, seq } = JSON.parse(bytes.toString('utf8', start, end)) as { id?: unknown; seq?: unknown };
    if (typeof id !== 'string') return undefined;
    if (!final) return { id, seq: 0 };
    return Number.isSafeInteger(seq) && (seq as number) > 0 ? { id, seq: seq as number } : undefined;
  } catch {
    return undefined;
  }
}

function writeU64(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32LE(value % TWO_32, at);
  bytes.writeUInt32LE(Math.floor(value / TWO_32), at + 4);
}

function readU64(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * TWO_32;
}

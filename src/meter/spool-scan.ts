import type { FileHandle } from 'node:fs/promises';
import { decodeRecord, type RecordView } from './spool-record.js';

/** What is held of a file at once: several of the largest records. */
const WINDOW_BYTES = 256 * 1024;

/** Told what lies in a segment. */
export interface ScanVisitor {
  /** A valid record; `bytes` is good only during the call. False ends the scan before it. */
  record(view: RecordView, bytes: Buffer, offset: number): boolean | undefined;
  /** Bytes that are no record, with a valid record behind them. */
  damage?(from: number, to: number): void | Promise<void>;
}

/** Where a scan ended. */
export interface ScanEnd {
  /** Behind the last valid record. */
  readonly validEnd: number;
  /** Bytes behind it that hold no valid record: a torn tail, or damage. */
  readonly tail: number;
}

/**
 * Reads the records between two offsets of a segment, a window at a time. Behind a bad record it looks for the next
 * valid one byte by byte: JSON holds no control characters, so that no payload can look like a record.
 */
export async function scanRecords(
  file: FileHandle,
  from: number,
  to: number,
  visitor: ScanVisitor,
  windowBytes = WINDOW_BYTES,
  readBytes = windowBytes,
): Promise<ScanEnd> {
  const bytes = Buffer.allocUnsafe(windowBytes);
  let base = from;
  let filled = 0;
  let at = 0;
  let limit = to;
  let validEnd = from;
  let badFrom = -1;
  for (;;) {
    const view = decodeRecord(bytes, at, filled);
    if (view === 'short' && base + filled < limit) {
      bytes.copyWithin(0, at, filled);
      base += at;
      filled -= at;
      at = 0;
      const want = Math.min(readBytes, windowBytes - filled, limit - base - filled);
      const { bytesRead } = await file.read(bytes, filled, want, base + filled);
      if (bytesRead === 0) limit = base + filled;
      filled += bytesRead;
      continue;
    }
    if (view === 'short' && at >= filled) return { validEnd, tail: limit - validEnd };
    if (view === 'short' || view === undefined) {
      if (badFrom < 0) badFrom = base + at;
      at++;
      continue;
    }
    if (badFrom >= 0) {
      await visitor.damage?.(badFrom, base + at);
      badFrom = -1;
    }
    if (visitor.record(view, bytes, base + at) === false) return { validEnd, tail: 0 };
    at = view.end;
    validEnd = base + at;
  }
}

import type { IncomingMessage, ServerResponse } from 'node:http';
import { addQuantity } from '../request/usage-of.js';
import type { UsageRecord } from '../request/usage-record.js';

export type Measured = 'request_bytes' | 'response_bytes';

/** Bytes of the bodies of one request. */
export interface ByteCounts {
  /** Adds what is known to the usage; what is not known stays absent. */
  report(usage: UsageRecord, status: number | undefined): void;
}

/**
 * Counts the bytes of the bodies, without their framing. Of the response: what is written at this place of the chain, so
 * before `compression` the compressed bytes, behind it what the handler wrote.
 */
export function measureBytes(req: IncomingMessage, res: ServerResponse, measured: readonly Measured[]): ByteCounts {
  const request = measured.includes('request_bytes') ? requestBytes(req) : undefined;
  const response = measured.includes('response_bytes') ? responseBytes(res) : undefined;
  return {
    report(usage, status) {
      const received = request?.();
      if (received !== undefined) add(usage, 'request_bytes', received);
      if (response !== undefined) add(usage, 'response_bytes', hasNoBody(req, status) ? 0 : response());
    },
  };
}

/** A handler that reported so much under the same name that the sum is no safe integer keeps what it reported. */
function add(usage: UsageRecord, name: Measured, bytes: number): void {
  try {
    addQuantity(usage, name, bytes, 'measured');
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
}

/** RFC 9110 §6.4.1: whatever the handler wrote, no body was sent. */
function hasNoBody(req: IncomingMessage, status: number | undefined): boolean {
  return req.method === 'HEAD' || status === 204 || status === 304;
}

function requestBytes(req: IncomingMessage): () => number | undefined {
  const { 'content-length': length, 'transfer-encoding': encoding } = req.headers;
  const stream = (req as { stream?: { endAfterHeaders?: boolean } }).stream;
  if (encoding === undefined) {
    if (length !== undefined) return () => (req.complete ? Number(length) : undefined);
    if (stream === undefined || stream.endAfterHeaders === true) return () => 0;
  }
  // A body of unknown length. Part of it was read before this middleware: nobody knows how much.
  if (req.readableDidRead) return () => undefined;
  let bytes = req.readableLength;
  const push = req.push;
  req.push = function countedPush(...args) {
    const [chunk] = args;
    if (typeof chunk === 'string' || chunk instanceof Uint8Array) bytes += Buffer.byteLength(chunk);
    return push.apply(this, args);
  };
  return () => (req.complete ? bytes : undefined);
}

type Writer = (...args: unknown[]) => unknown;

function responseBytes(res: ServerResponse): () => number {
  let bytes = 0;
  const { write, end } = res as unknown as { write: Writer; end: Writer };
  const count = (chunk: unknown, encoding: unknown): void => {
    if (res.writableEnded) return;
    if (typeof chunk === 'string') {
      bytes += Buffer.byteLength(chunk, typeof encoding === 'string' ? (encoding as BufferEncoding) : 'utf8');
    } else if (chunk instanceof Uint8Array) bytes += chunk.byteLength;
  };
  // Whatever the arguments and the value that is returned: back-pressure hangs on it.
  Object.assign(res, {
    write: function countedWrite(this: ServerResponse, ...args: unknown[]) {
      count(args[0], args[1]);
      return write.apply(this, args);
    },
    end: function countedEnd(this: ServerResponse, ...args: unknown[]) {
      // HTTP/2 writes the last chunk through `write`.
      const before = bytes;
      count(args[0], args[1]);
      const last = bytes - before;
      const ended = end.apply(this, args);
      if (bytes > before + last) bytes -= last;
      return ended;
    },
  });
  return () => bytes;
}

import type { ServerResponse } from 'node:http';
import { capacityOf } from './memory-counter.js';
import type { ParsedPolicy } from './quota-policy.js';
import type { OpResult, QuotaOp, TakeResult } from './quota-store.js';

/**
 * `draft-11`: `RateLimit` and `RateLimit-Policy` as lists of every policy (draft-ietf-httpapi-ratelimit-headers-11).
 * `draft-7`: one `RateLimit` of the tightest policy. `legacy`: `X-RateLimit-*` of the tightest policy.
 */
export type HeadersForm = 'draft-11' | 'draft-7' | 'legacy' | false;

/** Where a caller stands with several policies: each array has one item per policy, in the same order. */
export interface Standings {
  readonly policies: readonly ParsedPolicy[];
  readonly ops: readonly QuotaOp[];
  readonly result: TakeResult;
}

/** RFC 9651 §3.3.1: integers of at most 15 digits. */
const MAX_INTEGER = 999_999_999_999_999;

/** Names and values in turn: nothing else is made for a request. */
type FlatHeaders = readonly string[];

/** The headers that tell a client where it stands, names and values in turn. */
export function rateLimitHeaders(form: HeadersForm, { policies, ops, result }: Standings): FlatHeaders {
  if (form === false || policies.length === 0) return [];
  const nowMs = result.serverNowMs;
  if (form === 'draft-11') {
    let stated = '';
    let standing = '';
    for (let index = 0; index < policies.length; index++) {
      const { label, unitLabel, limit } = policies[index] as ParsedPolicy;
      const op = ops[index] as QuotaOp;
      const own = result.ops[index] as OpResult;
      const comma = index === 0 ? '' : ', ';
      stated += `${comma}${label};q=${integer(limit)}${unitLabel}${windowParameter(op, nowMs)}`;
      standing += `${comma}${label};r=${integer(remainingUnits(op, own))}`;
      // What is held may end at any moment: only a refusal knows a time.
      if (op.window.kind !== 'concurrent' || own.retryMs !== 0) standing += `;t=${waitSeconds(own)}`;
    }
    return ['RateLimit-Policy', stated, 'RateLimit', standing];
  }
  let tightest = 0;
  for (let index = 1; index < policies.length; index++) {
    const own = tightness(ops[index] as QuotaOp, result.ops[index] as OpResult);
    if (own < tightness(ops[tightest] as QuotaOp, result.ops[tightest] as OpResult)) tightest = index;
  }
  const { limit } = policies[tightest] as ParsedPolicy;
  const op = ops[tightest] as QuotaOp;
  const own = result.ops[tightest] as OpResult;
  const remaining = integer(remainingUnits(op, own));
  const wait = waitSeconds(own);
  if (form === 'draft-7') {
    return [
      'RateLimit-Policy',
      `${integer(limit)}${windowParameter(op, nowMs)}`,
      'RateLimit',
      `limit=${integer(limit)}, remaining=${remaining}, reset=${wait}`,
    ];
  }
  return [
    'X-RateLimit-Limit',
    `${integer(limit)}`,
    'X-RateLimit-Remaining',
    `${remaining}`,
    'X-RateLimit-Reset',
    `${integer(nowMs / 1_000 + wait)}`,
  ];
}

const PENDING = Symbol('tollkeeper.rateLimitHeaders');

type Carrier = ServerResponse & {
  [PENDING]?: {
    readonly headers: FlatHeaders;
    readonly writeHead: ServerResponse['writeHead'];
  };
};

/**
 * Sets the headers when the response's own go out, unless it is a redirect or 304: caches would keep them for others.
 * Nothing but `writeHead` is replaced, by one function that all responses share.
 */
export function sendRateLimitHeaders(res: ServerResponse, headers: FlatHeaders): void {
  if (headers.length === 0 || res.headersSent) return;
  const carrier = res as Carrier;
  const writeHead = carrier[PENDING]?.writeHead ?? res.writeHead;
  carrier[PENDING] = { headers, writeHead };
  res.writeHead = writeHeadWithLimits as ServerResponse['writeHead'];
}

function writeHeadWithLimits(this: Carrier, ...args: unknown[]): unknown {
  const { headers, writeHead } = this[PENDING] as NonNullable<Carrier[typeof PENDING]>;
  const status = args[0] as number;
  if (!(status >= 300 && status < 400)) {
    for (let index = 0; index < headers.length; index += 2) {
      this.setHeader(headers[index] as string, headers[index + 1] as string);
    }
  }
  return (writeHead as (...all: unknown[]) => unknown).apply(this, args);
}

/** Units that are left, as the client may count on them. */
export function remainingUnits(op: QuotaOp, result: OpResult): number {
  return Math.max(0, Math.floor(capacityOf(op) - result.used));
}

/** Where waiting is needed, how long, in whole seconds: `Retry-After` never precedes it. */
function waitSeconds({ retryMs, resetMs }: OpResult): number {
  return integer((retryMs !== null && retryMs > 0 ? retryMs : resetMs) / 1_000);
}

function tightness(op: QuotaOp, result: OpResult): number {
  const { retryMs } = result;
  // What refuses comes before everything else, the longest wait first.
  if (retryMs === null) return Number.NEGATIVE_INFINITY;
  if (retryMs > 0) return -retryMs;
  return remainingUnits(op, result) / Math.max(1, op.limit);
}

function windowParameter({ window }: QuotaOp, nowMs: number): string {
  if (window.kind === 'concurrent') return '';
  if (window.kind === 'gcra') return `;w=${integer(Math.max(1, window.periodMs / 1_000))}`;
  const { startMs, endMs } = window.at(nowMs);
  return `;w=${integer((endMs - startMs) / 1_000)}`;
}

function integer(value: number): number {
  return Math.min(MAX_INTEGER, Math.max(0, Math.ceil(value)));
}

import type { ServerResponse } from 'node:http';
import { capacityOf } from './memory-counter.js';
import type { ParsedPolicy } from './quota-policy.js';
import type { OpResult, QuotaOp } from './quota-store.js';

/**
 * `draft-11`: `RateLimit` and `RateLimit-Policy` as lists of every policy (draft-ietf-httpapi-ratelimit-headers-11).
 * `draft-7`: one `RateLimit` of the tightest policy. `legacy`: `X-RateLimit-*` of the tightest policy.
 */
export type HeadersForm = 'draft-11' | 'draft-7' | 'legacy' | false;

/** One policy's standing. */
export interface PolicyStanding {
  readonly policy: ParsedPolicy;
  readonly op: QuotaOp;
  readonly result: OpResult;
}

/** RFC 9651 §3.3.1: integers of at most 15 digits. */
const MAX_INTEGER = 999_999_999_999_999;

/** The headers that tell a client where it stands. */
export function rateLimitHeaders(
  form: HeadersForm,
  standings: readonly PolicyStanding[],
  serverNowMs: number,
): readonly (readonly [name: string, value: string])[] {
  if (form === false || standings.length === 0) return [];
  if (form === 'draft-11') {
    const policies = standings.map(({ policy, op }) => {
      const seconds = windowSeconds(op, serverNowMs);
      return `${quoted(policy.name)};q=${integer(policy.limit)}${seconds === undefined ? '' : `;w=${seconds}`}`;
    });
    const limits = standings.map(
      (standing) => `${quoted(standing.policy.name)};r=${remaining(standing)};t=${waitSeconds(standing)}`,
    );
    return [
      ['RateLimit-Policy', policies.join(', ')],
      ['RateLimit', limits.join(', ')],
    ];
  }
  const tightest = standings.reduce((a, b) => (tightness(b) < tightness(a) ? b : a));
  const { policy, op } = tightest;
  const wait = waitSeconds(tightest);
  if (form === 'draft-7') {
    const seconds = windowSeconds(op, serverNowMs);
    return [
      ['RateLimit-Policy', `${integer(policy.limit)}${seconds === undefined ? '' : `;w=${seconds}`}`],
      ['RateLimit', `limit=${integer(policy.limit)}, remaining=${remaining(tightest)}, reset=${wait}`],
    ];
  }
  return [
    ['X-RateLimit-Limit', integer(policy.limit)],
    ['X-RateLimit-Remaining', remaining(tightest)],
    ['X-RateLimit-Reset', integer(serverNowMs / 1_000 + Number(wait))],
  ];
}

const PENDING = Symbol('tollkeeper.rateLimitHeaders');

type Carrier = ServerResponse & {
  [PENDING]?: {
    readonly headers: readonly (readonly [string, string])[];
    readonly writeHead: ServerResponse['writeHead'];
  };
};

/**
 * Sets the headers when the response's own go out, unless it is a redirect or 304: caches would keep them for others.
 * Nothing but `writeHead` is replaced, by one function that all responses share.
 */
export function sendRateLimitHeaders(res: ServerResponse, headers: readonly (readonly [string, string])[]): void {
  if (headers.length === 0 || res.headersSent) return;
  const carrier = res as Carrier;
  const writeHead = carrier[PENDING]?.writeHead ?? res.writeHead;
  carrier[PENDING] = { headers, writeHead };
  res.writeHead = writeHeadWithLimits as ServerResponse['writeHead'];
}

function writeHeadWithLimits(this: Carrier, ...args: unknown[]): unknown {
  const { headers, writeHead } = this[PENDING] as NonNullable<Carrier[typeof PENDING]>;
  const status = args[0] as number;
  if (!(status >= 300 && status < 400)) for (const [name, value] of headers) this.setHeader(name, value);
  return (writeHead as (...all: unknown[]) => unknown).apply(this, args);
}

/** Units that are left, as the client may count on them. */
export function remainingUnits({ op, result }: PolicyStanding): number {
  return Math.max(0, Math.floor(capacityOf(op) - result.used));
}

function remaining(standing: PolicyStanding): string {
  return integer(remainingUnits(standing));
}

/** Where waiting is needed, how long: `Retry-After` never precedes it. */
function waitSeconds({ result }: PolicyStanding): string {
  const { retryMs, resetMs } = result;
  return integer(Math.ceil((retryMs !== null && retryMs > 0 ? retryMs : resetMs) / 1_000));
}

function tightness(standing: PolicyStanding): number {
  const { retryMs } = standing.result;
  // What refuses comes before everything else, the longest wait first.
  if (retryMs === null) return Number.NEGATIVE_INFINITY;
  if (retryMs > 0) return -retryMs;
  return remainingUnits(standing) / Math.max(1, standing.policy.limit);
}

function windowSeconds({ window }: QuotaOp, nowMs: number): string | undefined {
  if (window.kind === 'concurrent') return undefined;
  if (window.kind === 'gcra') return integer(Math.max(1, window.periodMs / 1_000));
  const { startMs, endMs } = window.at(nowMs);
  return integer((endMs - startMs) / 1_000);
}

function integer(value: number): string {
  return String(Math.min(MAX_INTEGER, Math.max(0, Math.ceil(value))));
}

/** RFC 9651 §3.3.3: a String; `"` and `\` are escaped. Names are printable ASCII. */
function quoted(name: string): string {
  return `"${name.replace(/["\\]/g, '\\$&')}"`;
}

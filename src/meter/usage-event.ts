import type { Resource, Subject } from '../identity/ambient.cjs';
import type { Outcome } from '../request/request-state.js';
import type { Quantity } from '../request/usage-record.js';

/**
 * One event per admitted request, `record()` or `correct()`. Absent fields are absent, never empty. A retry is
 * byte-identical: same id, same time, same body.
 */
export interface UsageEvent {
  /** Unique for ever, assigned at admission: the idempotency key. At most 64 characters of `[A-Za-z0-9._-]`. */
  readonly id: string;
  /** `<source>/<spool uuid>`: who wrote it. */
  readonly source: string;
  /** Gapless per source, from 1. */
  readonly seq: number;
  readonly type: string;
  /** RFC 3339 with milliseconds, UTC: the instant of the admission. */
  readonly time: string;
  /** Absent on a correction alone, like the rest of the attribution. */
  readonly authId?: string;
  readonly subject?: Subject;
  readonly issuer?: string;
  readonly verifier?: string;
  readonly tenant?: string;
  readonly clientId?: string;
  readonly tokenId?: string;
  readonly plan?: string;
  /** An edge may state only one of the two. */
  readonly resource?: Partial<Resource>;
  /** The edge's headers, verbatim. */
  readonly claims?: Readonly<Record<string, unknown>>;
  /** The caller's request id: recorded, never the id. */
  readonly requestId?: string;
  readonly method?: string;
  /** The mounted pattern, never a URL or a query; absent where no router gives one. */
  readonly route?: string;
  readonly status?: number;
  readonly outcome: Outcome;
  /** Default: status below 500 (an absent one counts as below) and outcome not `unknown`. */
  readonly billable: boolean;
  readonly durationMs?: number;
  readonly quantities: Readonly<Record<string, Readonly<Quantity>>>;
  readonly dimensions: Readonly<Record<string, string | number | boolean>>;
  /** The id of the event that this one corrects. */
  readonly corrects?: string;
  /** Why it corrects. */
  readonly reason?: string;
}

import type { Resource, SubjectKind } from '../identity/ambient.cjs';
import type { Sink, SourceNote } from '../meter/sink.js';
import type { UsageEvent } from '../meter/usage-event.js';
import type { Lifecycle } from '../runtime/lifecycle.js';

/**
 * What usage can be grouped by. `authId` brings its `issuer` along, since it is unique within it; `subject` its `issuer`
 * and `subject.kind`; `resource` its `resource.type`. `dimensions.<name>` is a dimension of the events.
 */
export type UsageKey =
  | 'tenant'
  | 'clientId'
  | 'authId'
  | 'issuer'
  | 'subject'
  | 'resource'
  | 'plan'
  | 'type'
  | `dimensions.${string}`;

/** Which events are meant. All that is given must match; matching is exact. */
export interface UsageFilter {
  readonly tenant?: string;
  readonly clientId?: string;
  readonly authId?: string;
  readonly issuer?: string;
  readonly type?: string;
}

export interface UsageQuery {
  /** Inclusive: a `Date` or RFC 3339. */
  readonly from: Date | string;
  /** Exclusive. */
  readonly to: Date | string;
  readonly groupBy: readonly UsageKey[];
  /** One row per group and interval, by the clock of `timeZone`. Default: one row per group. */
  readonly interval?: 'hour' | 'day' | 'month';
  /** Only these quantities. Default: all. */
  readonly quantities?: readonly string[];
  /** An IANA time zone. Default `UTC`. */
  readonly timeZone?: string;
  readonly filter?: UsageFilter;
}

/** What was used, in exact integers. */
export interface UsageTotal {
  readonly quantities: Readonly<Record<string, bigint>>;
  /** Requests and records; a correction changes quantities and is no event of its own. */
  readonly events: number;
}

export interface UsageRow extends UsageTotal {
  /** By the names of `groupBy`; what the events do not state is absent. */
  readonly key: Readonly<Record<string, string>>;
  /** The interval's first instant, with `interval`. */
  readonly from?: Date;
  /** What is not billable, apart. */
  readonly notBillable: UsageTotal;
}

export interface UsageReport {
  readonly rows: readonly UsageRow[];
  /**
   * Until when the totals are final: every known source has delivered all that it admitted before. An invoice closes
   * when it has reached the query's `to`. Never later than that; undefined when a source has not said anything yet.
   */
  readonly completeThrough: Date | undefined;
  /** Sources that have not closed, or of which events are missing. */
  readonly openSources: readonly string[];
}

/** What the ledger knows about one source. */
export interface SourceAudit {
  readonly source: string;
  readonly state: 'open' | 'closed';
  /** The last sequence number that is known of. */
  readonly last: number;
  /** Events that are in the ledger, those that retention deleted included. */
  readonly count: number;
  /** First and last sequence number of each gap. Dead letters, and what preceded the ledger's attachment, are none. */
  readonly missing: readonly (readonly [from: number, to: number])[];
}

export interface EventFilter extends UsageFilter {
  readonly from?: Date | string;
  readonly to?: Date | string;
  readonly requestId?: string;
  readonly id?: string;
  readonly source?: string;
  readonly subject?: { readonly kind: SubjectKind; readonly id: string };
  readonly resource?: Resource;
}

/** A roll-up that differs from the events that it was made of. */
export interface LedgerDifference {
  /** The 15 minutes' first instant. */
  readonly bucket: Date;
  readonly key: Readonly<Record<string, string>>;
  /** A quantity, or `events` for their number. */
  readonly quantity: string;
  readonly rolledUp: bigint;
  readonly recomputed: bigint;
}

/** A sink that can also be asked for totals. It takes every event once, however often it is written. */
export interface Ledger extends Omit<Sink, keyof Lifecycle | 'sourceNotes'>, Lifecycle {
  sourceNotes(notes: readonly SourceNote[], signal?: AbortSignal): Promise<void>;
  /**
   * Exact totals.
   *
   * @throws TypeError that lists every problem of the query.
   */
  usage(query: UsageQuery): Promise<UsageReport>;
  /** What is known, and what is missing, of each source, by name. */
  audit(): Promise<readonly SourceAudit[]>;
  /** The events themselves, by time. */
  events(filter: EventFilter): AsyncIterable<UsageEvent>;
  /** Recomputes the roll-ups from the events; empty when they agree. */
  verify(): Promise<readonly LedgerDifference[]>;
  /** Creates or updates the tables. Explicit, versioned, safe to run twice and at once. */
  migrate(): Promise<void>;
}

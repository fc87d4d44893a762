import type { UsageEvent } from './usage-event.js';

/** What a sink made of one event. `delivered` also means: it had the event already. */
export type Verdict =
  | { readonly outcome: 'delivered' }
  | { readonly outcome: 'retry'; readonly afterSeconds?: number; readonly ambiguous?: boolean }
  | { readonly outcome: 'reject'; readonly reason: string };

export interface SinkLimits {
  /** Events in a batch. Default 100. */
  readonly maxEvents?: number;
  /** Bytes of JSON in a batch. Default 256 KiB. */
  readonly maxBytes?: number;
  /** Batches under way at once. Default 1, which keeps the order. */
  readonly concurrency?: number;
  /** Seconds that a write may take. Default 30. */
  readonly timeoutSeconds?: number;
  /** Seconds that a batch may wait to fill. Default 1. */
  readonly lingerSeconds?: number;
  /** Seconds for which the sink recognises a duplicate. Default: for ever. */
  readonly dedupeWindowSeconds?: number;
}

/** What a pipeline tells a sink about a source, beside its events. */
export type SourceNote =
  /** No event of this source comes after `lastSeq` (0: it wrote none). */
  | { readonly kind: 'closed'; readonly source: string; readonly lastSeq: number }
  /** The sink was attached in the middle: what is before `firstSeq` never goes to it. */
  | { readonly kind: 'attached'; readonly source: string; readonly firstSeq: number }
  /**
   * Everything that the source admitted before `time` (RFC 3339) has been delivered to this sink, up to `lastSeq`: no
   * admitted request of before is still under way. It lets a ledger say until when its totals are final.
   */
  | { readonly kind: 'through'; readonly source: string; readonly lastSeq: number; readonly time: string }
  /** The event was rejected by this sink and lies in its dead-letter file. */
  | { readonly kind: 'dead_letter'; readonly source: string; readonly seq: number; readonly reason: string };

/** Where usage events go: an object with a `name` and an async `write(events)` is a sink. */
export interface Sink {
  /** Cursors are kept by this name. */
  readonly name: string;
  /** `billing` (default): every event must arrive. `observational`: may be lossy; dropped events are counted. */
  readonly role?: 'billing' | 'observational';
  readonly limits?: SinkLimits;
  ready?(signal?: AbortSignal): Promise<void>;
  /**
   * Takes a batch. Nothing returned: all delivered. A list: one verdict per event, in order.
   *
   * @throws SinkError to say how to go on; anything else thrown is a retry with backoff.
   */
  // biome-ignore lint/suspicious/noConfusingVoidType: a sink of three lines returns nothing.
  write(events: readonly UsageEvent[], signal: AbortSignal): Promise<void | readonly Verdict[]>;
  /** Told what no event says about a source; may be told twice. A ledger keeps it for its audit. */
  sourceNotes?(notes: readonly SourceNote[], signal?: AbortSignal): Promise<void>;
  close?(signal?: AbortSignal): Promise<void>;
}

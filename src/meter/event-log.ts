import type { Lifecycle } from '../runtime/lifecycle.js';

/**
 * Turns the pipeline's records into text. Intents and checkpoints are taken at once, final events once a group, when
 * the log gives them their sequence numbers.
 *
 * Every text is a JSON object of at most 64 KiB whose first member is `id` (`[A-Za-z0-9._-]`, the same in all texts of
 * one record); in final events the second is `seq`. Recovery reads them without parsing the rest.
 */
export interface EventCodec<R> {
  /** The id of a record: the same in its intent, its checkpoints and its final event. */
  id(record: R): string;
  /** The intent: who, what and when, before the handler runs. */
  intent(record: R): string;
  /** What was used so far. */
  checkpoint(record: R): string;
  /** The final event as JSON. */
  final(record: R, seq: number, source: string): string;
  /** The final event (`outcome: 'unknown'`, same id and time) of an intent whose process died. */
  orphan(intent: string, checkpoint: string | undefined, seq: number, source: string): string;
}

/** Why no request can be admitted at this moment. */
export interface LogRefusal {
  readonly reason: string;
  readonly retryAfterSeconds: number;
}

/** One final event, as it lies in the log. */
export interface StoredEvent {
  readonly seq: number;
  /** JSON, byte for byte the same at every read. */
  readonly json: string;
}

/** The events of one source: this instance's own, or those of a dead instance that was adopted. */
export interface SourceLog {
  /** `<source>/<instance uuid>`. */
  readonly source: string;
  /** The sequence number of the last event that can be read; 0 when there is none yet. */
  readonly lastSeq: number;
  /** True when no event will ever follow `lastSeq`: the closing marker is written. */
  readonly closed: boolean;
  /** The last sequence number that the sink is done with. A new name starts before the oldest event that is kept. */
  cursor(sink: string): number;
  /** The first event that the sink was ever offered: 1, or later when it was attached in the middle. Kept beside the cursor. */
  attachedAt(sink: string): number;
  /**
   * The events after `afterSeq`, oldest first, within the limits (at least one, if there is any). Streamed from disk.
   * None, although `lastSeq` was greater than `afterSeq` before the call: what was between is damaged and gone, and the
   * sink is done with it (`advance` to that `lastSeq`).
   */
  read(afterSeq: number, limits: { maxEvents: number; maxBytes: number }): Promise<readonly StoredEvent[]>;
  /** The sink is done with everything up to `seq`. The cursor is durable before anything is deleted. */
  advance(sink: string, seq: number): void;
  /**
   * The sink has everything up to `lastSeq` and knows that the source is closed. A closed source is removed when every
   * billing sink has said so; after a restart it may be asked again.
   */
  finished(sink: string): void;
}

/** Between the requests and the sinks: in memory, or on disk (the spool). */
export interface EventLog<R> extends Lifecycle {
  readonly kind: 'memory' | 'disk';
  /** This instance: unique for ever, safe inside an event id (`[A-Za-z0-9-]`). */
  readonly instance: string;
  /** Read at every admission, synchronously: undefined when requests may be admitted. */
  readonly refusal: LogRefusal | undefined;
  /** Resolves when the intent is durable; rejects when it is not, and the request is then refused. */
  intent(record: R): Promise<void>;
  /** The request of this intent was refused after all, or never ran: the intent is void, no event follows. */
  cancel(record: R): void;
  /** Makes what was used so far durable, in the background. */
  checkpoint(record: R): void;
  /** Takes the final event and gives it its sequence number. Never refuses: while the disk is full it waits in bounded memory. */
  final(record: R): void;
  /** Resolves when all that was given is written by the rules of the fsync policy; while the disk is full it waits. */
  flush(): Promise<void>;
  /**
   * Nothing more comes: intents that are still open become `unknown` events, the closing marker is written, and this
   * instance's source is `closed`. Called before the last delivery, so that sinks learn it; `close` does it otherwise.
   * What `final` gets afterwards is lost and counted.
   */
  seal(): Promise<void>;
  /** The sources that still have something to deliver, this instance's own first. */
  sources(): readonly SourceLog[];
  /** Called when there is something new to read, or a new or newly closed source. At most once a tick. */
  onChange(listener: () => void): void;
  /**
   * The sinks by name; the cursors of billing sinks hold events back from deletion. Called once, before `ready`. A
   * billing sink that was configured once holds them until it is forgotten.
   */
  holdFor(billing: readonly string[], observational: readonly string[]): void;
  /** Forgets a sink's cursors. */
  forget(sink: string): Promise<void>;
  stats(): LogStats;
}

export interface LogStats {
  /** Final events written by this instance. */
  readonly written: number;
  /** Bytes kept now. */
  readonly bytes: number;
  /** Records that could not be read back and were put aside. */
  readonly corrupt: number;
  /** Intents without a final event, recovered as `unknown`. */
  readonly recovered: number;
  /** Dead instances whose logs this one took over. */
  readonly adopted: number;
  /** Events that observational sinks lost because the log moved on, by sink. */
  readonly dropped: Readonly<Record<string, number>>;
  /** Final events that could not be kept: given after `seal`, or refused by the codec. */
  readonly lost: number;
  /** Billing sinks that are configured no more and still hold events: forget them, or bring them back. */
  readonly absent: readonly string[];
}

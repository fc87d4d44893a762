import type { Clock } from '../runtime/clock.js';
import { withDeadline } from '../runtime/deadline.js';
import type { Random } from '../runtime/random.js';
import { type DeliveryContext, type DeliveryCounts, deliverBatch, tellNotes } from './batch-delivery.js';
import type { DeadLetters } from './dead-letters.js';
import type { EventLog, SourceLog, StoredEvent } from './event-log.js';
import type { Sink } from './sink.js';
import { Halted, type PaceState, SinkPace } from './sink-pace.js';

export interface SinkStats extends Readonly<DeliveryCounts> {
  readonly role: 'billing' | 'observational';
  readonly state: PaceState;
  /** Events that wait for the sink. */
  readonly backlog: number;
  /** Seconds since the admission of the oldest event that the sink was given and is not done with; 0 without one. */
  readonly oldestAgeSeconds: number;
}

interface WorkerOptions {
  readonly sink: Sink;
  readonly log: Pick<EventLog<never>, 'sources'>;
  readonly clock: Clock;
  readonly random: Random;
  readonly deadLetters: DeadLetters;
  readonly report: DeliveryContext['report'];
}

/** Milliseconds after which a log that could not be read is read again. */
const RETRY_MS = 1000;

interface Batch {
  readonly events: readonly StoredEvent[];
  done: boolean;
}

/** How far the sink has come in one source. */
interface Lane {
  readonly source: SourceLog;
  /** The last event that was read. */
  position: number;
  /** What was read and is not done with, in order: the cursor stays before the first of them. */
  readonly batches: Batch[];
  /** The sink knows where its events begin. */
  attached: boolean;
  /** The sink knows that the source is closed. */
  finished: boolean;
  /** Nothing could be read; something new has to happen first. */
  idle: boolean;
}

/** Brings the events of all sources to one sink, at the pace of that sink. */
export class SinkWorker {
  readonly sink: Sink;
  readonly bills: boolean;
  readonly #log: WorkerOptions['log'];
  readonly #clock: Clock;
  readonly #context: DeliveryContext;
  readonly #maxEvents: number;
  readonly #maxBytes: number;
  readonly #concurrency: number;
  readonly #lingerMs: number;
  readonly #pace: SinkPace;
  readonly #lanes = new Map<string, Lane>();
  readonly #waiters = new Set<() => void>();
  #ready = false;
  #running = false;
  #active = 0;
  #slotFreed: (() => void) | undefined;
  #linger: NodeJS.Timeout | undefined;
  /** What waits has waited long enough. */
  #due = false;

  constructor({ sink, log, clock, random, deadLetters, report }: WorkerOptions) {
    const {
      maxEvents = 100,
      maxBytes = 256 * 1024,
      concurrency = 1,
      lingerSeconds = 1,
      timeoutSeconds = 30,
    } = sink.limits ?? {};
    const { dedupeWindowSeconds } = sink.limits ?? {};
    this.sink = sink;
    this.bills = sink.role !== 'observational';
    this.#log = log;
    this.#clock = clock;
    this.#maxEvents = maxEvents;
    this.#maxBytes = maxBytes;
    this.#concurrency = concurrency;
    this.#lingerMs = lingerSeconds * 1000;
    this.#pace = new SinkPace(random);
    this.#context = {
      sink,
      timeoutMs: timeoutSeconds * 1000,
      dedupeWindowMs: dedupeWindowSeconds === undefined ? undefined : dedupeWindowSeconds * 1000,
      pace: this.#pace,
      clock,
      deadLetters,
      counts: { delivered: 0, retried: 0, rejected: 0, parked: 0 },
      report,
    };
  }

  /** There may be something new. */
  wake(): void {
    for (const lane of this.#lanes.values()) lane.idle = false;
    if (this.#running || this.#pace.halted.aborted) return;
    this.#running = true;
    this.#run().catch((error) => {
      this.#running = false;
      if (error instanceof Halted) return;
      // The log could not be read.
      this.#failed(error);
      setTimeout(() => this.wake(), RETRY_MS).unref();
    });
  }

  /**
   * Resolves when the sink is done with everything that is in the log now, without lingering.
   *
   * @param closing also waits until it knows which sources are closed, and cuts a backoff short.
   */
  settled(closing: boolean): Promise<void> {
    const targets = this.#log.sources().map((source) => ({ source, seq: source.lastSeq }));
    const isDone = () =>
      targets.every(({ source, seq }) => {
        const lane = this.#lanes.get(source.source);
        if (closing && source.closed && lane?.finished !== true) return false;
        return source.cursor(this.sink.name) >= seq;
      });
    if (closing) this.#pace.hurry();
    return new Promise((resolve) => {
      const check = (): void => {
        if (!isDone() && !this.#pace.halted.aborted) return;
        this.#waiters.delete(check);
        resolve();
      };
      this.#waiters.add(check);
      this.wake();
      check();
    });
  }

  /** Tells the sink that it has all that was admitted before an instant, if it has. It is told again soon: a failure is passed over. */
  async tellThrough(source: SourceLog, lastSeq: number, time: string): Promise<void> {
    const { sink } = this;
    if (sink.sourceNotes === undefined || !this.#ready || source.cursor(sink.name) < lastSeq) return;
    const note = { kind: 'through', source: source.source, lastSeq, time } as const;
    try {
      await withDeadline(
        this.#context.timeoutMs,
        async (signal) => sink.sourceNotes?.([note], signal),
        this.#pace.halted,
      );
    } catch (error) {
      this.#failed(error);
    }
  }

  resume(): void {
    this.#pace.resume();
    this.wake();
  }

  /** Ends what is under way; what is not done with stays in the log. */
  halt(): void {
    clearTimeout(this.#linger);
    this.#pace.halt();
    this.#notify();
  }

  stats(): SinkStats {
    let oldest = Number.POSITIVE_INFINITY;
    for (const { batches } of this.#lanes.values()) {
      const first = batches[0]?.events[0];
      if (first !== undefined) oldest = Math.min(oldest, Date.parse((JSON.parse(first.json) as { time: string }).time));
    }
    return {
      role: this.bills ? 'billing' : 'observational',
      state: this.#pace.state,
      ...this.#context.counts,
      backlog: this.#log.sources().reduce((sum, source) => sum + source.lastSeq - source.cursor(this.sink.name), 0),
      oldestAgeSeconds: Number.isFinite(oldest) ? Math.max(0, (this.#clock.now() - oldest) / 1000) : 0,
    };
  }

  async #run(): Promise<void> {
    if (!this.#ready) await this.#prepare();
    for (;;) {
      if (this.#pace.halted.aborted) throw new Halted('the pipeline is closing');
      if (this.#active >= this.#concurrency) {
        await new Promise<void>((resolve) => {
          this.#slotFreed = resolve;
        });
        continue;
      }
      const lane = this.#nextLane();
      if (lane === undefined) break;
      await this.#advance(lane);
    }
    this.#running = false;
    this.#notify();
  }

  /** Asks the sink whether it can be used, until it can. */
  async #prepare(): Promise<void> {
    const { sink, timeoutMs, report } = this.#context;
    for (let attempt = 0; sink.ready !== undefined; attempt++) {
      await this.#pace.turn();
      try {
        await withDeadline(timeoutMs, async (signal) => sink.ready?.(signal), this.#pace.halted);
        break;
      } catch (error) {
        report({ type: 'sink_not_ready', sink: sink.name, message: (error as Error | undefined)?.message });
        await this.#pace.wait(attempt, undefined);
      }
    }
    this.#ready = true;
  }

  /** The next source with something to do: each in its turn. */
  #nextLane(): Lane | undefined {
    const sources = this.#log.sources();
    const names = new Set(sources.map(({ source }) => source));
    for (const [name, lane] of this.#lanes) if (!names.has(name) && lane.batches.length === 0) this.#lanes.delete(name);
    for (const source of sources) {
      if (this.#lanes.has(source.source)) continue;
      const position = source.cursor(this.sink.name);
      const attached = source.attachedAt(this.sink.name) <= 1;
      this.#lanes.set(source.source, { source, position, batches: [], attached, finished: false, idle: false });
    }
    let waiting = false;
    for (const [name, lane] of this.#lanes) {
      const available = lane.source.lastSeq - lane.position;
      if (lane.idle || (available <= 0 && !this.#isOver(lane))) continue;
      const isRipe = available >= this.#maxEvents || this.#due || this.#waiters.size > 0 || lane.source.closed;
      if (isRipe || this.#lingerMs === 0) {
        // To the end of the queue.
        this.#lanes.delete(name);
        this.#lanes.set(name, lane);
        return lane;
      }
      waiting = true;
    }
    this.#due = false;
    if (waiting && this.#linger === undefined) {
      this.#linger = setTimeout(() => {
        this.#linger = undefined;
        this.#due = true;
        this.wake();
      }, this.#lingerMs).unref();
    }
    return undefined;
  }

  /** Everything of a closed source is done with, and the sink has yet to be told. */
  #isOver({ source, position, batches, finished }: Lane): boolean {
    return source.closed && !finished && position >= source.lastSeq && batches.length === 0;
  }

  async #advance(lane: Lane): Promise<void> {
    const { source } = lane;
    const { name } = this.sink;
    if (!lane.attached) {
      await tellNotes(this.#context, [{ kind: 'attached', source: source.source, firstSeq: source.attachedAt(name) }]);
      lane.attached = true;
    }
    if (this.#isOver(lane)) {
      await tellNotes(this.#context, [{ kind: 'closed', source: source.source, lastSeq: source.lastSeq }]);
      lane.finished = true;
      source.finished(name);
      this.#notify();
      return;
    }
    const lastSeq = source.lastSeq;
    const { closed } = source;
    const events = await source.read(lane.position, { maxEvents: this.#maxEvents, maxBytes: this.#maxBytes });
    const last = events.at(-1);
    if (last === undefined) {
      // Of a closed source nothing more will come: what is missing could not be read back.
      if (closed) this.#done(lane, { events: [{ seq: lastSeq, json: '{}' }], done: true });
      else lane.idle = true;
      return;
    }
    lane.position = last.seq;
    const batch: Batch = { events, done: false };
    lane.batches.push(batch);
    this.#active += 1;
    deliverBatch(this.#context, source.source, events)
      .then(
        () => this.#done(lane, batch),
        (error) => {
          if (!(error instanceof Halted)) this.#failed(error);
        },
      )
      .finally(() => {
        this.#active -= 1;
        this.#slotFreed?.();
        this.#slotFreed = undefined;
        this.wake();
      });
  }

  /** The cursor moves over what is done with, and never over a gap. */
  #done(lane: Lane, batch: Batch): void {
    batch.done = true;
    if (!lane.batches.includes(batch)) {
      lane.batches.push(batch);
      lane.position = batch.events.at(-1)?.seq ?? lane.position;
    }
    let seq = 0;
    while (lane.batches[0]?.done === true) seq = lane.batches.shift()?.events.at(-1)?.seq ?? seq;
    if (seq > 0) lane.source.advance(this.sink.name, seq);
    this.#notify();
  }

  #failed(error: unknown): void {
    this.#context.report({
      type: 'delivery_failed',
      sink: this.sink.name,
      message: (error as Error | undefined)?.message,
    });
  }

  #notify(): void {
    for (const check of [...this.#waiters]) check();
  }
}

import { randomUUID } from 'node:crypto';
import type { EventCodec, EventLog, LogRefusal, LogStats, SourceLog, StoredEvent } from './event-log.js';

/** Bytes of JSON that wait for sinks, at most. Default of the memory log. */
export const MEMORY_LOG_BYTES = 64 * 1024 * 1024;
/** Seconds that a client is told to wait while the log is full. */
const RETRY_AFTER_SECONDS = 5;

interface MemoryLogOptions<R> {
  readonly source: string;
  readonly codec: EventCodec<R>;
  readonly maxBytes?: number;
}

/**
 * The log in memory: whatever has not reached the sinks is lost when the process ends, except by `close()`. Bounded: when
 * billing sinks do not keep up it refuses, and observational ones lose the oldest events, counted.
 */
export class MemoryLog<R> implements EventLog<R>, SourceLog {
  readonly kind = 'memory';
  readonly instance = randomUUID();
  readonly source: string;
  lastSeq = 0;
  closed = false;
  readonly #codec: EventCodec<R>;
  readonly #maxBytes: number;
  #pending: R[] = [];
  /** The events that are kept; those before `#head` are given up and wait to be cut off. */
  #events: StoredEvent[] = [];
  #head = 0;
  #bytes = 0;
  #lost = 0;
  #billing: readonly string[] = [];
  #observational: readonly string[] = [];
  readonly #cursors = new Map<string, number>();
  readonly #dropped: Record<string, number> = {};
  #listener: (() => void) | undefined;

  constructor({ source, codec, maxBytes = MEMORY_LOG_BYTES }: MemoryLogOptions<R>) {
    this.source = `${source}/${this.instance}`;
    this.#codec = codec;
    this.#maxBytes = maxBytes;
  }

  get refusal(): LogRefusal | undefined {
    if (this.#bytes < this.#maxBytes) return undefined;
    return { reason: 'the log in memory is full', retryAfterSeconds: RETRY_AFTER_SECONDS };
  }

  ready(): Promise<void> {
    return Promise.resolve();
  }

  /** Nothing in memory is durable: `meter()` never asks for it. */
  intent(): Promise<void> {
    return Promise.resolve();
  }

  cancel(): void {}

  checkpoint(): void {}

  final(record: R): void {
    if (this.closed) {
      this.#lost += 1;
      return;
    }
    this.#pending.push(record);
    // After the requests of this tick have been answered.
    if (this.#pending.length === 1) setImmediate(() => this.#write());
  }

  flush(): Promise<void> {
    this.#write();
    return Promise.resolve();
  }

  seal(): Promise<void> {
    this.#write();
    this.closed = true;
    this.#listener?.();
    return Promise.resolve();
  }

  close(): Promise<void> {
    return this.seal();
  }

  sources(): readonly SourceLog[] {
    return [this];
  }

  onChange(listener: () => void): void {
    this.#listener = listener;
  }

  holdFor(billing: readonly string[], observational: readonly string[]): void {
    this.#billing = billing;
    this.#observational = observational;
  }

  forget(sink: string): Promise<void> {
    this.#cursors.delete(sink);
    return Promise.resolve();
  }

  stats(): LogStats {
    return {
      written: this.lastSeq,
      bytes: this.#bytes,
      corrupt: 0,
      recovered: 0,
      adopted: 0,
      dropped: { ...this.#dropped },
      lost: this.#lost,
      absent: [],
    };
  }

  cursor(sink: string): number {
    return Math.max(this.#cursors.get(sink) ?? 0, this.#firstSeq - 1);
  }

  attachedAt(): number {
    return 1;
  }

  read(afterSeq: number, { maxEvents, maxBytes }: { maxEvents: number; maxBytes: number }) {
    const events: StoredEvent[] = [];
    let bytes = 0;
    for (let index = this.#head + Math.max(0, afterSeq + 1 - this.#firstSeq); index < this.#events.length; index++) {
      const event = this.#events[index] as StoredEvent;
      bytes += event.json.length;
      if (events.length > 0 && (events.length >= maxEvents || bytes > maxBytes)) break;
      events.push(event);
    }
    return Promise.resolve(events);
  }

  advance(sink: string, seq: number): void {
    this.#cursors.set(sink, Math.min(Math.max(seq, this.cursor(sink)), this.lastSeq));
    this.#trim();
  }

  finished(): void {}

  get #firstSeq(): number {
    return this.lastSeq - (this.#events.length - this.#head) + 1;
  }

  #write(): void {
    const pending = this.#pending;
    if (pending.length === 0) return;
    this.#pending = [];
    for (const record of pending) {
      let json: string;
      try {
        json = this.#codec.final(record, this.lastSeq + 1, this.source);
      } catch {
        this.#lost += 1;
        continue;
      }
      this.lastSeq += 1;
      this.#events.push({ seq: this.lastSeq, json });
      this.#bytes += json.length;
    }
    this.#trim();
    this.#listener?.();
  }

  /** Gives up what every sink has; under pressure, what only observational sinks lack. */
  #trim(): void {
    const slowest = (sinks: readonly string[]) => Math.min(this.lastSeq, ...sinks.map((sink) => this.cursor(sink)));
    const held = slowest(this.#billing);
    this.#dropUpTo(Math.min(held, slowest(this.#observational)));
    while (this.#bytes > this.#maxBytes / 2 && this.#firstSeq <= held) this.#dropUpTo(this.#firstSeq);
    if (this.#head < 1024 || this.#head < this.#events.length / 2) return;
    this.#events = this.#events.slice(this.#head);
    this.#head = 0;
  }

  #dropUpTo(seq: number): void {
    for (let first = this.#firstSeq; first <= seq; first++) {
      for (const sink of this.#observational) {
        if ((this.#cursors.get(sink) ?? 0) < first) this.#dropped[sink] = (this.#dropped[sink] ?? 0) + 1;
      }
      this.#bytes -= (this.#events[this.#head] as StoredEvent).json.length;
      (this.#events as (StoredEvent | undefined)[])[this.#head] = undefined;
      this.#head += 1;
    }
  }
}

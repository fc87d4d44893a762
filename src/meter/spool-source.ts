import { unlink } from 'node:fs/promises';
import type { SourceLog, StoredEvent } from './event-log.js';
import type { SpoolCursors } from './spool-cursors.js';
import { codeOf, removeInstance, syncDirectory } from './spool-files.js';
import { type RecentGroup, readEvents, type Segment, takeEvents } from './spool-segment.js';

/** Bytes of records that are kept in memory for sinks that keep up. */
const RECENT_BYTES = 2 * 1024 * 1024;

/** What the sources of one spool share. */
export interface SourceContext {
  readonly billing: Set<string>;
  readonly observational: Set<string>;
  /** Events that observational sinks lost, by sink. */
  readonly dropped: Map<string, number>;
  /** A sink has moved on: something may be deleted. */
  advanced(): void;
  /** A record could not be read back. */
  damaged(): void;
}

/** The segments of one instance and the cursors of its sinks. */
export class SpoolSource implements SourceLog {
  readonly source: string;
  readonly directory: string;
  readonly segments: Segment[];
  readonly cursors: SpoolCursors;
  lastSeq: number;
  closed: boolean;
  readonly #context: SourceContext;
  readonly #finished = new Set<string>();
  /** The last groups that were written, so that sinks that keep up cost no reading. */
  #recent: RecentGroup[] = [];
  #recentBytes = 0;

  constructor(
    context: SourceContext,
    state: Pick<SpoolSource, 'source' | 'directory' | 'segments' | 'cursors' | 'lastSeq' | 'closed'>,
  ) {
    this.#context = context;
    this.source = state.source;
    this.directory = state.directory;
    this.segments = state.segments;
    this.cursors = state.cursors;
    this.lastSeq = state.lastSeq;
    this.closed = state.closed;
  }

  get bytes(): number {
    return this.segments.reduce((sum, segment) => sum + segment.bytes, 0);
  }

  cursor(sink: string): number {
    return Math.max(this.cursors.get(sink) ?? 0, this.#beforeOldest());
  }

  attachedAt(sink: string): number {
    return this.cursors.attachedAt(sink) ?? this.#beforeOldest() + 1;
  }

  /** Gives every configured sink a cursor, so that what it has not had is known even if it is configured no more. */
  attach(): void {
    const { billing, observational } = this.#context;
    for (const sink of [...billing, ...observational]) this.#move(sink, this.#beforeOldest());
  }

  async read(afterSeq: number, limits: { maxEvents: number; maxBytes: number }): Promise<readonly StoredEvent[]> {
    const events: StoredEvent[] = [];
    const recent = this.#recent.findIndex(({ firstSeq, lastSeq }) => firstSeq <= afterSeq + 1 && lastSeq > afterSeq);
    if (recent !== -1) {
      for (const group of this.#recent.slice(recent)) if (!takeEvents(group, afterSeq, limits, events)) break;
      return events;
    }
    for (const segment of [...this.segments]) {
      if (segment.firstSeq === 0 || segment.lastSeq <= afterSeq) continue;
      try {
        await readEvents(segment, afterSeq, limits, events, (offset) => {
          if (segment.damaged.has(offset)) return;
          segment.damaged.add(offset);
          this.#context.damaged();
        });
      } catch (error) {
        // It was deleted meanwhile, because every sink that holds it was done.
        if (codeOf(error) !== 'ENOENT') throw error;
      }
      if (events.length > 0) break;
    }
    return events;
  }

  /** Keeps what was just written, for a while. */
  remember(group: RecentGroup): void {
    this.#recent.push(group);
    this.#recentBytes += group.bytes.length;
    while (this.#recentBytes > RECENT_BYTES) this.#recentBytes -= this.#recent.shift()?.bytes.length ?? 0;
  }

  advance(sink: string, seq: number): void {
    this.#move(sink, Math.min(seq, this.lastSeq));
    this.#context.advanced();
  }

  finished(sink: string): void {
    this.#finished.add(sink);
    this.#context.advanced();
  }

  /** Forgets a sink's cursor; one that is configured begins again at the oldest event that is kept. */
  async forget(sink: string): Promise<void> {
    this.#finished.delete(sink);
    await this.cursors.forget(sink);
    this.attach();
  }

  /** Billing sinks of its cursors that are configured no more and are not done. */
  absent(): string[] {
    const { billing, observational } = this.#context;
    const names: string[] = [];
    for (const [sink, { role }] of this.cursors.entries()) {
      if (role !== 'billing' || billing.has(sink) || observational.has(sink)) continue;
      if (this.cursor(sink) < this.lastSeq) names.push(sink);
    }
    return names;
  }

  /** The oldest segments that no sink needs; under pressure, observational sinks do not count. Never the last one. */
  deletable(pressure: boolean): Segment[] {
    let upTo = this.#slowest([...this.#context.billing, ...this.absent()]);
    if (!pressure) upTo = Math.min(upTo, this.#slowest(this.#context.observational));
    const count = this.segments.slice(0, -1).findIndex((segment) => segment.lastSeq > upTo);
    return this.segments.slice(0, count === -1 ? -1 : count);
  }

  /** Whether nothing of a closed source is needed any more. */
  done(pressure: boolean): boolean {
    if (!this.closed || this.absent().length > 0) return false;
    for (const sink of this.#context.billing) if (!this.#finished.has(sink)) return false;
    return pressure || this.#slowest(this.#context.observational) >= this.lastSeq;
  }

  /** Deletes the oldest segments: the cursors are durable before. */
  async delete(segments: readonly Segment[]): Promise<void> {
    if (segments.length === 0) return;
    await this.cursors.save();
    for (const segment of segments) {
      this.#countDropped(segment);
      await unlink(segment.path);
      this.segments.shift();
    }
    await syncDirectory(this.directory);
  }

  /** Deletes all of it, oldest first: what a crash leaves over still ends with the closing marker, or with nothing. */
  async remove(): Promise<void> {
    await this.delete([...this.segments]);
    this.cursors.stop();
    await removeInstance(this.directory);
  }

  #move(sink: string, seq: number): void {
    const role = this.#context.observational.has(sink) ? 'observational' : 'billing';
    this.cursors.set(sink, seq, role, this.#beforeOldest() + 1);
  }

  #slowest(sinks: Iterable<string>): number {
    let slowest = Number.POSITIVE_INFINITY;
    for (const sink of sinks) slowest = Math.min(slowest, this.cursor(sink));
    return slowest;
  }

  #beforeOldest(): number {
    for (const segment of this.segments) if (segment.firstSeq > 0) return segment.firstSeq - 1;
    return this.lastSeq;
  }

  #countDropped({ firstSeq, lastSeq }: Segment): void {
    if (firstSeq === 0) return;
    const { observational, dropped } = this.#context;
    for (const sink of observational) {
      const lost = lastSeq - Math.max(this.cursor(sink), firstSeq - 1);
      if (lost > 0) dropped.set(sink, (dropped.get(sink) ?? 0) + lost);
    }
  }
}

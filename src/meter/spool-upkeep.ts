import { channel } from 'node:diagnostics_channel';
import type { EventCodec } from './event-log.js';
import { codeOf, removeInstance } from './spool-files.js';
import type { GroupQueue } from './spool-group.js';
import type { SpoolInstances } from './spool-instances.js';
import { finishSource, type Recovered, recoverSource } from './spool-recovery.js';
import type { Segment } from './spool-segment.js';
import type { SourceContext, SpoolSource } from './spool-source.js';
import type { SpoolWriter } from './spool-writer.js';

/** Dead instances are looked for so often: with the time to take one over, within 5 s. */
const ADOPT_EVERY_MS = 2_000;
/** Segments that only observational sinks still need are kept up to this share of `maxBytes`. */
const OBSERVATIONAL_SHARE = 0.25;

const alerts = channel('tollkeeper:pipeline');

interface Parts<R> {
  readonly maxBytes: number;
  /** The name of the application. */
  readonly name: string;
  readonly codec: EventCodec<R>;
  readonly instances: SpoolInstances;
  readonly own: SpoolSource;
  readonly queue: GroupQueue<R>;
  readonly writer: SpoolWriter<R>;
  readonly context: SourceContext;
  /** There is something new to read, or more room. */
  changed(): void;
}

/** What a spool does in the background: it adopts dead instances, and deletes what nobody needs any more. */
export class SpoolUpkeep<R> {
  /** Orphans of dead instances that became events. */
  recovered = 0;
  adoptions = 0;
  readonly #parts: Parts<R>;
  /** Adopted sources; those that are not closed wait for their disk. */
  readonly #adopted: Recovered[] = [];
  #work: Promise<void> = Promise.resolve();
  #reclaimQueued = false;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;

  constructor(parts: Parts<R>) {
    this.#parts = parts;
  }

  /** This instance's own source, then the adopted ones. */
  get sources(): SpoolSource[] {
    return [this.#parts.own, ...this.#adopted.map(({ source }) => source)];
  }

  get bytes(): number {
    return this.sources.reduce((sum, source) => sum + source.bytes, 0);
  }

  start(): void {
    const adopt = (): void => this.#next(() => this.#adopt());
    this.#timer = setInterval(adopt, ADOPT_EVERY_MS).unref();
    adopt();
  }

  /** Resolves when what is under way is over. */
  stop(): Promise<void> {
    this.#stopped = true;
    clearInterval(this.#timer);
    return this.#work;
  }

  /** One thing at a time. */
  #next(work: () => Promise<void>): void {
    this.#work = this.#work.then(() => this.attempt(work));
  }

  async #adopt(): Promise<void> {
    if (this.#stopped) return;
    for (const name of await this.#parts.instances.dead()) await this.attempt(() => this.#parts.instances.claim(name));
    const known = new Set(this.#adopted.map(({ source }) => source.directory));
    for (const directory of await this.#parts.instances.claimed()) {
      if (this.#stopped) return;
      if (!known.has(directory)) await this.attempt(() => this.#recover(directory));
    }
    for (const recovered of this.#adopted) {
      if (!recovered.source.closed) await this.attempt(() => this.#complete(recovered));
    }
    await this.#reclaim();
  }

  /** What fails is tried again with the next timer, and holds up nothing else. */
  async attempt(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (alerts.hasSubscribers) alerts.publish({ type: 'spool_error', reason: codeOf(error) });
    }
  }

  async #recover(directory: string): Promise<void> {
    const { instances, name, context } = this.#parts;
    const recovered = await recoverSource(directory, instances.quarantine, name, context);
    if (recovered === undefined) {
      await removeInstance(directory);
      return;
    }
    this.#adopted.push(recovered);
    this.adoptions++;
    if (alerts.hasSubscribers) alerts.publish({ type: 'adopted', source: recovered.source.source });
    this.#parts.changed();
  }

  /** Goes on where the dead instance stopped; on a full disk it waits for space. */
  async #complete(recovered: Recovered): Promise<void> {
    this.recovered += await finishSource(recovered, this.#parts.codec, this.#parts.context);
    this.#parts.changed();
  }

  reclaimSoon(): void {
    if (this.#reclaimQueued || this.#stopped) return;
    this.#reclaimQueued = true;
    this.#next(async () => {
      this.#reclaimQueued = false;
      await this.#reclaim();
    });
  }

  /** Deletes what no sink needs any more. */
  async #reclaim(): Promise<void> {
    for (const recovered of [...this.#adopted]) {
      const { source } = recovered;
      if (!source.closed) continue;
      if (source.done(this.#excess() > 0)) {
        await source.remove();
        this.#adopted.splice(this.#adopted.indexOf(recovered), 1);
        this.#parts.changed();
      } else await this.#delete(source, this.#deletable(source));
    }
    const candidates = this.#deletable(this.#parts.own);
    await this.#delete(this.#parts.own, candidates.slice(0, this.#carryOpenIntents(candidates)));
  }

  async #delete(source: SpoolSource, segments: readonly Segment[]): Promise<void> {
    if (segments.length === 0) return;
    await source.delete(segments);
    this.#parts.changed();
  }

  /** What nobody needs, and of what only observational sinks need, the oldest that is too much. */
  #deletable(source: SpoolSource): Segment[] {
    const segments = source.deletable(false);
    let excess = this.#excess() - segments.reduce((sum, segment) => sum + segment.bytes, 0);
    for (const segment of source.deletable(true).slice(segments.length)) {
      if (excess <= 0) break;
      segments.push(segment);
      excess -= segment.bytes;
    }
    return segments;
  }

  /** Bytes beyond what is kept for observational sinks. */
  #excess(): number {
    return this.bytes - this.#parts.maxBytes * OBSERVATIONAL_SHARE;
  }

  /**
   * An intent that is still open holds its segment, or a crash would forget the request. It is written again at the end,
   * so that a stream of hours does not hold everything behind it; the segment goes the next time.
   *
   * @returns how many of the segments hold none.
   */
  #carryOpenIntents(segments: readonly Segment[]): number {
    let free = segments.length;
    if (free === 0) return 0;
    for (const entry of this.#parts.queue.open.values()) {
      const index = entry.segment === undefined ? -1 : segments.indexOf(entry.segment);
      if (index === -1) continue;
      free = Math.min(free, index);
      if (!entry.closed && !entry.moving && !this.#parts.own.closed) this.#parts.queue.carry(entry);
    }
    if (free < segments.length) {
      this.#parts.writer.schedule();
      void this.#parts.writer.durable().then(() => this.reclaimSoon());
    }
    return free;
  }
}

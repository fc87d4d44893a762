import { randomUUID } from 'node:crypto';
import { channel } from 'node:diagnostics_channel';
import { type Clock, systemClock } from '../runtime/clock.js';
import type { EventCodec, EventLog, LogRefusal, LogStats, SourceLog } from './event-log.js';
import { SpoolCursors } from './spool-cursors.js';
import { codeOf } from './spool-files.js';
import { GroupQueue } from './spool-group.js';
import { SpoolInstances } from './spool-instances.js';
import type { SpoolSettings } from './spool-options.js';
import { type SourceContext, SpoolSource } from './spool-source.js';
import { SpoolUpkeep } from './spool-upkeep.js';
import { SpoolWriter } from './spool-writer.js';

const MAX_SEGMENT_BYTES = 64 * 1024 * 1024;
const WATCH_EVERY_MS = 1_000;
/** Seconds that a client is told to wait while sinks do not keep up: outages of sinks take minutes. */
const FULL_RETRY_SECONDS = 30;
/** Kept aside for a full disk: the final events of some 400 requests in flight. More of them wait in memory. */
const RESERVE_BYTES = 256 * 1024;
/** What `close` waits for a disk that does not answer, when its caller gives no signal. */
const CLOSE_MS = 5_000;

const alerts = channel('tollkeeper:pipeline');

export interface CreateSpoolOptions<R> extends SpoolSettings {
  /** The name of the application; the source of its events is `<source>/<instance uuid>`. */
  readonly source: string;
  readonly codec: EventCodec<R>;
  readonly clock?: Clock;
}

/** A log on disk. It does nothing before `ready` is called. */
export function createSpool<R>(options: CreateSpoolOptions<R>): EventLog<R> {
  return new Spool(options);
}

class Spool<R> implements EventLog<R> {
  readonly kind = 'disk';
  /** Never from an injected source of randomness: two instances with one name would be one. */
  readonly instance = randomUUID();
  refusal: LogRefusal | undefined = { reason: 'the spool is not open yet', retryAfterSeconds: 1 };
  readonly #instances: SpoolInstances;
  readonly #queue: GroupQueue<R>;
  readonly #own: SpoolSource;
  readonly #writer: SpoolWriter<R>;
  readonly #upkeep: SpoolUpkeep<R>;
  readonly #context: SourceContext;
  readonly #highWater: number;
  #starting: Promise<void> | undefined;
  #registered = false;
  #started = false;
  /** Somebody has removed this instance's directory. */
  #gone = false;
  #sealed = false;
  #closed = false;
  #sealing: Promise<void> | undefined;
  #closing: Promise<void> | undefined;
  #watching: NodeJS.Timeout | undefined;
  #listener: (() => void) | undefined;
  #changeQueued = false;
  #corrupt = 0;
  #late = 0;

  constructor(options: CreateSpoolOptions<R>) {
    const { directory, maxBytes, fsync, source, codec, clock = systemClock } = options;
    this.#instances = new SpoolInstances(directory, this.instance);
    this.#context = {
      billing: new Set(),
      observational: new Set(),
      dropped: new Map(),
      advanced: () => this.#upkeep.reclaimSoon(),
      damaged: () => this.#onDamage(),
    };
    const { own: path } = this.#instances;
    const own = new SpoolSource(this.#context, {
      source: `${source}/${this.instance}`,
      directory: path,
      segments: [],
      cursors: new SpoolCursors(path),
      lastSeq: 0,
      closed: false,
    });
    const queue = new GroupQueue(codec, own.source);
    const headroom = Math.floor(maxBytes / 16);
    this.#highWater = maxBytes - headroom;
    const segmentBytes = Math.min(MAX_SEGMENT_BYTES, headroom);
    const reserveBytes = Math.min(RESERVE_BYTES, headroom);
    const changed = (): void => this.#onChanged();
    const writer = new SpoolWriter({ fsync, segmentBytes, reserveBytes, clock }, queue, own, changed);
    const { context, instances } = { context: this.#context, instances: this.#instances };
    this.#upkeep = new SpoolUpkeep({ maxBytes, name: source, codec, instances, own, queue, writer, context, changed });
    this.#own = own;
    this.#queue = queue;
    this.#writer = writer;
  }

  /** Opens the spool; called again after a failure, it tries again. Dead instances are adopted in the background. */
  async ready(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    if (this.#closed) throw new Error('spool: it is closed');
    this.#starting ??= this.#start().catch((error) => {
      this.#starting = undefined;
      throw new Error(`spool: its directory cannot be used (${codeOf(error)})`, { cause: error });
    });
    await (signal === undefined ? this.#starting : Promise.race([this.#starting, aborted(signal)]));
    signal?.throwIfAborted();
  }

  intent(record: R): Promise<void> {
    if (this.refusal !== undefined) return Promise.reject(new Error(`spool: ${this.refusal.reason}`));
    try {
      const durable = this.#queue.intent(record);
      this.#writer.schedule();
      return durable;
    } catch (error) {
      return Promise.reject(error);
    }
  }

  cancel(record: R): void {
    this.#queue.cancel(record);
    this.#writer.schedule();
  }

  checkpoint(record: R): void {
    if (this.#sealed) return;
    try {
      this.#queue.checkpoint(record);
    } catch {
      // The final event comes all the same.
    }
    this.#writer.schedule();
  }

  final(record: R): void {
    if (this.#sealed) {
      this.#late++;
      return;
    }
    this.#queue.final(record);
    this.#writer.schedule();
  }

  flush(): Promise<void> {
    return this.#writer.durable();
  }

  seal(): Promise<void> {
    this.#sealed = true;
    this.#sealing ??= this.#seal();
    return this.#sealing;
  }

  close(signal?: AbortSignal): Promise<void> {
    this.#closed = true;
    this.#closing ??= this.#close(signal ?? timeout(CLOSE_MS));
    return this.#closing;
  }

  sources(): readonly SourceLog[] {
    return this.#upkeep.sources;
  }

  onChange(listener: () => void): void {
    this.#listener = listener;
  }

  holdFor(billing: readonly string[], observational: readonly string[]): void {
    for (const sink of billing) this.#context.billing.add(sink);
    for (const sink of observational) this.#context.observational.add(sink);
  }

  async forget(sink: string): Promise<void> {
    for (const source of this.#upkeep.sources) await source.forget(sink);
    this.#upkeep.reclaimSoon();
    this.#onChanged();
  }

  stats(): LogStats {
    return {
      written: this.#own.lastSeq,
      bytes: this.#upkeep.bytes,
      corrupt: this.#corrupt,
      recovered: this.#upkeep.recovered,
      adopted: this.#upkeep.adoptions,
      dropped: Object.fromEntries(this.#context.dropped),
      lost: this.#queue.lost + this.#late,
      absent: [...new Set(this.#upkeep.sources.flatMap((source) => source.absent()))],
    };
  }

  async #start(): Promise<void> {
    if (!this.#registered) await this.#instances.register(this.#own.source);
    this.#registered = true;
    this.#own.attach();
    await this.#own.cursors.save();
    await this.#writer.open();
    this.#started = true;
    const watch = (): void => void this.#upkeep.attempt(() => this.#watch());
    this.#watching = setInterval(watch, WATCH_EVERY_MS).unref();
    this.#upkeep.start();
    this.#evaluate();
    if (this.#queue.length > 0) this.#writer.schedule();
  }

  async #watch(): Promise<void> {
    this.#writer.watch();
    // Whatever is written to files that are gone is lost.
    if (!(await this.#instances.keepAlive())) this.#gone = true;
    this.#evaluate();
  }

  async #seal(): Promise<void> {
    this.#evaluate();
    if (!this.#started) return;
    await this.#writer.seal();
    this.#own.closed = true;
    this.#onChanged();
  }

  async #close(signal: AbortSignal): Promise<void> {
    clearInterval(this.#watching);
    this.#evaluate();
    const idle = this.#upkeep.stop();
    await Promise.race([this.#starting?.catch(() => undefined), aborted(signal)]);
    if (this.#started) {
      // What the disk does not take by then is lost with the process.
      await Promise.race([this.seal().then(() => idle), aborted(signal)]);
      await Promise.race([this.#finish(), aborted(signal)]);
    }
    this.#instances.close();
  }

  async #finish(): Promise<void> {
    const { unwritten } = this.#writer;
    if (unwritten > 0 && alerts.hasSubscribers) alerts.publish({ type: 'unwritten', records: unwritten });
    await this.#writer.close();
    for (const source of this.#upkeep.sources) {
      await source.cursors.save().catch(() => undefined);
      source.cursors.stop();
    }
    // Otherwise the next process, or a living one, adopts what is left.
    if (this.#upkeep.sources.length > 1 || !this.#own.done(false)) return;
    // It fails, and rightly, when there is an adopted one that nobody has read yet.
    await this.#upkeep.attempt(() => this.#own.remove());
  }

  #onDamage(): void {
    this.#corrupt++;
    if (alerts.hasSubscribers) alerts.publish({ type: 'corrupt' });
  }

  #onChanged(): void {
    this.#evaluate();
    if (this.#changeQueued || this.#listener === undefined) return;
    this.#changeQueued = true;
    setImmediate(() => {
      this.#changeQueued = false;
      this.#listener?.();
    });
  }

  #evaluate(): void {
    const before = this.refusal;
    this.refusal = this.#findRefusal();
    if (before?.reason === this.refusal?.reason || !alerts.hasSubscribers) return;
    if (this.refusal === undefined) alerts.publish({ type: 'admitting' });
    else alerts.publish({ type: 'refusing', reason: this.refusal.reason });
  }

  #findRefusal(): LogRefusal | undefined {
    if (this.#sealed || this.#closed) return { reason: 'the spool is closed', retryAfterSeconds: 5 };
    if (!this.#started) return this.refusal;
    if (this.#gone) return { reason: 'the directory of the spool was removed: restart', retryAfterSeconds: 5 };
    const trouble = this.#writer.trouble;
    if (trouble !== undefined || this.#upkeep.bytes < this.#highWater) return trouble;
    return { reason: 'the spool is full: sinks do not keep up', retryAfterSeconds: FULL_RETRY_SECONDS };
  }
}

function timeout(ms: number): AbortSignal {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), ms).unref();
  return controller.signal;
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}

import { randomUUID } from 'node:crypto';
import { channel } from 'node:diagnostics_channel';
import { resolve } from 'node:path';
import type { OptionsParser } from '../errors/options-parser.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import type { EventCodec, EventLog, LogRefusal, LogStats, SourceLog } from './event-log.js';
import { SpoolCursors } from './spool-cursors.js';
import { codeOf, removeInstance } from './spool-files.js';
import { GroupQueue } from './spool-group.js';
import { SpoolInstances } from './spool-instances.js';
import { finishSource, type Recovered, recoverSource } from './spool-recovery.js';
import type { Segment } from './spool-segment.js';
import { type SourceContext, SpoolSource } from './spool-source.js';
import { type FsyncPolicy, SpoolWriter } from './spool-writer.js';

const MIB = 1024 * 1024;
const DEFAULT_MAX_BYTES = 1024 * MIB;
const MAX_SEGMENT_BYTES = 64 * MIB;
/** Dead instances are looked for so often: with the time to take one over, within 5 s. */
const ADOPT_EVERY_MS = 2_000;
const WATCH_EVERY_MS = 1_000;
/** Seconds that a client is told to wait while sinks do not keep up: outages of sinks take minutes. */
const FULL_RETRY_SECONDS = 30;
/** Segments that only observational sinks still need are kept up to this share of `maxBytes`. */
const OBSERVATIONAL_SHARE = 0.25;
/** Kept aside for a full disk: the final events of some 400 requests in flight. More of them wait in memory. */
const RESERVE_BYTES = 256 * 1024;
/** What `close` waits for a disk that does not answer, when its caller gives no signal. */
const CLOSE_MS = 5_000;

const alerts = channel('tollkeeper:pipeline');

/** The durable log between the requests and the sinks. */
export interface SpoolOptions {
  /**
   * A directory on a local disk, for one application: every process of it on this host uses the same one, and adopts what
   * a dead one has left there. It is made with mode 0700 if it does not exist.
   */
  readonly directory: string;
  /**
   * Bytes on disk for each process, from 1 MiB; default 1 GiB. At fifteen sixteenths of it new requests are refused
   * with 503; the rest is for the final events of requests that were admitted before.
   */
  readonly maxBytes?: number;
  /**
   * When a record counts as durable. Each of them survives `kill -9`; it matters when the power fails.
   *
   * - `always`: after an fsync of its own tick's records.
   * - `group` (default): after an fsync that it shares with the records of up to 5 ms.
   * - `interval`: after the write; fsync every 500 ms.
   * - `os`: after the write; the operating system decides when it reaches the disk.
   */
  readonly fsync?: FsyncPolicy;
}

export interface SpoolSettings {
  readonly directory: string;
  readonly maxBytes: number;
  readonly fsync: FsyncPolicy;
}

/** Checks the options of a spool and fills in the defaults. */
export function parseSpoolOptions(parser: OptionsParser, given: SpoolOptions): SpoolSettings {
  const isObject = typeof given === 'object' && given !== null;
  if (!isObject) parser.problem("spool must be { directory } or 'memory'");
  const options = isObject ? given : { directory: '.' };
  const { directory, maxBytes, fsync } = parser.known(options, ['directory', 'maxBytes', 'fsync'], 'spool');
  return {
    directory: resolve(parser.string('spool.directory', directory)),
    maxBytes: parser.number('spool.maxBytes', maxBytes, DEFAULT_MAX_BYTES, { min: MIB, integer: true }),
    fsync: parser.oneOf('spool.fsync', fsync, ['always', 'group', 'interval', 'os'], 'group'),
  };
}

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
  readonly #settings: SpoolSettings;
  readonly #codec: EventCodec<R>;
  readonly #name: string;
  readonly #instances: SpoolInstances;
  readonly #queue: GroupQueue<R>;
  readonly #own: SpoolSource;
  readonly #writer: SpoolWriter<R>;
  readonly #context: SourceContext;
  readonly #highWater: number;
  /** Adopted sources; `orphans` wait for their disk in those that are not finished. */
  readonly #adopted: Recovered[] = [];
  #starting: Promise<void> | undefined;
  #registered = false;
  #started = false;
  /** Somebody has removed this instance's directory. */
  #gone = false;
  #sealed = false;
  #closed = false;
  #sealing: Promise<void> | undefined;
  #closing: Promise<void> | undefined;
  #background: Promise<void> = Promise.resolve();
  #reclaimQueued = false;
  #timers: NodeJS.Timeout[] = [];
  #listener: (() => void) | undefined;
  #changeQueued = false;
  #corrupt = 0;
  #recovered = 0;
  #adoptedCount = 0;
  #late = 0;

  constructor(options: CreateSpoolOptions<R>) {
    const { directory, maxBytes, fsync, source, codec, clock = systemClock } = options;
    this.#settings = { directory, maxBytes, fsync };
    this.#codec = codec;
    this.#name = source;
    this.#instances = new SpoolInstances(directory, this.instance);
    this.#context = {
      billing: new Set(),
      observational: new Set(),
      dropped: new Map(),
      advanced: () => this.#reclaimSoon(),
      damaged: () => this.#onDamage(),
    };
    const own = this.#instances.own;
    this.#own = new SpoolSource(this.#context, {
      source: `${source}/${this.instance}`,
      directory: own,
      segments: [],
      cursors: new SpoolCursors(own),
      lastSeq: 0,
      closed: false,
    });
    const headroom = Math.floor(maxBytes / 16);
    this.#highWater = maxBytes - headroom;
    this.#queue = new GroupQueue(codec, this.#own.source);
    const segmentBytes = Math.min(MAX_SEGMENT_BYTES, headroom);
    const reserveBytes = Math.min(RESERVE_BYTES, headroom);
    const settings = { fsync, segmentBytes, reserveBytes, clock };
    this.#writer = new SpoolWriter(settings, this.#queue, this.#own, () => this.#onWriter());
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
    return [this.#own, ...this.#adopted.map(({ source }) => source)];
  }

  onChange(listener: () => void): void {
    this.#listener = listener;
  }

  holdFor(billing: readonly string[], observational: readonly string[]): void {
    for (const sink of billing) this.#context.billing.add(sink);
    for (const sink of observational) this.#context.observational.add(sink);
  }

  async forget(sink: string): Promise<void> {
    for (const source of this.#sources()) await source.forget(sink);
    this.#reclaimSoon();
    this.#changed();
  }

  stats(): LogStats {
    return {
      written: this.#own.lastSeq,
      bytes: this.#bytes(),
      corrupt: this.#corrupt,
      recovered: this.#recovered,
      adopted: this.#adoptedCount,
      dropped: Object.fromEntries(this.#context.dropped),
      lost: this.#queue.lost + this.#late,
      absent: [...new Set(this.#sources().flatMap((source) => source.absent()))],
    };
  }

  async #start(): Promise<void> {
    if (!this.#registered) await this.#instances.register(this.#own.source);
    this.#registered = true;
    this.#own.attach();
    await this.#own.cursors.save();
    await this.#writer.open();
    this.#started = true;
    this.#timers = [
      setInterval(() => void this.#attempt(() => this.#watch()), WATCH_EVERY_MS).unref(),
      setInterval(() => this.#inBackground(() => this.#adopt()), ADOPT_EVERY_MS).unref(),
    ];
    this.#inBackground(() => this.#adopt());
    this.#evaluate();
    if (this.#queue.length > 0) this.#writer.schedule();
  }

  async #watch(): Promise<void> {
    this.#writer.watch();
    // Whatever is written to files that are gone is lost.
    if (!(await this.#instances.keepAlive())) this.#gone = true;
    this.#evaluate();
  }

  /** One thing at a time. */
  #inBackground(work: () => Promise<void>): void {
    this.#background = this.#background.then(() => this.#attempt(work));
  }

  async #adopt(): Promise<void> {
    if (this.#closed) return;
    for (const name of await this.#instances.dead()) await this.#attempt(() => this.#instances.claim(name));
    const known = new Set(this.#adopted.map(({ source }) => source.directory));
    for (const directory of await this.#instances.claimed()) {
      if (this.#closed) return;
      if (!known.has(directory)) await this.#attempt(() => this.#recover(directory));
    }
    for (const recovered of this.#adopted) {
      if (!recovered.source.closed) await this.#attempt(() => this.#complete(recovered));
    }
    await this.#reclaim();
  }

  /** What fails is tried again with the next timer, and holds up nothing else. */
  async #attempt(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (alerts.hasSubscribers) alerts.publish({ type: 'spool_error', reason: codeOf(error) });
    }
  }

  async #recover(directory: string): Promise<void> {
    const recovered = await recoverSource(directory, this.#instances.quarantine, this.#name, this.#context);
    if (recovered === undefined) {
      await removeInstance(directory);
      return;
    }
    this.#adopted.push(recovered);
    this.#adoptedCount++;
    if (alerts.hasSubscribers) alerts.publish({ type: 'adopted', source: recovered.source.source });
    this.#changed();
  }

  /** Goes on where the dead instance stopped; on a full disk it waits for space. */
  async #complete(recovered: Recovered): Promise<void> {
    this.#recovered += await finishSource(recovered, this.#codec, this.#context);
    this.#changed();
  }

  #reclaimSoon(): void {
    if (this.#reclaimQueued || this.#closed) return;
    this.#reclaimQueued = true;
    this.#inBackground(async () => {
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
        this.#changed();
      } else await source.delete(this.#deletable(source));
    }
    const candidates = this.#deletable(this.#own);
    const free = this.#carryOpenIntents(candidates);
    await this.#own.delete(candidates.slice(0, free));
    this.#evaluate();
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
    return this.#bytes() - this.#settings.maxBytes * OBSERVATIONAL_SHARE;
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
    for (const entry of this.#queue.open.values()) {
      const index = entry.segment === undefined ? -1 : segments.indexOf(entry.segment);
      if (index === -1) continue;
      free = Math.min(free, index);
      if (!entry.closed && !this.#sealed) this.#queue.carry(entry);
    }
    if (free < segments.length) {
      this.#writer.schedule();
      void this.#writer.durable().then(() => this.#reclaimSoon());
    }
    return free;
  }

  async #seal(): Promise<void> {
    this.#evaluate();
    if (!this.#started) return;
    await this.#writer.seal();
    this.#own.closed = true;
    this.#changed();
  }

  async #close(signal: AbortSignal): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    this.#evaluate();
    await Promise.race([this.#starting?.catch(() => undefined), aborted(signal)]);
    if (this.#started) {
      // What the disk does not take by then is lost with the process.
      await Promise.race([this.seal().then(() => this.#background), aborted(signal)]);
      await Promise.race([this.#finish(), aborted(signal)]);
    }
    this.#instances.close();
  }

  async #finish(): Promise<void> {
    const { unwritten } = this.#writer;
    if (unwritten > 0 && alerts.hasSubscribers) alerts.publish({ type: 'unwritten', records: unwritten });
    await this.#writer.close();
    for (const source of this.#sources()) {
      await source.cursors.save().catch(() => undefined);
      source.cursors.stop();
    }
    // Otherwise the next process, or a living one, adopts what is left.
    if (this.#adopted.length > 0 || !this.#own.done(false)) return;
    // It fails, and rightly, when there is an adopted one that nobody has read yet.
    await this.#attempt(() => this.#own.remove());
  }

  #sources(): SpoolSource[] {
    return [this.#own, ...this.#adopted.map(({ source }) => source)];
  }

  #bytes(): number {
    return this.#sources().reduce((sum, source) => sum + source.bytes, 0);
  }

  #onDamage(): void {
    this.#corrupt++;
    if (alerts.hasSubscribers) alerts.publish({ type: 'corrupt' });
  }

  #onWriter(): void {
    this.#evaluate();
    this.#changed();
  }

  #evaluate(): void {
    const before = this.refusal;
    this.refusal = this.#findRefusal();
    if (before?.reason === this.refusal?.reason || !alerts.hasSubscribers) return;
    if (this.refusal === undefined) alerts.publish({ type: 'admitting' });
    else alerts.publish({ type: 'refusing', reason: this.refusal.reason });
  }

  #findRefusal(): LogRefusal | undefined {
    if (this.#sealing !== undefined || this.#closing !== undefined)
      return { reason: 'the spool is closed', retryAfterSeconds: 5 };
    if (!this.#started) return this.refusal;
    if (this.#gone) return { reason: 'the directory of the spool was removed: restart', retryAfterSeconds: 5 };
    const trouble = this.#writer.trouble;
    if (trouble !== undefined || this.#bytes() < this.#highWater) return trouble;
    return { reason: 'the spool is full: sinks do not keep up', retryAfterSeconds: FULL_RETRY_SECONDS };
  }

  #changed(): void {
    if (this.#changeQueued || this.#listener === undefined) return;
    this.#changeQueued = true;
    setImmediate(() => {
      this.#changeQueued = false;
      this.#listener?.();
    });
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

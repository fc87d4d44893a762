import { type FileHandle, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../runtime/clock.js';
import type { LogRefusal } from './event-log.js';
import { codeOf, createFile, RESERVE, writeAll } from './spool-files.js';
import type { Group, GroupQueue } from './spool-group.js';
import { encodeHeader, HEADER_BYTES } from './spool-record.js';
import { newSegment, noteEvents, type Segment } from './spool-segment.js';
import type { SpoolSource } from './spool-source.js';

/**
 * When a write counts as durable. `always`: every tick's records are written and fsynced before the next are written.
 * `group`: records of up to 5 ms share one fsync. `interval`: fsync every 500 ms. `os`: never; the operating system
 * writes when it likes. Each of them survives `kill -9`; a power loss takes what was not fsynced.
 */
export type FsyncPolicy = 'always' | 'group' | 'interval' | 'os';

/** A final event is written at most 5 ms after the response: the rest is for the timer's own delay and the write. */
const GROUP_MS = 3;
const INTERVAL_MS = 500;
/** An operation of the disk that takes longer is an outage: requests are refused instead of waiting. */
const STALL_MS = 5_000;
const RETRY_FIRST_MS = 100;
const RETRY_MAX_MS = 1_000;
/** What may wait in memory for a disk that does not keep up, beside what requests in flight add. */
const MAX_BUFFERED_BYTES = 32 * 1024 * 1024;
const MAX_QUEUED_RECORDS = 16_384;

export interface WriterSettings {
  readonly fsync: FsyncPolicy;
  readonly segmentBytes: number;
  /** Kept aside on disk for what admitted requests still write when it is full. */
  readonly reserveBytes: number;
  readonly clock: Clock;
}

interface Written<R> {
  readonly group: Group<R>;
  readonly segment: Segment;
  readonly start: number;
}

/** Writes the groups of one instance, asynchronously: a disk that hangs never holds up the event loop. */
export class SpoolWriter<R> {
  readonly #settings: WriterSettings;
  readonly #queue: GroupQueue<R>;
  readonly #source: SpoolSource;
  readonly #changed: () => void;
  #file: FileHandle | undefined;
  #ordinal = 0;
  #immediate = false;
  #timer: NodeJS.Timeout | undefined;
  #intervalTimer: NodeJS.Timeout | undefined;
  #retryTimer: NodeJS.Timeout | undefined;
  /** Pump again when the write that is under way is over, or the fsync. */
  #againAfterWrite = false;
  #againAfterSync = false;
  #writing = false;
  #syncing: Promise<void> | undefined;
  /** Written, not fsynced: kept in memory, because after a failed fsync nobody knows what the disk has. */
  #unsynced: Written<R>[] = [];
  #buffered = 0;
  #writeSince: number | undefined;
  #syncSince: number | undefined;
  #stalled = false;
  /** The code of the error, while the disk cannot be written. */
  #failure: string | undefined;
  /** Counts failures: what began before one must not acknowledge anything after it. */
  #generation = 0;
  /** The current descriptor has failed and is never used again. */
  #bad = false;
  #rescue: Group<R>[] = [];
  #recovering = false;
  #retryMs = RETRY_FIRST_MS;
  #durable = 0;
  #barriers: { taken: number; resolve: () => void }[] = [];
  #closed = false;

  constructor(settings: WriterSettings, queue: GroupQueue<R>, source: SpoolSource, changed: () => void) {
    this.#settings = settings;
    this.#queue = queue;
    this.#source = source;
    this.#changed = changed;
  }

  /** Why nothing can be made durable at this moment. */
  get trouble(): LogRefusal | undefined {
    if (this.#failure !== undefined) return refusal(`the spool cannot be written (${this.#failure})`);
    if (this.#stalled) return refusal('the disk of the spool does not answer');
    if (this.#buffered > MAX_BUFFERED_BYTES || this.#queue.length > MAX_QUEUED_RECORDS) {
      return refusal('the disk of the spool does not keep up');
    }
    return undefined;
  }

  /** Opens the first segment. @throws when the disk cannot be written. */
  async open(): Promise<void> {
    if (this.#file === undefined) await this.#openSegment(1);
    await this.#makeReserve();
  }

  /** Something was queued. */
  schedule(): void {
    if (this.#queue.urgent || this.#settings.fsync === 'always') {
      if (this.#immediate) return;
      this.#immediate = true;
      setImmediate(this.#onImmediate);
    } else if (this.#timer === undefined && !this.#immediate) {
      // Not unref'd: it ends by itself, and a process that runs out of work must not lose what it has finished.
      this.#timer = setTimeout(this.#onTimer, GROUP_MS);
      if (this.#queue.length > MAX_QUEUED_RECORDS) this.#changed();
    }
  }

  /** Resolves when everything queued so far is durable; waits while the disk cannot be written. */
  durable(): Promise<void> {
    const taken = this.#queue.accepted;
    if (this.#durable >= taken) return Promise.resolve();
    const barrier = new Promise<void>((resolve) => this.#barriers.push({ taken, resolve }));
    this.#onTimer();
    void this.#syncAll();
    return barrier;
  }

  /** Writes the closing marker behind everything else. */
  async seal(): Promise<void> {
    this.#queue.finishOpen();
    do await this.durable();
    while (this.#queue.length > 0);
    const group = this.#queue.closing();
    if (this.#failure === undefined) void this.#write(group);
    else {
      this.#buffered += group.bytes.length;
      this.#rescue.push(group);
    }
    await this.durable();
  }

  /** Records that are in memory alone. */
  get unwritten(): number {
    return this.#queue.accepted - this.#durable;
  }

  /** Called every second or so: notices a disk that does not answer. */
  watch(): void {
    const now = this.#settings.clock.monotonic();
    const since = Math.min(this.#writeSince ?? now, this.#syncSince ?? now);
    if (now - since <= STALL_MS || this.#stalled) return;
    this.#stalled = true;
    this.#queue.rejectWaiting(new Error('spool: the disk does not answer'));
    this.#changed();
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const timer of [this.#timer, this.#intervalTimer, this.#retryTimer]) clearTimeout(timer);
    await this.#file?.close().catch(() => undefined);
    this.#file = undefined;
    await unlink(this.#reservePath).catch(() => undefined);
  }

  readonly #onImmediate = (): void => {
    this.#immediate = false;
    const { fsync } = this.#settings;
    const syncs = fsync === 'group' || fsync === 'always';
    // What is written during an fsync is durable no sooner than what is written right after it.
    if (syncs && (this.#writing || this.#syncing !== undefined)) this.#againAfterSync = true;
    else this.#pump();
  };

  readonly #onTimer = (): void => {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#pump();
  };

  #pump(): void {
    if (this.#failure !== undefined || this.#file === undefined || this.#queue.length === 0) return;
    if (this.#writing) this.#againAfterWrite = true;
    else void this.#write(this.#queue.take());
  }

  async #write(group: Group<R>): Promise<void> {
    const generation = this.#generation;
    const { fsync, segmentBytes, clock } = this.#settings;
    this.#writing = true;
    this.#buffered += group.bytes.length;
    this.#writeSince = clock.monotonic();
    try {
      const { bytes } = this.#segment;
      if (bytes > HEADER_BYTES && bytes + group.bytes.length > segmentBytes) await this.#rotate(group.firstNumber);
      const segment = this.#segment;
      const start = segment.bytes;
      await writeAll(this.#file as FileHandle, group.bytes, start);
      if (generation !== this.#generation) throw new Error('the descriptor failed meanwhile');
      segment.bytes = start + group.bytes.length;
      this.#unsynced.push({ group, segment, start });
    } catch (error) {
      this.#ended();
      this.#fail(error, group);
      return;
    }
    this.#ended();
    if (this.#buffered > MAX_BUFFERED_BYTES) this.#changed();
    if (fsync === 'os') this.#acknowledge(this.#unsynced.splice(0));
    else if (fsync !== 'interval' || this.#barriers.length > 0) void this.#sync();
    if (fsync === 'interval') {
      group.waiter?.resolve();
      this.#intervalTimer ??= setTimeout(this.#onInterval, INTERVAL_MS).unref();
    }
    if (this.#againAfterWrite) {
      this.#againAfterWrite = false;
      this.#pump();
    } else if (this.#queue.length > 0) this.schedule();
  }

  #ended(): void {
    this.#writing = false;
    this.#writeSince = undefined;
    this.#awake();
  }

  #awake(): void {
    if (this.#writeSince !== undefined || this.#syncSince !== undefined || !this.#stalled) return;
    this.#stalled = false;
    this.#changed();
  }

  readonly #onInterval = (): void => {
    this.#intervalTimer = undefined;
    void this.#sync();
  };

  /** One fsync at a time, for everything written before it. */
  #sync(): Promise<void> {
    this.#syncing ??= this.#syncNow().then(() => {
      this.#syncing = undefined;
      this.#syncSince = undefined;
      this.#awake();
      if (this.#failure !== undefined) return;
      if (this.#unsynced.length > 0 && this.#settings.fsync !== 'interval') void this.#sync();
      if (!this.#againAfterSync) return;
      this.#againAfterSync = false;
      this.#pump();
    });
    return this.#syncing;
  }

  async #syncNow(): Promise<void> {
    const generation = this.#generation;
    const count = this.#unsynced.length;
    if (count === 0 || this.#file === undefined) return;
    this.#syncSince = this.#settings.clock.monotonic();
    try {
      await this.#file.datasync();
    } catch (error) {
      if (generation === this.#generation) this.#fail(error);
      return;
    }
    if (generation === this.#generation) this.#acknowledge(this.#unsynced.splice(0, count));
  }

  async #syncAll(): Promise<void> {
    while (this.#unsynced.length > 0 && this.#failure === undefined) await this.#sync();
  }

  #acknowledge(written: readonly Written<R>[]): void {
    const source = this.#source;
    for (const { group, segment, start } of written) {
      segment.end = start + group.bytes.length;
      if (group.firstSeq > 0) {
        noteEvents(segment, group.firstSeq, group.lastSeq, start);
        source.lastSeq = group.lastSeq;
        source.remember(group);
      }
      for (const entry of group.opened) {
        entry.segment = segment;
        entry.moving = false;
      }
      for (const entry of group.closed) this.#queue.open.delete(entry.record);
      this.#buffered -= group.bytes.length;
      this.#durable = group.taken;
      group.waiter?.resolve();
    }
    while (this.#barriers.length > 0 && (this.#barriers[0]?.taken ?? 0) <= this.#durable)
      this.#barriers.shift()?.resolve();
    this.#changed();
  }

  /**
   * The descriptor is given up for good: after a failed fsync the kernel may have dropped the pages and report success
   * the next time. What is not acknowledged is written again, to a new segment.
   */
  #fail(error: unknown, group?: Group<R>): void {
    this.#generation++;
    this.#bad = true;
    this.#failure ??= codeOf(error);
    this.#rescue.push(...this.#unsynced.splice(0).map((written) => written.group));
    if (group !== undefined) this.#rescue.push(group);
    this.#queue.rejectWaiting(new Error(`spool: it cannot be written (${this.#failure})`));
    this.#changed();
    void this.#recover();
  }

  async #recover(): Promise<void> {
    if (this.#recovering || this.#writing || this.#closed) return;
    this.#recovering = true;
    try {
      if (this.#failure === 'ENOSPC' || this.#failure === 'EDQUOT')
        await unlink(this.#reservePath).catch(() => undefined);
      if (this.#bad) await this.#replaceSegment();
      while (this.#queue.length > 0) await this.#rewrite(this.#queue.take());
      await this.#makeReserve();
      this.#failure = undefined;
      this.#retryMs = RETRY_FIRST_MS;
    } catch (error) {
      this.#failure = codeOf(error);
      // Not unref'd while something waits in memory alone.
      this.#retryTimer = setTimeout(() => void this.#recover(), this.#retryMs);
      if (this.#rescue.length === 0 && this.#queue.length === 0) this.#retryTimer.unref();
      this.#retryMs = Math.min(RETRY_MAX_MS, this.#retryMs * 2);
    }
    this.#recovering = false;
    this.#changed();
    if (this.#failure === undefined && this.#queue.length > 0) this.#pump();
  }

  /** A new segment begins with everything that is not acknowledged; it appears in one step, so that none is seen half. */
  async #replaceSegment(): Promise<void> {
    const failed = this.#file;
    const failedSegment = this.#source.segments.at(-1);
    const groups = this.#rescue;
    await this.#openSegment(groups[0]?.firstNumber ?? this.#queue.number + 1, groups);
    this.#rescue = [];
    this.#bad = false;
    const segment = this.#segment;
    let start = HEADER_BYTES;
    for (const group of groups) {
      segment.bytes = start + group.bytes.length;
      this.#acknowledge([{ group, segment, start }]);
      start = segment.bytes;
    }
    if (failed === undefined || failedSegment === undefined) return;
    await failed.truncate(failedSegment.end).catch(() => undefined);
    // Not awaited: it waits for whatever still hangs on the descriptor.
    failed.close().catch(() => undefined);
    failedSegment.bytes = failedSegment.end;
  }

  async #rewrite(group: Group<R>): Promise<void> {
    const segment = this.#segment;
    const start = segment.bytes;
    this.#buffered += group.bytes.length;
    try {
      await writeAll(this.#file as FileHandle, group.bytes, start);
      if (this.#settings.fsync !== 'os') await this.#file?.datasync();
    } catch (error) {
      this.#rescue.push(group);
      this.#bad = true;
      throw error;
    }
    segment.bytes = start + group.bytes.length;
    this.#acknowledge([{ group, segment, start }]);
  }

  async #rotate(firstNumber: number): Promise<void> {
    await this.#syncAll();
    if (this.#failure !== undefined) throw new Error('the descriptor failed meanwhile');
    const full = this.#file as FileHandle;
    await this.#openSegment(firstNumber);
    await full.close();
  }

  get #segment(): Segment {
    return this.#source.segments.at(-1) as Segment;
  }

  get #reservePath(): string {
    return join(this.#source.directory, RESERVE);
  }

  async #openSegment(firstNumber: number, groups: readonly Group<R>[] = []): Promise<void> {
    const { directory, segments, lastSeq } = this.#source;
    const segment = newSegment(directory, this.#ordinal + 1, lastSeq);
    const parts = [encodeHeader({ firstNumber, lastSeq }), ...groups.map((group) => group.bytes)];
    this.#file = await createFile(segment.path, parts, this.#settings.fsync !== 'os');
    this.#ordinal = segment.ordinal;
    segments.push(segment);
  }

  /** Real bytes, so that the disk has them; requests are admitted only while it is there. */
  async #makeReserve(): Promise<void> {
    const file = await createFile(this.#reservePath, [Buffer.alloc(this.#settings.reserveBytes, 0x54)], false);
    await file.close();
  }
}

function refusal(reason: string): LogRefusal {
  return { reason, retryAfterSeconds: 5 };
}

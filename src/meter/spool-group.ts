import type { EventCodec } from './event-log.js';
import { fitsRecord, RecordEncoder, RecordType } from './spool-record.js';
import type { Segment } from './spool-segment.js';

/** Bytes in one write, at most (about): serialising more at once would hold up the event loop. */
const GROUP_BYTES = 512 * 1024;

/** In the queue alone: an open intent that becomes a final event. */
const ORPHAN = 0;
type QueuedType = RecordType | typeof ORPHAN;

/** An admitted request whose final event is not durable yet. */
export interface OpenIntent<R> {
  readonly record: R;
  readonly json: string;
  checkpoint: string | undefined;
  /** A checkpoint waits to be written: a newer one takes its place. */
  checkpointWaits: boolean;
  /** What its handler waits for, or has waited for; undefined when nobody does. */
  waiter: Waiter | undefined;
  encoded: boolean;
  /** Its final event or its cancellation is given. */
  closed: boolean;
  /** It is being written again, to a later segment. */
  moving: boolean;
  /** Where it is durable. */
  segment: Segment | undefined;
}

/** One promise for all intents that are queued together. */
class Waiter {
  readonly promise: Promise<void>;
  settled = false;
  #resolve!: () => void;
  #reject!: (error: Error) => void;

  constructor() {
    this.promise = new Promise<void>((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // Whoever asked is told; if nobody listens any more, that is no crash.
    this.promise.catch(() => undefined);
  }

  resolve(): void {
    this.settled = true;
    this.#resolve();
  }

  reject(error: Error): void {
    this.settled = true;
    this.#reject(error);
  }
}

/** Records that are written in one go, and kept in memory until they are durable. */
export interface Group<R> {
  readonly bytes: Buffer;
  /** The number of its first record. */
  readonly firstNumber: number;
  /** All records taken since the start, up to the end of this group. */
  readonly taken: number;
  readonly opened: OpenIntent<R>[];
  readonly closed: OpenIntent<R>[];
  /** The sequence numbers of its final events; 0 and 0 when it has none. */
  readonly firstSeq: number;
  readonly lastSeq: number;
  readonly waiter: Waiter | undefined;
}

/** What waits to be written, in order, and its numbering. */
export class GroupQueue<R> {
  /** Intents by their record, until their final event is durable. */
  readonly open = new Map<R, OpenIntent<R>>();
  /** Final events that could not be kept. */
  lost = 0;
  /** Records taken so far, written or not. */
  accepted = 0;
  /** The number of the last record that was encoded. */
  number = 0;
  /** The last sequence number given. */
  lastSeq = 0;
  readonly #codec: EventCodec<R>;
  readonly #source: string;
  readonly #encoder = new RecordEncoder();
  #types: QueuedType[] = [];
  /** A record for a final event, an open intent for everything else. */
  #items: (R | OpenIntent<R>)[] = [];
  #taken = 0;
  #waiter: Waiter | undefined;

  constructor(codec: EventCodec<R>, source: string) {
    this.#codec = codec;
    this.#source = source;
  }

  get length(): number {
    return this.#items.length;
  }

  /** Whether a handler waits for what is in the queue. */
  get urgent(): boolean {
    return this.#waiter !== undefined;
  }

  /** @throws whatever the codec throws; RangeError when the intent is too long. */
  intent(record: R): Promise<void> {
    const entry = this.#open(record);
    this.#push(RecordType.intent, entry);
    this.#waiter ??= new Waiter();
    entry.waiter = this.#waiter;
    return entry.waiter.promise;
  }

  /** @throws as `intent`. A record that has no intent yet gets one. */
  checkpoint(record: R): void {
    let entry = this.open.get(record);
    if (entry === undefined) {
      entry = this.#open(record);
      this.#push(RecordType.intent, entry);
    }
    const json = this.#codec.checkpoint(record);
    if (!fitsRecord(json)) throw new RangeError('spool: a checkpoint is longer than 64 KiB');
    entry.checkpoint = json;
    if (entry.checkpointWaits) return;
    entry.checkpointWaits = true;
    this.#push(RecordType.checkpoint, entry);
  }

  cancel(record: R): void {
    const entry = this.open.get(record);
    if (entry !== undefined && !entry.closed) this.#void(entry);
  }

  final(record: R): void {
    this.#types.push(RecordType.final);
    this.#items.push(record);
    this.accepted++;
  }

  /** Writes an intent, and its checkpoint, again: its segment is about to be deleted. */
  carry(entry: OpenIntent<R>): void {
    entry.moving = true;
    this.#push(RecordType.intent, entry);
    if (entry.checkpoint === undefined || entry.checkpointWaits) return;
    entry.checkpointWaits = true;
    this.#push(RecordType.checkpoint, entry);
  }

  /** What waits for durability fails: those requests are refused, and their intents are void. */
  rejectWaiting(error: Error): void {
    const rejected = new Set<Waiter>();
    for (const entry of this.open.values()) {
      if (entry.waiter === undefined || entry.waiter.settled || entry.closed) continue;
      rejected.add(entry.waiter);
      this.#void(entry);
    }
    for (const waiter of rejected) waiter.reject(error);
    this.#waiter = undefined;
  }

  /** Makes final events (`unknown`) of the intents that are still open. */
  finishOpen(): void {
    for (const entry of this.open.values()) {
      if (!entry.closed) this.#push(ORPHAN, entry);
    }
  }

  /** The closing marker, as a group of its own. */
  closing(): Group<R> {
    const firstNumber = this.number + 1;
    this.#append(RecordType.closing, JSON.stringify({ lastSeq: this.lastSeq }));
    const taken = ++this.accepted;
    this.#taken = taken;
    const bytes = this.#encoder.take();
    return { bytes, firstNumber, taken, opened: [], closed: [], firstSeq: 0, lastSeq: 0, waiter: undefined };
  }

  /** The next group: everything that waits, within a bound. */
  take(): Group<R> {
    const opened: OpenIntent<R>[] = [];
    const closed: OpenIntent<R>[] = [];
    const firstNumber = this.number + 1;
    const before = this.lastSeq;
    let count = 0;
    for (; count < this.#items.length && this.#encoder.size < GROUP_BYTES; count++) {
      this.#encode(this.#types[count] as QueuedType, this.#items[count] as R | OpenIntent<R>, opened, closed);
    }
    this.#types = count === this.#types.length ? [] : this.#types.slice(count);
    this.#items = count === this.#items.length ? [] : this.#items.slice(count);
    this.#taken += count;
    const waiter = this.#items.length === 0 ? this.#waiter : undefined;
    if (waiter !== undefined) this.#waiter = undefined;
    const [firstSeq, lastSeq] = this.lastSeq > before ? [before + 1, this.lastSeq] : [0, 0];
    const bytes = this.#encoder.take();
    return { bytes, firstNumber, taken: this.#taken, opened, closed, firstSeq, lastSeq, waiter };
  }

  #encode(type: QueuedType, item: R | OpenIntent<R>, opened: OpenIntent<R>[], closed: OpenIntent<R>[]): void {
    if (type === RecordType.final) {
      const entry = this.open.size === 0 ? undefined : this.open.get(item as R);
      if (entry?.closed === true) return;
      this.#encodeFinal(item as R, entry);
      if (entry !== undefined) this.#close(entry, closed);
      return;
    }
    const entry = item as OpenIntent<R>;
    if (type === ORPHAN) {
      if (entry.closed) return;
      this.#encodeFinal(undefined, entry);
      this.#close(entry, closed);
    } else if (type === RecordType.cancel) {
      this.#append(type, JSON.stringify({ id: this.#codec.id(entry.record) }));
      closed.push(entry);
    } else if (!entry.closed && type === RecordType.intent) {
      this.#append(type, entry.json);
      entry.encoded = true;
      opened.push(entry);
    } else if (type === RecordType.checkpoint) {
      entry.checkpointWaits = false;
      if (!entry.closed) this.#append(type, entry.checkpoint as string);
    }
  }

  /** A final event that the codec cannot make or that is too long becomes what a crash would have made of it. */
  #encodeFinal(record: R | undefined, entry: OpenIntent<R> | undefined): void {
    const seq = this.lastSeq + 1;
    try {
      if (record !== undefined && this.#append(RecordType.final, this.#codec.final(record, seq, this.#source))) {
        this.lastSeq = seq;
        return;
      }
    } catch {
      // Below.
    }
    try {
      const intent = entry?.json ?? this.#codec.intent(record as R);
      const orphan = this.#codec.orphan(intent, entry?.checkpoint, seq, this.#source);
      if (this.#append(RecordType.final, orphan)) {
        this.lastSeq = seq;
        return;
      }
    } catch {
      // Nothing can be made of it.
    }
    this.lost++;
  }

  #append(type: RecordType, json: string): boolean {
    if (!this.#encoder.append(type, this.number + 1, json)) return false;
    this.number++;
    return true;
  }

  #open(record: R): OpenIntent<R> {
    const json = this.#codec.intent(record);
    if (!fitsRecord(json)) throw new RangeError('spool: an intent is longer than 64 KiB');
    const entry: OpenIntent<R> = {
      record,
      json,
      checkpoint: undefined,
      checkpointWaits: false,
      waiter: undefined,
      encoded: false,
      closed: false,
      moving: false,
      segment: undefined,
    };
    this.open.set(record, entry);
    return entry;
  }

  #void(entry: OpenIntent<R>): void {
    entry.closed = true;
    if (entry.encoded) this.#push(RecordType.cancel, entry);
    else this.open.delete(entry.record);
  }

  #close(entry: OpenIntent<R>, closed: OpenIntent<R>[]): void {
    entry.closed = true;
    closed.push(entry);
  }

  #push(type: QueuedType, entry: OpenIntent<R>): void {
    this.#types.push(type);
    this.#items.push(entry);
    this.accepted++;
  }
}

import { channel } from 'node:diagnostics_channel';
import { OptionsParser } from '../errors/options-parser.js';
import type { Identity } from '../identity/ambient.cjs';
import { type Clock, systemClock } from '../runtime/clock.js';
import { withDeadline } from '../runtime/deadline.js';
import { READY_WAIT_MS } from '../runtime/lifecycle.js';
import { type Random, systemRandom } from '../runtime/random.js';
import type { LocalRevocationStore } from './memory-revocation-store.js';
import { CHANGE_KEEP_SECONDS, changeEntry, namedTarget, revocationEntry } from './revocation-entry.js';
import type { RevocationEntry, RevocationStore } from './revocation-store.js';
import { RevocationView } from './revocation-view.js';
import type { ChangeTarget, RevocationAnswer, Revocations, RevocationTarget, RevokeOptions } from './revocations.js';

export interface RevocationsOptions {
  /** `memoryRevocationStore()`, or one that several processes share. */
  readonly store: RevocationStore | LocalRevocationStore;
  /** Seconds between two reads of the store, at most; up to 10% less, so that replicas spread. Default 5. */
  readonly pollSeconds?: number;
  /** Seconds: with a view older than that, `check` answers `unknown`. At least `pollSeconds`. Default 60. */
  readonly maxStalenessSeconds?: number;
  readonly clock?: Clock;
  readonly random?: Random;
}

/** Milliseconds that a read or a write of the store may take. */
const STORE_TIMEOUT_MS = 5_000;
/** Milliseconds until the next read after one that failed, at most. */
const RETRY_MS = 1_000;

const diagnostics = channel('tollkeeper:revocations');

/**
 * What is denied, as this process knows it: asked by `authenticate()` about every identity, synchronously.
 *
 * A denial holds at once in the process that makes it; in the others with the store's next hint, and within
 * `pollSeconds` plus the time of a read (5 s at most) by the guarantee. While the store is out of reach the last view
 * holds until `maxStalenessSeconds`; then requests are answered with 503. Nothing is read before the first use.
 *
 * Published on `tollkeeper:revocations`: `{ type }` of `revoked`, `changed`, `write_failed`, `read_failed`, `ready`,
 * `stale`, `recovered`, `discontinued`.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function createRevocations(options: RevocationsOptions): Revocations {
  return new StoredRevocations(options);
}

class StoredRevocations implements Revocations {
  readonly #view: RevocationView;
  /** Absent: the view itself is all there is. */
  readonly #store: RevocationStore | undefined;
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #nowMs: () => number;
  readonly #pollMs: number;
  readonly #maxStalenessMs: number;
  readonly #closing = new AbortController();
  #staleAt: number;
  #cursor: string | undefined;
  /** When the last read that succeeded began, on the monotonic clock. */
  #lastRead: number | undefined;
  #stale = false;
  #started = false;
  #timer: NodeJS.Timeout | undefined;
  #reading: Promise<void> | undefined;
  /** A hint came while a read was under way, which may have missed what it is about. */
  #again = false;
  /** What the last read failed with, for `ready()`. */
  #lastFailure = '';
  /** How many pages came. */
  #pages = 0;
  readonly #waiting = new Set<() => void>();
  #unsubscribe: (() => Promise<void>) | undefined;

  constructor(given: RevocationsOptions) {
    const parser = new OptionsParser('createRevocations');
    const options = parser.known(given, ['store', 'pollSeconds', 'maxStalenessSeconds', 'clock', 'random']);
    const store = options.store as Partial<RevocationStore & LocalRevocationStore> | undefined;
    const shared = typeof store?.append === 'function' && typeof store.read === 'function';
    const local = store?.view !== undefined;
    parser.check(shared || local, 'store must be a revocation store (did you call its factory?)');
    const pollSeconds = parser.number('pollSeconds', options.pollSeconds, 5, { min: 0.01, max: 3_600 });
    const maxStalenessSeconds = parser.number('maxStalenessSeconds', options.maxStalenessSeconds, 60, {
      max: 86_400,
    });
    parser.check(maxStalenessSeconds >= pollSeconds, 'maxStalenessSeconds must be at least pollSeconds');
    parser.done();
    this.#view = local ? (store.view as RevocationView) : new RevocationView(options.random ?? systemRandom);
    this.#store = local ? undefined : (store as RevocationStore);
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? systemRandom;
    this.#nowMs = () => this.#clock.now();
    this.#pollMs = pollSeconds * 1_000;
    this.#maxStalenessMs = maxStalenessSeconds * 1_000;
    this.#staleAt = local ? Number.POSITIVE_INFINITY : Number.NEGATIVE_INFINITY;
  }

  get version(): number {
    return this.#view.version;
  }

  get staleAt(): number {
    return this.#staleAt;
  }

  check(identity: Identity, decidedAtVersion?: number): RevocationAnswer {
    if (this.#view.revokes(identity, this.#nowMs)) return 'revoked';
    if (this.#staleAt !== Number.POSITIVE_INFINITY && !(this.#clock.monotonic() < this.#staleAt)) {
      this.#start();
      return 'unknown';
    }
    if (decidedAtVersion !== undefined && this.#view.changedSince(identity, decidedAtVersion)) return 'changed';
    return 'live';
  }

  async revoke(target: RevocationTarget, options?: RevokeOptions): Promise<void> {
    await this.#add('revoked', revocationEntry(target, options, this.#clock.now()));
  }

  async changed(target: ChangeTarget): Promise<void> {
    await this.#add('changed', changeEntry(target, this.#clock.now()));
  }

  async ready(signal?: AbortSignal): Promise<void> {
    if (this.#lastRead !== undefined || this.#store === undefined) return;
    this.#start();
    let settle = (): void => {};
    const first = new Promise<void>((resolve) => {
      settle = resolve;
    });
    this.#waiting.add(settle);
    for (let pages = -1; this.#lastRead === undefined && pages !== this.#pages; ) {
      pages = this.#pages;
      // A caller's signal is the bound. Without one it is the wait that a request would be granted, as long as nothing comes.
      const waitMs = signal === undefined ? READY_WAIT_MS : MAX_TIMER_MS;
      await withDeadline(waitMs, () => first, signal).catch(() => {});
    }
    this.#waiting.delete(settle);
    if (this.#lastRead === undefined) {
      throw new Error(`the revocations have no first view of their store${this.#lastFailure}`);
    }
  }

  async close(): Promise<void> {
    this.#closing.abort();
    for (const settle of this.#waiting) settle();
    clearTimeout(this.#timer);
    const unsubscribe = this.#unsubscribe;
    this.#unsubscribe = undefined;
    await this.#reading;
    await unsubscribe?.();
  }

  /** Applies the entry here, then writes it. */
  async #add(type: 'revoked' | 'changed', entry: RevocationEntry): Promise<void> {
    this.#view.apply(entry, this.#clock.now() / 1_000);
    if (diagnostics.hasSubscribers) publish({ type, kind: namedTarget(entry).kind });
    const store = this.#store;
    if (store === undefined) return;
    this.#start();
    try {
      await withDeadline(STORE_TIMEOUT_MS, (signal) => store.append(entry, signal));
    } catch (error) {
      publish({ type: 'write_failed', detail: describe(error) });
      throw error;
    }
  }

  /** Begins to read and to listen, once. */
  #start(): void {
    const store = this.#store;
    if (this.#started || store === undefined || this.#closing.signal.aborted) return;
    this.#started = true;
    this.#unsubscribe = store.subscribe?.(() => this.#poll());
    this.#poll();
  }

  /** Reads now, or once more after the read that is under way. */
  #poll(): void {
    if (this.#closing.signal.aborted) return;
    this.#again = true;
    this.#reading ??= this.#readWhileHinted();
  }

  async #readWhileHinted(): Promise<void> {
    clearTimeout(this.#timer);
    let delay = this.#pollMs * (1 - (this.#random(1)[0] as number) / 2_560);
    while (this.#again && !this.#closing.signal.aborted) {
      this.#again = false;
      try {
        await this.#readAll(this.#store as RevocationStore);
      } catch (error) {
        this.#failed(error);
        delay = Math.min(delay, RETRY_MS);
        break;
      }
    }
    this.#reading = undefined;
    if (this.#closing.signal.aborted) return;
    this.#timer = setTimeout(() => this.#poll(), delay);
    this.#timer.unref();
  }

  async #readAll(store: RevocationStore): Promise<void> {
    for (let more = true; more; ) {
      const startedAt = this.#clock.monotonic();
      const startedAtMs = this.#clock.now();
      const cursor = this.#cursor;
      const page = await withDeadline(STORE_TIMEOUT_MS, (signal) => store.read(cursor, signal), this.#closing.signal);
      const now = startedAtMs / 1_000;
      const silentMs = startedAt - (this.#lastRead ?? startedAt);
      const discontinued = cursor !== undefined && !page.continued;
      // Changes are kept for an hour: after a longer silence, or at a source that has lost its memory, some may be missing.
      if (discontinued || silentMs > (CHANGE_KEEP_SECONDS * 1_000) / 2) {
        this.#view.everythingChanged();
        publish({ type: 'discontinued' });
      }
      for (const entry of page.entries) this.#view.apply(entry, now);
      this.#cursor = page.cursor;
      this.#pages += 1;
      more = page.more;
      if (!more) this.#succeeded(startedAt, Math.max(0, startedAtMs - page.asOf));
    }
    this.#view.sweep(this.#clock.now() / 1_000);
  }

  #succeeded(startedAt: number, lagMs: number): void {
    const first = this.#lastRead === undefined;
    this.#lastRead = startedAt;
    // A source whose time is behind ours shows a view that is as old as that.
    this.#staleAt = startedAt + this.#maxStalenessMs - lagMs;
    const stale = !(this.#clock.monotonic() < this.#staleAt);
    if (first) publish({ type: 'ready' });
    else if (this.#stale && !stale) publish({ type: 'recovered' });
    if (stale && !this.#stale) publish({ type: 'stale', lagSeconds: lagMs / 1_000 });
    this.#stale = stale;
    for (const settle of this.#waiting) settle();
  }

  #failed(error: unknown): void {
    if (this.#closing.signal.aborted) return;
    const detail = describe(error);
    this.#lastFailure = `: ${detail}`;
    publish({ type: 'read_failed', detail });
    if (this.#lastRead === undefined || this.#stale || this.#clock.monotonic() < this.#staleAt) return;
    this.#stale = true;
    publish({ type: 'stale' });
  }
}

/** The longest that `setTimeout` can wait. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** What may be told about a driver's error: its kind. A driver's error may hold its command, and so a password. */
function describe(error: unknown): string {
  if (!(error instanceof Error)) return 'it threw something that is no error';
  const { code } = error as { code?: unknown };
  return typeof code === 'string' && /^\w{1,40}$/.test(code) ? `${error.name} ${code}` : error.name;
}

function publish(message: { readonly type: string; readonly [detail: string]: unknown }): void {
  if (diagnostics.hasSubscribers) diagnostics.publish(message);
}

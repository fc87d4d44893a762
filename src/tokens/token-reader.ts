import { DeadlineError } from '../runtime/deadline.js';
import type { TokenLookup, TokenStore } from './token-store.js';

/** Ids of one query at most. */
const MAX_BATCH = 500;
/** Queries that run at the same time at most: what comes meanwhile waits, and goes into the next one together. */
const MAX_QUERIES = 4;
/** Milliseconds between two looks at what is taking too long. */
const TICK_MS = 1_000;
/** After so many ticks, 4 to 5 s, a lookup is given up, whether its query hangs or was never sent. */
const MAX_TICKS = 5;

interface Asker {
  readonly id: string;
  /** The tick in which it was asked. */
  readonly tick: number;
  readonly found: (found: TokenLookup | undefined) => void;
  readonly reject: (error: unknown) => void;
}

interface Query {
  readonly askers: readonly Asker[];
  readonly tick: number;
}

/**
 * Looks tokens up: at once where no query is under way, else in batches, so that under load a few queries answer
 * everybody. A lookup joins only queries that have not been sent yet, so that it sees whatever was written before it was
 * asked for. One that waits too long is given up, so that an outage leaves no queue behind.
 */
export class TokenReader {
  readonly #store: TokenStore;
  #waiting: Asker[] = [];
  #scheduled = false;
  readonly #running = new Set<Query>();
  #ticks = 0;
  #ticking = false;

  constructor(store: TokenStore) {
    this.#store = store;
  }

  /**
   * What `read` makes of the token with this id, or of its absence.
   *
   * @throws what the store or `read` throws, and DeadlineError after 5 s, as a rejection.
   */
  get<T>(id: string, read: (found: TokenLookup | undefined) => T): Promise<T> {
    return new Promise((resolve, reject) => {
      const found = (lookup: TokenLookup | undefined): void => {
        try {
          resolve(read(lookup));
        } catch (error) {
          reject(error);
        }
      };
      const asker = { id, tick: this.#ticks, found, reject };
      if (!this.#ticking) this.#tickLater();
      if (this.#running.size === 0 && this.#waiting.length === 0) return this.#send([asker], [id]);
      this.#waiting.push(asker);
      if (this.#scheduled || this.#running.size >= MAX_QUERIES) return;
      this.#scheduled = true;
      setImmediate(() => {
        this.#scheduled = false;
        this.#sendWaiting();
      });
    });
  }

  #sendWaiting(): void {
    if (this.#waiting.length === 0 || this.#running.size >= MAX_QUERIES) return;
    const ids = new Set<string>();
    const askers: Asker[] = [];
    const later: Asker[] = [];
    for (const asker of this.#waiting) {
      if (ids.size < MAX_BATCH) ids.add(asker.id);
      (ids.has(asker.id) ? askers : later).push(asker);
    }
    this.#waiting = later;
    this.#send(askers, [...ids]);
  }

  #send(askers: readonly Asker[], ids: readonly string[]): void {
    const query = { askers, tick: this.#ticks };
    this.#running.add(query);
    let answer: Promise<readonly TokenLookup[]>;
    try {
      answer = this.#store.getTokens(ids);
      answer.then(
        (lookups) => this.#over(query, () => deliver(askers, lookups)),
        (error) => this.#over(query, () => fail(askers, error)),
      );
    } catch (error) {
      this.#over(query, () => fail(askers, error));
    }
  }

  /** Makes room for the next query, unless that was done when this one was given up. */
  #over(query: Query, settle: () => void): void {
    if (!this.#running.delete(query)) return;
    settle();
    this.#sendWaiting();
  }

  #tickLater(): void {
    this.#ticking = true;
    setTimeout(() => this.#tick(), TICK_MS).unref();
  }

  #tick(): void {
    this.#ticks += 1;
    this.#ticking = false;
    const tooOld = this.#ticks - MAX_TICKS;
    const fresh = this.#waiting.findIndex(({ tick }) => tick > tooOld);
    const late = this.#waiting.splice(0, fresh === -1 ? this.#waiting.length : fresh);
    fail(late, timedOut());
    for (const query of this.#running) {
      if (query.tick <= tooOld) this.#over(query, () => fail(query.askers, timedOut()));
    }
    if (this.#running.size > 0 || this.#waiting.length > 0) this.#tickLater();
  }
}

function deliver(askers: readonly Asker[], lookups: readonly TokenLookup[]): void {
  const byId = new Map<string, TokenLookup>();
  try {
    for (const lookup of lookups) byId.set(lookup.token.id, lookup);
  } catch (error) {
    return fail(askers, error);
  }
  for (const { id, found } of askers) found(byId.get(id));
}

function fail(askers: readonly Asker[], error: unknown): void {
  for (const { reject } of askers) reject(error);
}

function timedOut(): DeadlineError {
  return new DeadlineError('no answer within 5 s');
}

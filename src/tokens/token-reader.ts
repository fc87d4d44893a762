import { withDeadline } from '../runtime/deadline.js';
import type { TokenLookup, TokenStore } from './token-store.js';

/** Ids of one query at most. */
const MAX_BATCH = 500;
/** Queries that run at the same time at most: what comes meanwhile waits, and goes into the next one together. */
const MAX_QUERIES = 4;
/** Milliseconds after which a query without an answer no longer holds up the next one. */
const QUERY_TIMEOUT_MS = 5_000;

interface Waiting {
  readonly id: string;
  readonly resolve: (found: TokenLookup | undefined) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Looks tokens up in batches: what is asked for in one turn of the event loop is one query, and under load a few queries
 * answer everybody. A lookup joins only queries that have not been sent yet, so that it sees whatever was written before
 * it was asked for.
 */
export class TokenReader {
  readonly #store: TokenStore;
  #waiting: Waiting[] = [];
  #scheduled = false;
  #running = 0;

  constructor(store: TokenStore) {
    this.#store = store;
  }

  /** @throws what the store throws, as a rejection. */
  get(id: string): Promise<TokenLookup | undefined> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ id, resolve, reject });
      if (this.#scheduled || this.#running >= MAX_QUERIES) return;
      this.#scheduled = true;
      setImmediate(() => {
        this.#scheduled = false;
        void this.#send();
      });
    });
  }

  async #send(): Promise<void> {
    if (this.#waiting.length === 0) return;
    const batch = this.#waiting.splice(0, MAX_BATCH);
    this.#running += 1;
    try {
      const ids = [...new Set(batch.map(({ id }) => id))];
      const lookups = await withDeadline(QUERY_TIMEOUT_MS, () => this.#store.getTokens(ids));
      const found = new Map(lookups.map((lookup) => [lookup.token.id, lookup]));
      for (const { id, resolve } of batch) resolve(found.get(id));
    } catch (error) {
      for (const { reject } of batch) reject(error);
    } finally {
      this.#running -= 1;
      void this.#send();
    }
  }
}

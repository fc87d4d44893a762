import { withDeadline } from '../runtime/deadline.js';
import type { TokenStore } from './token-store.js';

/** Seconds for which a token that is used again and again is not written again. */
export const LAST_USED_SECONDS = 60;
/** Milliseconds for which uses are gathered before they are written. */
const GATHER_MS = 1_000;
/** Uses that are gathered at most; more are not noted, until these are written. */
const MAX_GATHERED = 10_000;
const BATCH = 500;
/** Milliseconds that one write may take. */
const WRITE_TIMEOUT_MS = 5_000;

/** Notes when tokens are used: seldom, in batches, and never while a request waits. A note that cannot be written is dropped. */
export class LastUsed {
  readonly #store: TokenStore;
  #gathered = new Map<string, number>();
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> = Promise.resolve();

  constructor(store: TokenStore) {
    this.#store = store;
  }

  /** @param now epoch seconds. */
  note(id: string, lastUsedAt: number | undefined, now: number): void {
    if (lastUsedAt !== undefined && now - lastUsedAt < LAST_USED_SECONDS) return;
    if (this.#gathered.size >= MAX_GATHERED) return;
    this.#gathered.set(id, now);
    if (this.#timer !== undefined) return;
    this.#timer = setTimeout(() => void this.flush(), GATHER_MS);
    this.#timer.unref();
  }

  /** Writes what was gathered; resolves when everything noted so far is written or dropped. */
  flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const uses = [...this.#gathered].map(([id, lastUsedAt]) => ({ id, lastUsedAt }));
    this.#gathered = new Map();
    this.#writing = this.#writing.then(async () => {
      for (let start = 0; start < uses.length; start += BATCH) {
        try {
          await withDeadline(WRITE_TIMEOUT_MS, () => this.#store.touchTokens(uses.slice(start, start + BATCH)));
        } catch {
          // It is noted again when the token is next used.
        }
      }
    });
    return this.#writing;
  }
}

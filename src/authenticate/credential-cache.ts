import { LRUCache } from 'lru-cache';
import type { Decision } from './verifier-chain.js';

/** How many characters of a credential's end are hashed: a signature's or a secret's, which differ between any two. */
const KEY_LENGTH = 43;
/** Bytes that an entry takes beside its credential and the values of its identity: bookkeeping. */
const ENTRY_BYTES = 512;

export interface CacheOptions {
  /** Entries at most. Default 50,000. */
  readonly maxEntries?: number;
  /** Bytes at most, estimated from the lengths of the credentials and of all that stands in their identities. Default 128 MiB. */
  readonly maxBytes?: number;
  /** Seconds that a decision may be reused at most. Default 60. */
  readonly ttlSeconds?: number;
}

/**
 * Decisions by credential, least recently used first out, bounded by entries and by bytes. The end of the credential is
 * the key, since hashing a whole JWT costs more than all else on the path; a hit compares the whole credential.
 */
export class CredentialCache {
  readonly #entries: LRUCache<string, CacheEntry>;
  readonly #ttlMs: number;

  constructor({ maxEntries = 50_000, maxBytes = 128 * 1024 * 1024, ttlSeconds = 60 }: CacheOptions) {
    this.#ttlMs = ttlSeconds * 1_000;
    this.#entries = new LRUCache({
      max: maxEntries,
      maxSize: maxBytes,
      sizeCalculation: ({ credential, decision }) => ENTRY_BYTES + bytesOf(credential) + bytesOf(decision.identity),
    });
  }

  /** The decision about this very credential, if there is one that is neither expired nor too old. */
  get(credential: string, nowMs: number, monotonicMs: number): Decision | undefined {
    const entry = this.#entries.get(keyOf(credential));
    if (entry === undefined || entry.credential !== credential) return undefined;
    const { decision } = entry;
    return nowMs < decision.expiresAtMs && monotonicMs < entry.freshUntilMs ? decision : undefined;
  }

  set(credential: string, decision: Decision, nowMs: number, monotonicMs: number): void {
    const lifeMs = Math.min(this.#ttlMs, decision.cacheMs);
    if (lifeMs <= 0 || nowMs >= decision.expiresAtMs) return;
    this.#entries.set(keyOf(credential), { credential, decision, freshUntilMs: monotonicMs + lifeMs });
  }

  delete(credential: string): void {
    const key = keyOf(credential);
    if (this.#entries.peek(key)?.credential === credential) this.#entries.delete(key);
  }
}

interface CacheEntry {
  readonly credential: string;
  readonly decision: Decision;
  /** On the monotonic clock: a jump of the wall clock makes no decision live longer. */
  readonly freshUntilMs: number;
}

function keyOf(credential: string): string {
  return credential.slice(-KEY_LENGTH);
}

/** About how many bytes of memory plain data takes, rather more than less: a character may take two. */
function bytesOf(value: unknown): number {
  if (typeof value === 'string') return 24 + value.length * 2;
  if (typeof value !== 'object' || value === null) return 16;
  let bytes = 64;
  if (Symbol.iterator in value) {
    for (const item of value as Iterable<unknown>) bytes += 32 + bytesOf(item);
  } else {
    for (const [name, item] of Object.entries(value)) bytes += 32 + name.length * 2 + bytesOf(item);
  }
  return bytes;
}

/** Words of a slot: four of hash, the issuer's number plus one (0: empty), the value, the expiry. */
const STRIDE = 7;
/** Each shard grows by itself, so that growing never takes longer than a fraction of a millisecond at a million entries. */
const SHARDS = 256;
const MIN_SLOTS = 8;
/** Above this share of used slots a shard is rebuilt. */
const MAX_LOAD = 0.7;

/** The largest value and expiry, in seconds the year 2106: for ever. */
export const FOREVER = 0xffff_ffff;

/**
 * Numbers by hash and issuer, in typed arrays: about 60 bytes an entry, constant time, nothing allocated to look up. An
 * entry only ever grows; it goes when it has expired, as its shard is swept or rebuilt.
 */
export class HashedTable {
  readonly #shards: (Int32Array | undefined)[] = new Array(SHARDS).fill(undefined);
  readonly #counts = new Int32Array(SHARDS);
  #size = 0;
  #swept = 0;
  /** The highest value that a forgotten entry had. */
  highestForgotten = 0;

  get size(): number {
    return this.#size;
  }

  /**
   * The highest value under the hash, for this issuer or for whichever, of those that expire after `now`; 0 for none.
   *
   * @param issuer a number from 1, or 0 when the issuer has none.
   * @param now seconds; 0 counts expired entries too.
   */
  highest(hash: Int32Array, issuer: number, now: number): number {
    const h0 = hash[0] as number;
    const shard = this.#shards[h0 & (SHARDS - 1)];
    if (shard === undefined) return 0;
    const mask = shard.length / STRIDE - 1;
    let highest = 0;
    for (let slot = (hash[1] as number) & mask; ; slot = (slot + 1) & mask) {
      const at = slot * STRIDE;
      const owner = shard[at + 4] as number;
      if (owner === 0) return highest;
      if (
        shard[at] === h0 &&
        shard[at + 1] === hash[1] &&
        shard[at + 2] === hash[2] &&
        shard[at + 3] === hash[3] &&
        (owner === 1 || owner === issuer + 1)
      ) {
        const value = (shard[at + 5] as number) >>> 0;
        if (value > highest && (shard[at + 6] as number) >>> 0 > now) highest = value;
      }
    }
  }

  /**
   * Raises the entry's value and expiry to at least the given ones.
   *
   * @param issuer a number from 1, or 0 for whichever issuer.
   * @returns whether anything was raised.
   */
  raise(hash: Int32Array, issuer: number, value: number, expiresAt: number, now: number): boolean {
    const number = (hash[0] as number) & (SHARDS - 1);
    let shard = this.#shards[number];
    if (shard === undefined || ((this.#counts[number] as number) + 1) * STRIDE > shard.length * MAX_LOAD) {
      shard = this.#rebuild(number, now);
    }
    const at = place(shard, hash[0] as number, hash[1] as number, hash[2] as number, hash[3] as number, issuer + 1);
    if (shard[at + 4] === 0) {
      shard.set(hash, at);
      shard[at + 4] = issuer + 1;
      shard[at + 5] = value;
      shard[at + 6] = expiresAt;
      this.#counts[number] = (this.#counts[number] as number) + 1;
      this.#size += 1;
      return true;
    }
    // What has expired counts no more, whether it was swept or not.
    const expired = (shard[at + 6] as number) >>> 0 <= now;
    const higher = expired || value > (shard[at + 5] as number) >>> 0;
    const longer = expired || expiresAt > (shard[at + 6] as number) >>> 0;
    if (higher) shard[at + 5] = value;
    if (longer) shard[at + 6] = expiresAt;
    return higher || longer;
  }

  /** Forgets what has expired in the next shard: one bounded step, to be called now and then. */
  sweep(now: number): void {
    const number = this.#swept;
    this.#swept = (number + 1) & (SHARDS - 1);
    const shard = this.#shards[number];
    if (shard === undefined) return;
    for (let at = 0; at < shard.length; at += STRIDE) {
      if (shard[at + 4] !== 0 && (shard[at + 6] as number) >>> 0 <= now) {
        this.#rebuild(number, now);
        return;
      }
    }
  }

  /** Forgets everything, and counts it as forgotten. */
  clear(): void {
    for (let number = 0; number < SHARDS; number++) this.#rebuild(number, FOREVER);
  }

  /** Moves the live entries of a shard to one that has room for one more. */
  #rebuild(number: number, now: number): Int32Array {
    const old = this.#shards[number] ?? new Int32Array(0);
    let live = 0;
    for (let at = 0; at < old.length; at += STRIDE) {
      if (old[at + 4] === 0) continue;
      if ((old[at + 6] as number) >>> 0 > now) live += 1;
      else this.highestForgotten = Math.max(this.highestForgotten, (old[at + 5] as number) >>> 0);
    }
    let slots = MIN_SLOTS;
    while (live + 1 > slots * MAX_LOAD) slots *= 2;
    const shard = new Int32Array(slots * STRIDE);
    for (let at = 0; at < old.length; at += STRIDE) {
      const owner = old[at + 4] as number;
      if (owner === 0 || (old[at + 6] as number) >>> 0 <= now) continue;
      const to = place(
        shard,
        old[at] as number,
        old[at + 1] as number,
        old[at + 2] as number,
        old[at + 3] as number,
        owner,
      );
      shard.set(old.subarray(at, at + STRIDE), to);
    }
    this.#size += live - (this.#counts[number] as number);
    this.#counts[number] = live;
    this.#shards[number] = shard;
    return shard;
  }
}

/** Where the entry is, or the empty slot where it belongs. */
function place(shard: Int32Array, h0: number, h1: number, h2: number, h3: number, owner: number): number {
  const mask = shard.length / STRIDE - 1;
  for (let slot = h1 & mask; ; slot = (slot + 1) & mask) {
    const at = slot * STRIDE;
    if (shard[at + 4] === 0) return at;
    if (
      shard[at] === h0 &&
      shard[at + 1] === h1 &&
      shard[at + 2] === h2 &&
      shard[at + 3] === h3 &&
      shard[at + 4] === owner
    ) {
      return at;
    }
  }
}

import type { KeyedHash } from './keyed-hash.js';

/** Words of a slot: four of hash, the issuer's number, the value, the expiry. */
const STRIDE = 7;
/** Each shard grows by itself, so that growing never takes longer than a fraction of a millisecond at a million entries. */
const SHARDS = 256;
const MIN_SLOTS = 8;
/** Above this share of used slots a shard is rebuilt. */
const MAX_LOAD = 0.7;

/** The largest value and expiry, in seconds the year 2106: for ever. */
export const FOREVER = 0xffff_ffff;

interface Shard {
  /** A byte of each slot's hash, 0 where the slot is empty: small enough for the processor's caches, and most lookups of
   * what is not there end here. */
  readonly tags: Uint8Array;
  readonly slots: Int32Array;
}

/**
 * Numbers by text and issuer, as hashes in typed arrays: about 60 bytes an entry, constant time, nothing allocated to look up. An
 * entry only ever grows; it goes when it has expired, as its shard is swept or rebuilt.
 */
export class HashedTable {
  readonly #shards: (Shard | undefined)[] = new Array(SHARDS).fill(undefined);
  readonly #counts = new Int32Array(SHARDS);
  readonly #hash: KeyedHash;
  #size = 0;
  #swept = 0;
  /** The highest value that a forgotten entry had. */
  highestForgotten = 0;

  constructor(hash: KeyedHash) {
    this.#hash = hash;
  }

  get size(): number {
    return this.#size;
  }

  /**
   * The highest value under the text, for this issuer or for whichever, of those that expire after `now`; 0 for none.
   *
   * @param issuer a number from 1, or 0 when the issuer has none.
   * @param now seconds; 0 counts expired entries too.
   */
  highest(text: string, issuer: number, now: number): number {
    if (this.#size === 0) return 0;
    const hash = this.#hash.of(text);
    const shard = this.#shards[(hash[0] as number) & (SHARDS - 1)];
    if (shard === undefined) return 0;
    const { tags, slots } = shard;
    const mask = tags.length - 1;
    const tag = tagOf(hash);
    let highest = 0;
    for (let slot = (hash[1] as number) & mask; ; slot = (slot + 1) & mask) {
      const found = tags[slot] as number;
      if (found === 0) return highest;
      if (found !== tag) continue;
      const at = slot * STRIDE;
      const owner = slots[at + 4] as number;
      if ((owner !== 0 && owner !== issuer) || !holds(slots, at, hash)) continue;
      const value = (slots[at + 5] as number) >>> 0;
      if (value > highest && (slots[at + 6] as number) >>> 0 > now) highest = value;
    }
  }

  /**
   * Raises the entry's value and expiry to at least the given ones.
   *
   * @param issuer a number from 1, or 0 for whichever issuer.
   * @returns whether anything was raised.
   */
  raise(text: string, issuer: number, value: number, expiresAt: number, now: number): boolean {
    const hash = this.#hash.of(text);
    const number = (hash[0] as number) & (SHARDS - 1);
    let shard = this.#shards[number];
    if (shard === undefined || (this.#counts[number] as number) + 1 > shard.tags.length * MAX_LOAD) {
      shard = this.#rebuild(number, now);
    }
    const { slots } = shard;
    const slot = place(shard, hash, issuer);
    const at = slot * STRIDE;
    if (shard.tags[slot] === 0) {
      shard.tags[slot] = tagOf(hash);
      slots.set(hash, at);
      slots[at + 4] = issuer;
      slots[at + 5] = value;
      slots[at + 6] = expiresAt;
      this.#counts[number] = (this.#counts[number] as number) + 1;
      this.#size += 1;
      return true;
    }
    // What has expired counts no more, whether it was swept or not.
    const expired = (slots[at + 6] as number) >>> 0 <= now;
    const higher = expired || value > (slots[at + 5] as number) >>> 0;
    const longer = expired || expiresAt > (slots[at + 6] as number) >>> 0;
    if (higher) slots[at + 5] = value;
    if (longer) slots[at + 6] = expiresAt;
    return higher || longer;
  }

  /** Forgets what has expired in the next shard: one bounded step, to be called now and then. */
  sweep(now: number): void {
    const number = this.#swept;
    this.#swept = (number + 1) & (SHARDS - 1);
    const shard = this.#shards[number];
    if (shard === undefined) return;
    const { tags, slots } = shard;
    for (let slot = 0; slot < tags.length; slot++) {
      if (tags[slot] !== 0 && (slots[slot * STRIDE + 6] as number) >>> 0 <= now) {
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
  #rebuild(number: number, now: number): Shard {
    const { tags, slots } = this.#shards[number] ?? EMPTY;
    const live: number[] = [];
    for (let slot = 0; slot < tags.length; slot++) {
      if (tags[slot] === 0) continue;
      if ((slots[slot * STRIDE + 6] as number) >>> 0 > now) live.push(slot);
      else this.highestForgotten = Math.max(this.highestForgotten, (slots[slot * STRIDE + 5] as number) >>> 0);
    }
    let size = MIN_SLOTS;
    while (live.length + 1 > size * MAX_LOAD) size *= 2;
    const shard: Shard = { tags: new Uint8Array(size), slots: new Int32Array(size * STRIDE) };
    for (const slot of live) {
      const entry = slots.subarray(slot * STRIDE, (slot + 1) * STRIDE);
      const to = place(shard, entry, entry[4] as number);
      shard.tags[to] = tags[slot] as number;
      shard.slots.set(entry, to * STRIDE);
    }
    this.#size += live.length - (this.#counts[number] as number);
    this.#counts[number] = live.length;
    this.#shards[number] = shard;
    return shard;
  }
}

const EMPTY: Shard = { tags: new Uint8Array(0), slots: new Int32Array(0) };

/** Words 0 and 1 choose the shard and the slot: the tag is made of another. */
function tagOf(hash: Int32Array): number {
  return (hash[2] as number) & 255 || 1;
}

function holds(slots: Int32Array, at: number, hash: Int32Array): boolean {
  return slots[at] === hash[0] && slots[at + 1] === hash[1] && slots[at + 2] === hash[2] && slots[at + 3] === hash[3];
}

/** The slot of the entry, or the empty one where it belongs. */
function place({ tags, slots }: Shard, hash: Int32Array, issuer: number): number {
  const mask = tags.length - 1;
  const tag = tagOf(hash);
  for (let slot = (hash[1] as number) & mask; ; slot = (slot + 1) & mask) {
    if (tags[slot] === 0) return slot;
    if (tags[slot] === tag && slots[slot * STRIDE + 4] === issuer && holds(slots, slot * STRIDE, hash)) return slot;
  }
}

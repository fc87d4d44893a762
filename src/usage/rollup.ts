import type { UsageEvent } from '../meter/usage-event.js';
import type { UsageFilter } from './ledger.js';

/** Milliseconds of the fine tier: local days and months of every time zone are made of quarters of an hour. */
export const QUARTER_MS = 900_000;
/** Milliseconds of the coarse tier: days by UTC, for the long middle of a report. */
export const DAY_MS = 86_400_000;
export const TIERS = [QUARTER_MS, DAY_MS] as const;

/** The name under which the roll-ups hold the number of events. No quantity has an empty name. */
export const EVENT_COUNT = '';

/**
 * The name under which they hold the events that also count one request, which is nearly all: one row instead of two. No
 * quantity's name begins with a digit.
 */
export const ONE_REQUEST = '1';

/** What roll-ups are keyed by, in the order of their columns. An absent value is the empty string: no field is empty. */
export const ROLLUP_KEYS = ['tenant', 'clientId', 'issuer', 'authId', 'type'] as const satisfies (keyof UsageFilter)[];

/** The columns of `ROLLUP_KEYS`. */
export const ROLLUP_COLUMNS = ['tenant', 'client_id', 'issuer', 'auth_id', 'type'] as const;

/** The key of an event: its values of `ROLLUP_KEYS`, and whether it is billable. */
export interface RollupKey {
  readonly values: readonly string[];
  readonly billable: boolean;
}

export function rollupKeyOf(event: UsageEvent): RollupKey {
  return { values: ROLLUP_KEYS.map((name) => event[name] ?? ''), billable: event.billable };
}

/** Beneath 2^32: a sum of 2^31 low parts still fits into 64 bits, so that no database can overflow. */
const RADIX = 2 ** 32;

/** An amount in two parts: `high * 2^32 + low`, with `low` from 0 to 2^32 - 1. */
export function splitAmount(value: number): { high: number; low: number } {
  const high = Math.floor(value / RADIX);
  return { high, low: value - high * RADIX };
}

/** The amount of two sums. */
export function joinAmount(high: bigint, low: bigint): bigint {
  return high * BigInt(RADIX) + low;
}

/** One change of a roll-up. `key` is whatever the database calls the key. */
export interface RollupChange<K> {
  readonly tier: number;
  readonly bucket: number;
  readonly key: K;
  readonly quantity: string;
  high: number;
  low: number;
}

/** Collects what a batch adds to the roll-ups: one change per tier, bucket, key and quantity. */
export class RollupChanges<K extends string | number> {
  readonly #changes = new Map<string, RollupChange<K>>();

  /** @param counted whether it counts as an event: corrections do not. */
  add(key: K, atMs: number, event: Pick<UsageEvent, 'quantities'>, counted: boolean): void {
    const { quantities } = event;
    const one = counted && Object.hasOwn(quantities, 'requests') && quantities.requests?.value === 1;
    if (counted) this.#addAmount(key, atMs, one ? ONE_REQUEST : EVENT_COUNT, 1);
    for (const [quantity, { value }] of Object.entries(quantities)) {
      if (!(one && quantity === 'requests')) this.#addAmount(key, atMs, quantity, value);
    }
  }

  /** In a fixed order, so that writers that meet wait for each other and never deadlock. */
  sorted(): RollupChange<K>[] {
    return [...this.#changes.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, change]) => change);
  }

  #addAmount(key: K, atMs: number, quantity: string, value: number): void {
    const { high, low } = splitAmount(value);
    for (const tier of TIERS) {
      const bucket = Math.floor(atMs / tier) * tier;
      const id = `${tier} ${bucket} ${String(key).padStart(20)} ${quantity}`;
      const known = this.#changes.get(id);
      if (known === undefined) this.#changes.set(id, { tier, bucket, key, quantity, high, low });
      else {
        known.high += high;
        known.low += low;
      }
    }
  }
}

import type { UsageEvent } from '../meter/usage-event.js';
import type { UsageFilter } from './ledger.js';

/** Milliseconds of the fine tier: local days and months of every time zone are made of quarters of an hour. */
export const QUARTER_MS = 900_000;
/** Milliseconds of the coarse tier: days by UTC, for the long middle of a report. */
export const DAY_MS = 86_400_000;

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
  return { values: ROLLUP_KEYS.map((name) => keyText(event[name] ?? '')), billable: event.billable };
}

/** The key of an event as one text, for caches: no part has a NUL. */
export function rollupKeyId(event: UsageEvent): string {
  let id = event.billable ? '1' : '0';
  for (const name of ROLLUP_KEYS) id += `\0${keyText(event[name] ?? '')}`;
  return id;
}

/** NUL, and halves of characters. */
const UNSTORABLE = /[\0\p{Cs}]/gu;

/**
 * A text as every database can hold it: what some refuse and others change is replaced by U+FFFD. All ledgers group and
 * filter by this form.
 */
export function keyText(text: string): string {
  return text.replace(UNSTORABLE, '\uFFFD');
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

/** From here on a sum of low parts is carried over, so that it stays exact however many are added. */
const CARRY = 2 ** 52;

/** One change of a roll-up. `key` is whatever the database calls the key. */
export interface RollupChange<K> {
  readonly tier: number;
  readonly bucket: number;
  readonly key: K;
  readonly quantity: string;
  readonly high: number;
  readonly low: number;
}

interface Amount {
  high: number;
  low: number;
}

type Amounts<K extends string | number> = Map<number, Map<K, Map<string, Amount>>>;

/** Collects what a batch adds to the roll-ups: one change per tier, bucket, key and quantity. */
export class RollupChanges<K extends string | number> {
  readonly #quarters: Amounts<K> = new Map();

  /** @param counted whether it counts as an event: corrections do not. */
  add(key: K, atMs: number, event: Pick<UsageEvent, 'quantities'>, counted: boolean): void {
    const { quantities } = event;
    const amounts = amountsOf(this.#quarters, Math.floor(atMs / QUARTER_MS) * QUARTER_MS, key);
    const one = counted && Object.hasOwn(quantities, 'requests') && quantities.requests?.value === 1;
    if (counted) addAmount(amounts, one ? ONE_REQUEST : EVENT_COUNT, 0, 1);
    for (const quantity of Object.keys(quantities)) {
      if (one && quantity === 'requests') continue;
      const { high, low } = splitAmount((quantities[quantity] as { value: number }).value);
      addAmount(amounts, quantity, high, low);
    }
  }

  /** In a fixed order, so that writers that meet wait for each other and never deadlock. */
  sorted(): RollupChange<K>[] {
    const days: Amounts<K> = new Map();
    for (const [bucket, keys] of this.#quarters) {
      for (const [key, amounts] of keys) {
        const day = amountsOf(days, Math.floor(bucket / DAY_MS) * DAY_MS, key);
        for (const [quantity, { high, low }] of amounts) addAmount(day, quantity, high, low);
      }
    }
    return [...inOrder(QUARTER_MS, this.#quarters), ...inOrder(DAY_MS, days)];
  }
}

function amountsOf<K extends string | number>(all: Amounts<K>, bucket: number, key: K): Map<string, Amount> {
  let keys = all.get(bucket);
  if (keys === undefined) {
    keys = new Map();
    all.set(bucket, keys);
  }
  let amounts = keys.get(key);
  if (amounts === undefined) {
    amounts = new Map();
    keys.set(key, amounts);
  }
  return amounts;
}

function addAmount(amounts: Map<string, Amount>, quantity: string, high: number, low: number): void {
  const known = amounts.get(quantity);
  if (known === undefined) {
    amounts.set(quantity, { high, low });
    return;
  }
  known.high += high;
  known.low += low;
  if (known.low < CARRY) return;
  const sum = splitAmount(known.low);
  known.high += sum.high;
  known.low = sum.low;
}

function* inOrder<K extends string | number>(tier: number, all: Amounts<K>): Generator<RollupChange<K>> {
  for (const [bucket, keys] of byName(all)) {
    for (const [key, amounts] of byName(keys)) {
      for (const [quantity, { high, low }] of byName(amounts)) yield { tier, bucket, key, quantity, high, low };
    }
  }
}

function byName<N extends string | number, T>(map: ReadonlyMap<N, T>): [N, T][] {
  return [...map].sort(([a], [b]) => (a < b ? -1 : 1));
}

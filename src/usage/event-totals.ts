import type { UsageEvent } from '../meter/usage-event.js';
import { EVENT_COUNT, ONE_REQUEST, ROLLUP_KEYS } from './rollup.js';
import { keyOf, matches, type ParsedQuery } from './usage-query.js';
import type { UsageTotals } from './usage-totals.js';

/**
 * Adds one event to a report.
 *
 * @param attributed the event whose attribution counts: itself, or what it corrects; undefined while that has not arrived.
 */
export function addEvent(
  totals: UsageTotals,
  { keys, quantities, intervalStart, filter }: ParsedQuery,
  event: UsageEvent,
  attributed: UsageEvent | undefined,
): void {
  if (attributed === undefined || !matches(attributed, filter)) return;
  const key: Record<string, string> = {};
  for (const name of keys) {
    const value = keyOf(attributed, name);
    if (value !== undefined) key[name] = value;
  }
  totals.add({
    key,
    ...(intervalStart === undefined ? {} : { fromMs: intervalStart(Date.parse(event.time)) }),
    billable: attributed.billable,
    events: event.corrects === undefined ? 1 : 0,
    quantities: Object.entries(event.quantities)
      .filter(([name]) => quantities?.has(name) ?? true)
      .map(([name, { value }]) => [name, BigInt(value)] as const),
  });
}

/** A row of the roll-ups as a database sums it. */
export interface RollupSum {
  /** The first instant of its interval, in milliseconds. */
  readonly startMs: number | undefined;
  /** The values of the query's keys; an empty one is absent. */
  readonly values: Readonly<Record<string, string>>;
  readonly billable: boolean;
  readonly quantity: string;
  readonly amount: bigint;
}

/** Adds one row of the roll-ups to a report. */
export function addRollup(totals: UsageTotals, { keys, quantities }: ParsedQuery, sum: RollupSum): void {
  const counted = sum.quantity === EVENT_COUNT || sum.quantity === ONE_REQUEST;
  const quantity = sum.quantity === ONE_REQUEST ? 'requests' : sum.quantity;
  const wanted = quantity !== EVENT_COUNT && (quantities?.has(quantity) ?? true);
  if (!counted && !wanted) return;
  const key: Record<string, string> = {};
  for (const name of ROLLUP_KEYS) {
    const value = sum.values[name];
    if (keys.includes(name) && value !== undefined && value !== '') key[name] = value;
  }
  totals.add({
    key,
    ...(sum.startMs === undefined ? {} : { fromMs: sum.startMs }),
    billable: sum.billable,
    events: counted ? Number(sum.amount) : 0,
    quantities: wanted ? [[quantity, sum.amount]] : [],
  });
}

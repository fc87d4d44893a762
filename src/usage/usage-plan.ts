import { DAY_MS, QUARTER_MS, ROLLUP_KEYS } from './rollup.js';
import type { ParsedQuery } from './usage-query.js';

/** A stretch of time that one source of totals answers for. Milliseconds; `toMs` is exclusive. */
export interface Stretch {
  readonly fromMs: number;
  readonly toMs: number;
}

/** Which parts of a query come from which roll-ups, and which from the events themselves. */
export interface UsagePlan {
  readonly days: readonly Stretch[];
  readonly quarters: readonly Stretch[];
  readonly events: readonly Stretch[];
}

/**
 * Splits a query: whole UTC days from the day roll-ups, whole quarters of an hour around them from the fine ones, and the
 * rest from the events. Keys that the roll-ups do not have are answered from the events alone.
 */
export function planUsage({ fromMs, toMs, keys, intervalStart }: ParsedQuery): UsagePlan {
  const whole = { fromMs, toMs };
  if (fromMs >= toMs) return { days: [], quarters: [], events: [] };
  if (!keys.every((key) => (ROLLUP_KEYS as readonly string[]).includes(key))) {
    return { days: [], quarters: [], events: [whole] };
  }
  const quarters = inner(whole, QUARTER_MS);
  if (quarters === undefined) return { days: [], quarters: [], events: [whole] };
  // Local intervals begin inside UTC days.
  const days = intervalStart === undefined ? inner(quarters, DAY_MS) : undefined;
  return {
    days: days === undefined ? [] : [days],
    quarters: days === undefined ? [quarters] : around(quarters, days),
    events: around(whole, quarters),
  };
}

function inner({ fromMs, toMs }: Stretch, unit: number): Stretch | undefined {
  const stretch = { fromMs: Math.ceil(fromMs / unit) * unit, toMs: Math.floor(toMs / unit) * unit };
  return stretch.fromMs < stretch.toMs ? stretch : undefined;
}

function around(outer: Stretch, middle: Stretch): Stretch[] {
  return [
    { fromMs: outer.fromMs, toMs: middle.fromMs },
    { fromMs: middle.toMs, toMs: outer.toMs },
  ].filter(({ fromMs, toMs }) => fromMs < toMs);
}

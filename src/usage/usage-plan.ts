import type { IntervalStart } from './local-interval.js';
import { DAY_MS, QUARTER_MS, ROLLUP_KEYS } from './rollup.js';
import type { ParsedQuery } from './usage-query.js';

/** A stretch of time that one source of totals answers for. Milliseconds; `toMs` is exclusive. */
export interface Stretch {
  readonly fromMs: number;
  readonly toMs: number;
  /** The first instant of the interval that it is in, with `interval`. */
  readonly startMs?: number;
}

/** Which parts of a query come from which roll-ups, and which from the events themselves. */
export interface UsagePlan {
  readonly days: readonly Stretch[];
  readonly quarters: readonly Stretch[];
  readonly events: readonly Stretch[];
}

/**
 * Splits a query, interval by interval: whole UTC days from the day roll-ups, whole quarters of an hour around them from
 * the fine ones, and the rest from the events. Keys that the roll-ups do not have are answered from the events alone.
 *
 * @param booked what there are roll-ups of; undefined when there are none. It bounds the number of intervals.
 */
export function planUsage({ fromMs, toMs, keys, intervalStart }: ParsedQuery, booked: Stretch | undefined): UsagePlan {
  const days: Stretch[] = [];
  const quarters: Stretch[] = [];
  const events: Stretch[] = [];
  if (fromMs >= toMs) return { days, quarters, events };
  if (!keys.every((key) => (ROLLUP_KEYS as readonly string[]).includes(key))) {
    return { days, quarters, events: [{ fromMs, toMs }] };
  }
  const whole = booked && { fromMs: Math.max(fromMs, booked.fromMs), toMs: Math.min(toMs, booked.toMs) };
  for (const piece of whole === undefined ? [] : intervals(whole, intervalStart)) {
    const fine = inner(piece, QUARTER_MS);
    if (fine === undefined) events.push(piece);
    else {
      const coarse = inner(fine, DAY_MS);
      if (coarse !== undefined) days.push(coarse);
      quarters.push(...(coarse === undefined ? [fine] : around(fine, coarse)));
      events.push(...around(piece, fine));
    }
  }
  return { days, quarters, events };
}

/** The intervals of a stretch, each with its first instant. They change on quarters of an hour. */
function* intervals({ fromMs, toMs }: Stretch, intervalStart: IntervalStart | undefined): Generator<Stretch> {
  if (intervalStart === undefined) {
    if (fromMs < toMs) yield { fromMs, toMs };
    return;
  }
  for (let at = fromMs; at < toMs; ) {
    const startMs = intervalStart(at);
    const first = Math.floor(at / QUARTER_MS);
    let low = 0;
    let high = 1;
    const isOver = (quarters: number): boolean => intervalStart((first + quarters) * QUARTER_MS) !== startMs;
    for (; !isOver(high); high *= 2) low = high;
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (isOver(middle)) high = middle;
      else low = middle;
    }
    const end = Math.min((first + high) * QUARTER_MS, toMs);
    yield { fromMs: at, toMs: end, startMs };
    at = end;
  }
}

function inner({ fromMs, toMs, startMs }: Stretch, unit: number): Stretch | undefined {
  const [from, to] = [Math.ceil(fromMs / unit) * unit, Math.floor(toMs / unit) * unit];
  return from < to ? { fromMs: from, toMs: to, startMs } : undefined;
}

function around({ fromMs, toMs, startMs }: Stretch, middle: Stretch): Stretch[] {
  return [
    { fromMs, toMs: middle.fromMs, startMs },
    { fromMs: middle.toMs, toMs, startMs },
  ].filter((stretch) => stretch.fromMs < stretch.toMs);
}

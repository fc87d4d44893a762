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
 * @param bookedDays the UTC days that there are roll-ups of, in order, when there is an interval: nobody works through the
 *   hours of years in which nothing was booked, because one clock was wrong.
 */
export function planUsage(query: ParsedQuery, bookedDays: readonly number[]): UsagePlan {
  const { fromMs, toMs, intervalStart } = query;
  const days: Stretch[] = [];
  const quarters: Stretch[] = [];
  const events: Stretch[] = [];
  if (fromMs >= toMs) return { days, quarters, events };
  if (!isRolledUp(query)) return { days, quarters, events: [{ fromMs, toMs }] };
  const pieces = intervalStart === undefined ? [{ fromMs, toMs }] : intervals(query, bookedDays, intervalStart);
  for (const piece of pieces) {
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

/** Whether the roll-ups answer for the query. */
export function isRolledUp({ keys }: ParsedQuery): boolean {
  return keys.every((key) => (ROLLUP_KEYS as readonly string[]).includes(key));
}

/** The intervals of a query as far as anything was booked in them. */
function* intervals(
  { fromMs, toMs }: Stretch,
  bookedDays: readonly number[],
  intervalStart: IntervalStart,
): Generator<Stretch> {
  for (let first = 0, next = 1; first < bookedDays.length; first = next++) {
    while (bookedDays[next] === (bookedDays[next - 1] as number) + DAY_MS) next += 1;
    const [start, last] = [bookedDays[first] as number, bookedDays[next - 1] as number];
    yield* cut({ fromMs: Math.max(fromMs, start), toMs: Math.min(toMs, last + DAY_MS) }, intervalStart);
  }
}

/** A stretch by intervals, each with its first instant. They change on quarters of an hour. */
function* cut({ fromMs, toMs }: Stretch, intervalStart: IntervalStart): Generator<Stretch> {
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

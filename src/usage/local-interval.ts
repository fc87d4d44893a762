import { changeOf, type OffsetAt, startOfDay, timeZoneOffsets } from '../runtime/time-zone-offsets.js';

/** The intervals of a report. */
export type Interval = 'hour' | 'day' | 'month';

/** A function that gives the first instant of the local hour, day or month that an instant falls in. */
export type IntervalStart = (ms: number) => number;

/** Whether the runtime knows the time zone. */
export function isTimeZone(timeZone: unknown): timeZone is string {
  if (typeof timeZone !== 'string' || timeZone === '') return false;
  try {
    new Intl.DateTimeFormat('en', { timeZone });
    return true;
  } catch {
    return false;
  }
}

/**
 * Intervals by the clock of a time zone. A day is 23 or 25 hours long where clocks change, and begins with its first
 * instant where midnight does not exist; an hour that is repeated is two intervals.
 */
export function intervalStarts(interval: Interval, timeZone: string): IntervalStart {
  const offsetAt = timeZoneOffsets(timeZone);
  const known = new Map<number, number>();
  const MINUTES_15 = 900_000;
  return (ms) => {
    // Offsets are multiples of 15 minutes, so that all instants of a quarter fall in one interval.
    const quarter = Math.floor(ms / MINUTES_15) * MINUTES_15;
    let start = known.get(quarter);
    if (start === undefined) {
      start = startOf(quarter, interval, offsetAt);
      if (known.size > 100_000) known.clear();
      known.set(quarter, start);
    }
    return start;
  };
}

function startOf(ms: number, interval: Interval, offsetAt: OffsetAt): number {
  const offset = offsetAt(ms);
  const local = new Date(ms + offset);
  if (interval === 'hour') {
    const start = ms - local.getUTCMinutes() * 60_000 - local.getUTCSeconds() * 1_000 - local.getUTCMilliseconds();
    // Clocks that change within the hour begin a new one.
    return offsetAt(start) === offset ? start : changeOf(start, ms, offsetAt);
  }
  const midnight = Date.UTC(local.getUTCFullYear(), local.getUTCMonth(), interval === 'month' ? 1 : local.getUTCDate());
  return startOfDay(midnight, offsetAt);
}

/** The intervals of a report. */
export type Interval = 'hour' | 'day' | 'month';

/** A function that gives the first instant of the local hour, day or month that an instant falls in. */
export type IntervalStart = (ms: number) => number;

interface LocalTime {
  readonly year: number;
  readonly month: number;
  readonly day: number;
  readonly hour: number;
  readonly minute: number;
}

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
  const offsetAt = offsets(timeZone);
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

function startOf(ms: number, interval: Interval, offsetAt: (ms: number) => number): number {
  const offset = offsetAt(ms);
  const local = new Date(ms + offset);
  if (interval === 'hour') {
    const start = ms - local.getUTCMinutes() * 60_000 - local.getUTCSeconds() * 1_000 - local.getUTCMilliseconds();
    // Clocks that change within the hour begin a new one.
    return offsetAt(start) === offset ? start : transition(start, ms, offsetAt);
  }
  const midnight = Date.UTC(local.getUTCFullYear(), local.getUTCMonth(), interval === 'month' ? 1 : local.getUTCDate());
  return firstInstant(midnight, offsetAt);
}

/** The first instant whose local clock shows at least the given wall time, where that is not reached earlier the same day. */
function firstInstant(wall: number, offsetAt: (ms: number) => number): number {
  // Candidates with the offsets of a day before and a day after: the earlier one that shows the wall time.
  const before = wall - offsetAt(wall - 86_400_000);
  const after = wall - offsetAt(wall + 86_400_000);
  const shows = [Math.min(before, after), Math.max(before, after)].find((ms) => ms + offsetAt(ms) === wall);
  if (shows !== undefined) return shows;
  // The wall time is skipped: the first instant after the change.
  return transition(Math.min(before, after), Math.max(before, after), offsetAt);
}

/** The first instant in (low, high] that has the offset of `high`. */
function transition(low: number, high: number, offsetAt: (ms: number) => number): number {
  const offset = offsetAt(high);
  let [before, after] = [low, high];
  while (after - before > 1) {
    const middle = Math.floor((before + after) / 2);
    if (offsetAt(middle) === offset) after = middle;
    else before = middle;
  }
  return after;
}

/** Milliseconds that the local clock is ahead of UTC. */
function offsets(timeZone: string): (ms: number) => number {
  const format = new Intl.DateTimeFormat('en-US', {
    timeZone,
    hourCycle: 'h23',
    year: 'numeric',
    month: 'numeric',
    day: 'numeric',
    hour: 'numeric',
    minute: 'numeric',
    second: 'numeric',
  });
  return (ms) => {
    const whole = Math.floor(ms / 1_000) * 1_000;
    const parts: Partial<Record<string, number>> = {};
    for (const { type, value } of format.formatToParts(whole)) parts[type] = Number(value);
    const { year = 0, month = 1, day = 1, hour = 0, minute = 0 } = parts as Partial<LocalTime>;
    return Date.UTC(year, month - 1, day, hour, minute, parts.second ?? 0) - whole;
  };
}

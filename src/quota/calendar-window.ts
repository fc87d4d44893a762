import { startOfDay, timeZoneOffsets } from '../runtime/time-zone-offsets.js';

/** One window of time: from `startMs` on, before `endMs`; milliseconds since the epoch. */
export interface TimeWindow {
  readonly startMs: number;
  readonly endMs: number;
}

export interface CalendarWindowOptions {
  readonly unit: 'day' | 'week' | 'month';
  /** An IANA time zone. Default `UTC`. */
  readonly timeZone?: string;
  /** The day on which a month begins, 1 to 31; a shorter month begins on its last day instead. Default 1. */
  readonly anchorDay?: number;
}

const DAY_MS = 86_400_000;

/**
 * The calendar's windows: a function from an instant to the window that holds it. Days begin at midnight of the time
 * zone, or at the first valid instant where midnight does not exist; so a day may last 23 or 25 hours. Weeks begin on
 * Monday. The last answer is kept, since nearly every question falls into the same window.
 *
 * @throws RangeError for an unknown time zone.
 */
export function calendarWindow({ unit, timeZone = 'UTC', anchorDay = 1 }: CalendarWindowOptions) {
  const offsetAt = timeZoneOffsets(timeZone);
  const startOf = (day: number): number => startOfDay(day, offsetAt);
  let last: TimeWindow = { startMs: 0, endMs: 0 };

  /** The days (as midnights in UTC) on which the window of a day begins and on which the next one does. */
  function daysAround(day: number): [number, number] {
    if (unit === 'day') return [day, day + DAY_MS];
    if (unit === 'week') {
      // The epoch was a Thursday.
      const monday = day - ((((day / DAY_MS + 3) % 7) + 7) % 7) * DAY_MS;
      return [monday, monday + 7 * DAY_MS];
    }
    const date = new Date(day);
    const month = date.getUTCMonth() + (date.getUTCDate() < anchorOf(date, 0) ? -1 : 0);
    return [dayOf(date, month), dayOf(date, month + 1)];
  }

  function anchorOf(date: Date, month: number): number {
    return Math.min(
      anchorDay,
      new Date(Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + month + 1, 0)).getUTCDate(),
    );
  }

  function dayOf(date: Date, month: number): number {
    return Date.UTC(date.getUTCFullYear(), month, anchorOf(date, month - date.getUTCMonth()));
  }

  return function windowAt(ms: number): TimeWindow {
    if (ms >= last.startMs && ms < last.endMs) return last;
    let days = daysAround(Math.floor((ms + offsetAt(ms)) / DAY_MS) * DAY_MS);
    let startMs = startOf(days[0]);
    let endMs = startOf(days[1]);
    // Where clocks are set back over midnight, the day before comes again for a while: it belongs to the new window.
    while (ms >= endMs) {
      days = daysAround(days[1]);
      startMs = endMs;
      endMs = startOf(days[1]);
    }
    last = { startMs, endMs };
    return last;
  };
}

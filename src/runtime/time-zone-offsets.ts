/** Milliseconds by which the clocks of a place are ahead of UTC at an instant. */
export type OffsetAt = (ms: number) => number;

const DAY_MS = 86_400_000;

/**
 * The offsets of an IANA time zone.
 *
 * @throws RangeError for an unknown one.
 */
export function timeZoneOffsets(timeZone: string): OffsetAt {
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
    const part: Record<string, number> = {};
    for (const { type, value } of format.formatToParts(whole)) part[type] = Number(value);
    const { year = 0, month = 1, day = 1, hour = 0, minute = 0, second = 0 } = part;
    return Date.UTC(year, month - 1, day, hour, minute, second) - whole;
  };
}

/**
 * The first instant at which the local clock shows midnight of a day, or, where midnight does not exist, at which it is set
 * forward.
 *
 * @param midnight as if it were in UTC.
 */
export function startOfDay(midnight: number, offsetAt: OffsetAt): number {
  // With the offsets of a day before and a day after: the earlier one that shows midnight.
  const early = midnight - offsetAt(midnight - DAY_MS);
  const late = midnight - offsetAt(midnight + DAY_MS);
  const [low, high] = [Math.min(early, late), Math.max(early, late)];
  return [low, high].find((ms) => ms + offsetAt(ms) === midnight) ?? changeOf(low, high, offsetAt);
}

/** The first instant in (low, high] that has the offset of `high`. */
export function changeOf(low: number, high: number, offsetAt: OffsetAt): number {
  const offset = offsetAt(high);
  let [before, after] = [low, high];
  while (after - before > 1) {
    const middle = Math.floor((before + after) / 2);
    if (offsetAt(middle) === offset) after = middle;
    else before = middle;
  }
  return after;
}

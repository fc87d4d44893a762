import type { Clock } from '../runtime/clock.js';

/** A clock that stands still until it is told otherwise. */
export interface ManualClock extends Clock {
  /** Sets the wall clock, in milliseconds since the epoch; it may go back. The monotonic clock follows forward only. */
  set(ms: number): void;
  /** Moves both clocks forward. */
  advance(seconds: number): void;
}

/**
 * A clock for tests.
 *
 * @param startMs milliseconds since the epoch. Default: 1 January 2026.
 */
export function manualClock(startMs: number = Date.UTC(2026, 0, 1)): ManualClock {
  let now = startMs;
  let monotonic = 0;
  return {
    now: () => now,
    monotonic: () => monotonic,
    set(ms) {
      monotonic += Math.max(0, ms - now);
      now = ms;
    },
    advance(seconds) {
      if (!(seconds >= 0)) throw new RangeError('advance takes seconds of at least 0; set() can go back');
      now += seconds * 1_000;
      monotonic += seconds * 1_000;
    },
  };
}

/** Where time comes from; can be given to every `createX` and verifier. */
export interface Clock {
  /** Milliseconds since the epoch. It may jump. */
  now(): number;
  /** Milliseconds of a clock that never goes back. */
  monotonic(): number;
}

/** The machine's own clocks. */
export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
};

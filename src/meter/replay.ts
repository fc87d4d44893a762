/** What became of the dead letters of one sink. */
export interface ReplayResult {
  readonly delivered: number;
  /** Rejected again, or not taken: they lie in the file as before. */
  readonly kept: number;
}

/** How a pipeline replays; it hangs on the pipeline, since its files and sinks are its own. */
export type Replay = (sink: string) => Promise<ReplayResult>;

const REPLAY = Symbol.for('tollkeeper.replay');

/** Attaches the way of replaying to its pipeline, where `replayDeadLetters` finds it. */
export function attachReplay<T extends object>(pipeline: T, replay: Replay): T {
  return Object.defineProperty(pipeline, REPLAY, { value: replay });
}

/** How the pipeline replays; undefined when the value is no pipeline. */
export function replayOf(pipeline: unknown): Replay | undefined {
  if (typeof pipeline !== 'object' || pipeline === null) return undefined;
  return (pipeline as { [REPLAY]?: Replay })[REPLAY];
}

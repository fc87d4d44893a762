import { OptionsParser } from '../errors/options-parser.js';
import type { Pipeline } from './pipeline.js';

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

/**
 * Gives the events that a sink rejected to it once more, after whatever was wrong with them or with the sink has been mended.
 * What is not taken now stays a dead letter. A crash in the middle gives some of them twice, with the same ids.
 *
 * @param options.sink the sink's name; it must be one of the pipeline's.
 * @throws TypeError for a value that is no pipeline, or an unknown sink.
 */
export async function replayDeadLetters(options: { pipeline: Pipeline; sink: string }): Promise<ReplayResult> {
  const parser = new OptionsParser('replayDeadLetters');
  const { pipeline, sink } = parser.known(options, ['pipeline', 'sink']);
  const replay =
    typeof pipeline === 'object' && pipeline !== null ? (pipeline as { [REPLAY]?: Replay })[REPLAY] : undefined;
  if (replay === undefined) parser.problem('pipeline must come from createPipeline');
  parser.string('sink', sink);
  parser.done();
  return (replay as Replay)(sink);
}

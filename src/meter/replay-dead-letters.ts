import { OptionsParser } from '../errors/options-parser.js';
import type { Pipeline } from './pipeline.js';
import { type Replay, type ReplayResult, replayOf } from './replay.js';

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
  const replay = replayOf(pipeline);
  if (replay === undefined) parser.problem('pipeline must come from createPipeline');
  parser.string('sink', sink);
  parser.done();
  return (replay as Replay)(sink);
}

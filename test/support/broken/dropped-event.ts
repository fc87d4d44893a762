/** The library with a fault: every third event that a sink is given is lost. */
import * as real from '../../../src/index.js';

export * from '../../../src/index.js';

export function createPipeline(options: real.PipelineOptions): real.Pipeline {
  const leaky = (sink: real.Sink): real.Sink =>
    Object.create(sink, {
      write: {
        value: async (events: readonly real.UsageEvent[], signal: AbortSignal) => {
          await sink.write(
            events.filter(({ seq }) => seq % 3 !== 0),
            signal,
          );
        },
      },
    });
  return real.createPipeline({ ...options, sinks: options.sinks.map(leaky) });
}

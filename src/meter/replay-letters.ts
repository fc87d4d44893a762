import { isSinkError } from '../errors/sink-error.js';
import { withDeadline } from '../runtime/deadline.js';
import type { DeliveryContext } from './batch-delivery.js';
import type { DeadLetter, DeadLetters } from './dead-letters.js';
import type { ReplayResult } from './replay.js';
import type { Sink } from './sink.js';
import type { UsageEvent } from './usage-event.js';

/** Gives the rejected events of a sink to it once more. What it does not take now is kept as it was. */
export async function replayLetters(
  sink: Sink,
  deadLetters: DeadLetters,
  report: DeliveryContext['report'],
): Promise<ReplayResult> {
  const { letters, done } = await deadLetters.take(sink.name);
  const { maxEvents = 100 } = sink.limits ?? {};
  const kept: DeadLetter[] = [];
  for (let index = 0; index < letters.length; index += maxEvents) {
    kept.push(...(await give(sink, letters.slice(index, index + maxEvents), report)));
  }
  // What stays is written anew before what was taken out is deleted.
  if (kept.length > 0) await deadLetters.add(sink.name, 'rejected', kept);
  await done();
  return { delivered: letters.length - kept.length, kept: kept.length };
}

/** The letters that the sink did not take. Where it refuses a batch for what is in it, the rest is not kept with the bad one. */
async function give(
  sink: Sink,
  letters: readonly DeadLetter[],
  report: DeliveryContext['report'],
): Promise<readonly DeadLetter[]> {
  const events = letters.map(({ json }) => JSON.parse(json) as UsageEvent);
  try {
    const { timeoutSeconds = 30 } = sink.limits ?? {};
    const verdicts = await withDeadline(timeoutSeconds * 1000, async (signal) => sink.write(events, signal));
    return verdicts === undefined ? [] : letters.filter((_, at) => verdicts[at]?.outcome !== 'delivered');
  } catch (error) {
    if (letters.length > 1 && isSinkError(error) && error.action === 'split') {
      const middle = Math.ceil(letters.length / 2);
      return [
        ...(await give(sink, letters.slice(0, middle), report)),
        ...(await give(sink, letters.slice(middle), report)),
      ];
    }
    report({ type: 'replay_failed', sink: sink.name, message: (error as Error | undefined)?.message });
    return letters;
  }
}

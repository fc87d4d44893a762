import { isSinkError, type SinkError } from '../errors/sink-error.js';
import type { Clock } from '../runtime/clock.js';
import { DeadlineError, withDeadline } from '../runtime/deadline.js';
import type { DeadLetters, LetterKind } from './dead-letters.js';
import type { StoredEvent } from './event-log.js';
import type { Sink, SourceNote, Verdict } from './sink.js';
import { Halted, isSeconds, type SinkPace } from './sink-pace.js';
import type { UsageEvent } from './usage-event.js';

/** Seconds of a pause that a sink gave no length. */
const PAUSE_SECONDS = 60;

export interface DeliveryCounts {
  delivered: number;
  /** Events that were given to the sink again. */
  retried: number;
  rejected: number;
  parked: number;
}

export interface DeliveryContext {
  readonly sink: Sink;
  readonly timeoutMs: number;
  readonly dedupeWindowMs: number | undefined;
  readonly pace: SinkPace;
  readonly clock: Clock;
  readonly deadLetters: DeadLetters;
  readonly counts: DeliveryCounts;
  /** Tells the operators. */
  report(event: { readonly type: string; readonly [detail: string]: unknown }): void;
}

/** An event that is not done with. */
interface Item {
  readonly stored: StoredEvent;
  /** When the sink was given it without saying what became of it; monotonic milliseconds. */
  doubtfulSince: number | undefined;
}

/** What became of one attempt. */
interface Attempt {
  readonly left: Item[];
  readonly rejected: { item: Item; reason: string }[];
  readonly afterSeconds?: number;
  readonly split?: string;
}

/**
 * Brings a batch to a sink, however long that takes: afterwards each event is delivered, in the dead-letter file or
 * parked. Events that are left over from an attempt are tried again before anything newer.
 *
 * @throws Halted when the pipeline closes meanwhile.
 */
export async function deliverBatch(context: DeliveryContext, source: string, batch: readonly StoredEvent[]) {
  const notes: SourceNote[] = [];
  await deliver(
    context,
    source,
    batch.map((stored) => ({ stored, doubtfulSince: undefined })),
    notes,
  );
  if (notes.length > 0) await tellNotes(context, notes);
}

/** Tells a sink what no event says, until it has it. @throws Halted */
export async function tellNotes(context: DeliveryContext, notes: readonly SourceNote[]): Promise<void> {
  const { sink, pace, timeoutMs } = context;
  if (sink.sourceNotes === undefined) return;
  for (let attempt = 0; ; attempt++) {
    await pace.turn();
    try {
      return await withDeadline(timeoutMs, async (signal) => sink.sourceNotes?.(notes, signal), pace.halted);
    } catch (error) {
      const afterSeconds = react(context, error, notes.length);
      await pace.wait(attempt, afterSeconds);
    }
  }
}

async function deliver(context: DeliveryContext, source: string, items: Item[], notes: SourceNote[]): Promise<void> {
  const { counts, pace } = context;
  let left = items;
  for (let attempt = 0; ; attempt++) {
    await pace.turn();
    left = await park(context, source, left, notes);
    if (left.length === 0) return;
    const tried = left.length;
    const result = await tryOnce(context, left);
    await bury(context, 'rejected', source, result.rejected, notes);
    left = result.left;
    if (result.split !== undefined) {
      const middle = Math.ceil(left.length / 2);
      await deliver(context, source, left.slice(0, middle), notes);
      return deliver(context, source, left.slice(middle), notes);
    }
    counts.delivered += tried - left.length - result.rejected.length;
    if (left.length === 0) return;
    counts.retried += left.length;
    // Some of them arrived: the sink is there, and the next attempt is a first one.
    if (left.length < tried) attempt = 0;
    await pace.wait(attempt, result.afterSeconds);
  }
}

async function tryOnce(context: DeliveryContext, items: Item[]): Promise<Attempt> {
  const { sink, timeoutMs, pace, clock, report } = context;
  const startedMs = clock.monotonic();
  let verdicts: unknown;
  try {
    verdicts = await withDeadline(
      timeoutMs,
      // Parsed for every attempt: a sink may change what it is given, and a retry is byte-identical.
      async (signal) =>
        sink.write(
          items.map(({ stored }) => JSON.parse(stored.json) as UsageEvent),
          signal,
        ),
      pace.halted,
    );
  } catch (error) {
    const afterSeconds = react(context, error, items.length);
    const known = isSinkError(error) ? error : undefined;
    if (known?.action === 'split') {
      if (items.length > 1) return { left: items, rejected: [], split: known.message };
      return { left: [], rejected: items.map((item) => ({ item, reason: known.message })) };
    }
    if (known?.ambiguous === true || error instanceof DeadlineError) doubt(items, startedMs);
    return { left: items, rejected: [], afterSeconds };
  }
  if (verdicts === undefined) return { left: [], rejected: [] };
  if (!areVerdicts(verdicts, items.length)) {
    report({ type: 'invalid_verdicts', sink: sink.name, events: items.length });
    return { left: items, rejected: [] };
  }
  return sort(items, verdicts, startedMs);
}

function sort(items: Item[], verdicts: readonly Verdict[], startedMs: number): Attempt {
  const left: Item[] = [];
  const rejected: { item: Item; reason: string }[] = [];
  let afterSeconds: number | undefined;
  for (const [index, item] of items.entries()) {
    const verdict = verdicts[index] as Verdict;
    if (verdict.outcome === 'reject') rejected.push({ item, reason: verdict.reason });
    if (verdict.outcome !== 'retry') continue;
    left.push(item);
    if (verdict.ambiguous === true) doubt([item], startedMs);
    if (isSeconds(verdict.afterSeconds)) afterSeconds = Math.max(afterSeconds ?? 0, verdict.afterSeconds);
  }
  return { left, rejected, afterSeconds };
}

/** Does what a failed call asks for. Returns the seconds to wait, where the sink named them. @throws Halted */
function react({ sink, pace, report }: DeliveryContext, error: unknown, events: number): number | undefined {
  if (pace.halted.aborted) throw new Halted('the pipeline is closing');
  const known: SinkError | undefined = isSinkError(error) ? error : undefined;
  const afterSeconds = isSeconds(known?.afterSeconds) ? known.afterSeconds : undefined;
  const message = error instanceof Error ? error.message : 'something threw that is no error';
  if (known?.action === 'pause') {
    report({ type: 'sink_paused', sink: sink.name, message, afterSeconds: afterSeconds ?? PAUSE_SECONDS });
    pace.pause(afterSeconds ?? PAUSE_SECONDS);
    return 0;
  }
  if (known?.action === 'stop') {
    report({ type: 'sink_stopped', sink: sink.name, message });
    pace.stop();
    return 0;
  }
  report({ type: 'sink_failed', sink: sink.name, message, events, action: known?.action ?? 'retry' });
  return afterSeconds;
}

function doubt(items: readonly Item[], sinceMs: number): void {
  for (const item of items) item.doubtfulSince ??= sinceMs;
}

/** Puts aside what the sink may have, but would no more recognise as a duplicate. */
async function park(context: DeliveryContext, source: string, items: Item[], notes: SourceNote[]): Promise<Item[]> {
  const { dedupeWindowMs, clock } = context;
  if (dedupeWindowMs === undefined) return items;
  const limit = clock.monotonic() - dedupeWindowMs;
  const isDue = ({ doubtfulSince }: Item) => doubtfulSince !== undefined && doubtfulSince <= limit;
  const reason = 'the sink may have taken it, and would no longer recognise a duplicate';
  await bury(
    context,
    'parked',
    source,
    items.filter(isDue).map((item) => ({ item, reason })),
    notes,
  );
  return items.filter((item) => !isDue(item));
}

async function bury(
  { sink, pace, deadLetters, counts, report }: DeliveryContext,
  kind: LetterKind,
  source: string,
  letters: readonly { item: Item; reason: string }[],
  notes: SourceNote[],
): Promise<void> {
  if (letters.length === 0) return;
  for (let attempt = 0; ; attempt++) {
    try {
      await deadLetters.add(
        sink.name,
        kind,
        letters.map(({ item, reason }) => ({ reason, json: item.stored.json })),
      );
      break;
    } catch (error) {
      report({ type: 'dead_letters_failed', sink: sink.name, message: (error as Error).message });
      await pace.wait(attempt, undefined);
    }
  }
  counts[kind] += letters.length;
  for (const { item, reason } of letters) {
    notes.push({ kind: 'dead_letter', source, seq: item.stored.seq, reason });
    report({ type: kind, sink: sink.name, source, seq: item.stored.seq, reason });
  }
}

function areVerdicts(verdicts: unknown, length: number): verdicts is readonly Verdict[] {
  if (!Array.isArray(verdicts) || verdicts.length !== length) return false;
  return verdicts.every((verdict: Partial<Verdict> | undefined) => {
    if (verdict?.outcome === 'reject') return typeof verdict.reason === 'string';
    return verdict?.outcome === 'delivered' || verdict?.outcome === 'retry';
  });
}

import { channel } from 'node:diagnostics_channel';
import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { type Random, systemRandom } from '../runtime/random.js';
import { type DeadLetters, fileDeadLetters, memoryDeadLetters } from './dead-letters.js';
import type { EventLog, LogStats } from './event-log.js';
import { attachIntake, Intake } from './intake.js';
import { MemoryLog } from './memory-log.js';
import { attachReplay, type ReplayResult } from './replay.js';
import { replayLetters } from './replay-letters.js';
import type { Sink } from './sink.js';
import { type SinkStats, SinkWorker } from './sink-worker.js';
import { createSpool } from './spool.js';
import { parseSpoolOptions, type SpoolOptions } from './spool-options.js';
import { UsageCodec } from './usage-codec.js';
import { correctionEntry, draftEntry, type StatedQuantities, type UsageDraft } from './usage-draft.js';
import type { UsageEntry } from './usage-entry.js';

export interface PipelineOptions {
  /** Where the events go, at least one. Cursors are kept by the sinks' names. */
  readonly sinks: readonly Sink[];
  /**
   * A durable log on disk. Or `'memory'`: what has not reached the sinks is lost when the process dies, and 64 MiB of
   * events wait at most.
   */
  readonly spool: SpoolOptions | 'memory';
  /** The name of this service in the events' `source`: printable ASCII without spaces, at most 128. */
  readonly source: string;
  readonly clock?: Clock;
  /** Jitter of the backoff. */
  readonly random?: Random;
}

export interface CloseOptions {
  /** Seconds to deliver what is left. Default 5. What remains stays in the spool. */
  readonly deliverSeconds?: number;
  /** Ends the delivery at once when it aborts. */
  readonly signal?: AbortSignal;
}

export interface PipelineStats extends LogStats {
  /** Sums over all sinks. */
  readonly delivered: number;
  readonly retried: number;
  readonly rejected: number;
  readonly parked: number;
  /** Seconds since the admission of the oldest event that a sink is not done with. */
  readonly oldestAgeSeconds: number;
  /** Requests that are admitted and not over. */
  readonly inFlight: number;
  /** Requests that `onUnavailable: 'dangerouslyAllow'` let through without an event. */
  readonly unmetered: number;
  /** Reports after the end of a response, which were ignored. */
  readonly lateUsage: number;
  /** `billable` callbacks that threw or gave no boolean. */
  readonly callbackFailures: number;
  readonly sinks: Readonly<Record<string, SinkStats>>;
}

/** From usage events to sinks: a log, and one worker for each sink. */
export interface Pipeline {
  /** Resolves when requests can be admitted. Sinks are not waited for: that is what the log is for. */
  ready(signal?: AbortSignal): Promise<void>;
  /**
   * Writes an event outside a request: a job, a WebSocket. Resolves when it is in the log by the rules of its fsync
   * policy. It carries only what is given.
   *
   * @throws TypeError, RangeError for an unusable draft; AccessError `metering_unavailable` while the log takes nothing.
   */
  record(draft: UsageDraft): Promise<{ id: string }>;
  /**
   * Writes a new event that corrects another one: `quantities` are the differences to add, negative ones too. The ledger
   * takes the attribution from the original and books the correction at its own time.
   */
  correct(eventId: string, quantities: StatedQuantities, options: { reason: string }): Promise<{ id: string }>;
  /**
   * Resolves when the billing sinks are done with everything that is in the log; observational ones get a second.
   *
   * @throws the signal's reason when it aborts first.
   */
  flush(signal?: AbortSignal): Promise<void>;
  /** Goes on with a sink that is stopped or paused. */
  resume(sinkName: string): void;
  /** Drops the cursors of a sink that is configured no more, so that it holds nothing back. */
  forget(sinkName: string): Promise<void>;
  stats(): PipelineStats;
  /**
   * Admits nothing more, writes the events of requests that are still open with `outcome: 'unknown'`, delivers, and closes
   * the sinks. Idempotent.
   *
   * @returns how many events have not reached every billing sink. They stay in the spool; in memory they are lost.
   */
  close(options?: CloseOptions | AbortSignal): Promise<{ undelivered: number }>;
}

const OPTIONS: readonly (keyof PipelineOptions)[] = ['sinks', 'spool', 'source', 'clock', 'random'];
const LIMITS = ['maxEvents', 'maxBytes', 'concurrency', 'timeoutSeconds', 'lingerSeconds', 'dedupeWindowSeconds'];
const SINK_NAME = /^(?!\.)[A-Za-z0-9._-]{1,64}$/;
const SOURCE = /^[\x21-\x7E]{1,128}$/;
const DELIVER_SECONDS = 5;
/** Milliseconds between two notes that say until when everything is delivered. */
const THROUGH_MS = 10_000;
/** Milliseconds for which observational sinks may hold up a flush. */
const OBSERVERS_MS = 1000;

const diagnostics = channel('tollkeeper:pipeline');

/**
 * The way of usage events from the requests to the sinks: a log that says what is durable, and for every sink its own
 * cursor, batches and backoff, so that a slow one delays nobody.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function createPipeline(options: PipelineOptions): Pipeline {
  const { sinks, spool, source, clock, random } = parseOptions(options);
  const codec = new UsageCodec();
  const log: EventLog<UsageEntry> =
    spool === undefined ? new MemoryLog({ source, codec }) : createSpool({ ...spool, source, codec, clock });
  const deadLetters: DeadLetters =
    spool === undefined ? memoryDeadLetters() : fileDeadLetters(spool.directory, () => clock.now());
  const intake = new Intake(
    log,
    clock,
    sinks.some((sink) => sink.role !== 'observational'),
  );
  const report = (event: object): void => {
    if (diagnostics.hasSubscribers) diagnostics.publish({ source, ...event });
  };
  const workers = sinks.map((sink) => new SinkWorker({ sink, log, clock, random, deadLetters, report }));
  const billing = workers.filter(({ bills }) => bills);
  const observers = workers.filter(({ bills }) => !bills);
  const namesOf = (some: readonly SinkWorker[]): string[] => some.map(({ sink }) => sink.name);
  log.holdFor(namesOf(billing), namesOf(observers));
  log.onChange(() => {
    for (const worker of workers) worker.wake();
  });
  let closed: Promise<{ undelivered: number }> | undefined;

  async function take(entry: UsageEntry): Promise<{ id: string }> {
    await intake.ready();
    const { refusal } = intake;
    if (refusal !== undefined) {
      const { reason, retryAfterSeconds } = refusal;
      throw new AccessError('metering_unavailable', { reason, retryAfterSeconds });
    }
    log.final(entry);
    await log.flush();
    return { id: entry.id };
  }

  function workerOf(name: string): SinkWorker {
    const worker = workers.find(({ sink }) => sink.name === name);
    if (worker === undefined) throw new TypeError(`pipeline: no sink is named "${name}"`);
    return worker;
  }

  async function settle(closing: boolean): Promise<void> {
    const observed = Promise.all(observers.map((worker) => worker.settled(closing)));
    await Promise.all(billing.map((worker) => worker.settled(closing)));
    if (observers.length > 0) await within(OBSERVERS_MS, observed);
  }

  /** Lets ledgers say until when their totals are final, also while nothing happens. */
  async function tellThrough(): Promise<void> {
    if (!intake.isReady || closed !== undefined) return;
    const time = new Date(Math.floor(intake.settledBeforeMs())).toISOString();
    await log.flush();
    const own = log.sources().find(({ source: name }) => name === `${source}/${log.instance}`);
    if (own === undefined) return;
    const { lastSeq } = own;
    await Promise.all(workers.map((worker) => worker.tellThrough(own, lastSeq, time)));
  }
  const through = setInterval(() => void tellThrough().catch(() => {}), THROUGH_MS).unref();

  function undelivered(): number {
    const names = namesOf(billing.length > 0 ? billing : observers);
    let count = 0;
    for (const each of log.sources()) {
      count += each.lastSeq - Math.min(each.lastSeq, ...names.map((name) => each.cursor(name)));
    }
    return count;
  }

  async function shut({ deliverSeconds = DELIVER_SECONDS, signal }: CloseOptions): Promise<{ undelivered: number }> {
    const deadlineMs = clock.monotonic() + deliverSeconds * 1000;
    const leftMs = (): number => Math.max(0, deadlineMs - clock.monotonic());
    intake.closing = true;
    clearInterval(through);
    for (const request of [...intake.open]) request.abandon();
    if (intake.isReady) {
      // A disk that is full or hangs does not hold up the end: what could not be written is lost with the process.
      await within(leftMs(), log.seal(), signal);
      await within(leftMs(), settle(true), signal);
    }
    for (const worker of workers) worker.halt();
    const count = undelivered();
    await Promise.all(
      sinks.map(async (sink) => {
        const controller = new AbortController();
        await within(Math.max(leftMs(), 100), Promise.resolve(sink.close?.(controller.signal)), signal);
        controller.abort();
      }),
    );
    if (intake.isReady) await within(Math.max(leftMs(), 1000), log.close());
    report({ type: 'closed', undelivered: count });
    return { undelivered: count };
  }

  /** One replay after the other, so that no letter is given twice. */
  let replaying: Promise<unknown> = Promise.resolve();
  function replay(name: string): Promise<ReplayResult> {
    const result = replaying.then(() => replayLetters(workerOf(name).sink, deadLetters, report));
    replaying = result.catch(() => {});
    return result;
  }

  const pipeline: Pipeline = {
    ready: (signal) => intake.ready(signal),
    record: async (draft) => take(draftEntry(intake, draft)),
    correct: async (eventId, quantities, given) => take(correctionEntry(intake, eventId, quantities, given)),
    async flush(signal) {
      signal?.throwIfAborted();
      await intake.ready(signal);
      const done = log
        .flush()
        .then(() => settle(false))
        .then(tellThrough);
      if (signal === undefined) return done;
      await new Promise<void>((resolve, reject) => {
        const abort = (): void => reject(signal.reason);
        signal.addEventListener('abort', abort, { once: true });
        done.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
      });
    },
    resume: (name) => workerOf(name).resume(),
    async forget(name) {
      if (sinks.some((sink) => sink.name === name)) {
        throw new TypeError(`pipeline: the sink "${name}" is configured: only a sink that is gone can be forgotten`);
      }
      await log.forget(name);
    },
    stats() {
      const stats = Object.fromEntries(workers.map((worker) => [worker.sink.name, worker.stats()]));
      const all = Object.values(stats);
      const sum = (of: 'delivered' | 'retried' | 'rejected' | 'parked'): number =>
        all.reduce((total, each) => total + each[of], 0);
      return {
        ...log.stats(),
        delivered: sum('delivered'),
        retried: sum('retried'),
        rejected: sum('rejected'),
        parked: sum('parked'),
        oldestAgeSeconds: Math.max(0, ...all.map((each) => each.oldestAgeSeconds)),
        inFlight: intake.open.size,
        unmetered: intake.unmetered,
        lateUsage: intake.late,
        callbackFailures: intake.callbackFailures,
        sinks: stats,
      };
    },
    close(given = {}) {
      closed ??= shut(given instanceof AbortSignal ? { signal: given } : given);
      return closed;
    },
  };
  return attachReplay(attachIntake(pipeline, intake), replay);
}

/** Resolves when the work is done, has failed, or took too long. */
async function within(ms: number, work: Promise<unknown>, signal?: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const finish = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', finish);
      resolve();
    };
    // Not unref'd: somebody waits for it.
    const timer = setTimeout(finish, ms);
    signal?.addEventListener('abort', finish, { once: true });
    work.then(finish, finish);
    if (signal?.aborted === true) finish();
  });
}

function parseOptions(given: PipelineOptions) {
  const parser = new OptionsParser('createPipeline');
  const options = parser.known(given, OPTIONS);
  const sinks = Array.isArray(options.sinks) ? [...options.sinks] : [];
  if (sinks.length === 0) parser.problem('sinks must be an array with at least one sink');
  const names = new Set<string>();
  for (const [index, sink] of sinks.entries()) {
    const where = `sinks[${index}]`;
    if (typeof sink?.write !== 'function') {
      parser.problem(`${where} is no sink (did you call its factory?)`);
      continue;
    }
    if (typeof sink.name !== 'string' || !SINK_NAME.test(sink.name)) {
      parser.problem(`${where}.name must be 1 to 64 letters, digits, ".", "_" or "-"`);
    } else if (names.has(sink.name)) parser.problem(`two sinks are named "${sink.name}"`);
    names.add(sink.name);
    parser.oneOf(`${where}.role`, sink.role, ['billing', 'observational'], 'billing');
    const limits = parser.known(sink.limits ?? {}, LIMITS, `${where}.limits`);
    for (const name of ['maxEvents', 'maxBytes', 'concurrency'] as const) {
      parser.number(`${where}.limits.${name}`, limits[name], 1, { min: 1, integer: true });
    }
    for (const name of ['timeoutSeconds', 'lingerSeconds'] as const) {
      parser.number(`${where}.limits.${name}`, limits[name], 1, { max: 2_000_000 });
    }
    parser.number(`${where}.limits.dedupeWindowSeconds`, limits.dedupeWindowSeconds, 1);
  }
  const source = parser.string('source', options.source);
  if (source !== '') parser.check(SOURCE.test(source), 'source must be 1 to 128 printable ASCII characters');
  const spool = options.spool === 'memory' ? undefined : parseSpoolOptions(parser, options.spool);
  parser.done();
  return { sinks, spool, source, clock: options.clock ?? systemClock, random: options.random ?? systemRandom };
}

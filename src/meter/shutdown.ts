import type { Server } from 'node:http';
import { OptionsParser } from '../errors/options-parser.js';
import { intakeOf } from './intake.js';
import type { CloseOptions } from './pipeline.js';

/** Whatever has a `close`: pipelines, revocations, key rings, quotas, ledgers, verifiers. */
export interface ClosablePart {
  close(signal?: AbortSignal): Promise<unknown>;
}

export interface ShutdownOptions {
  /** Stops accepting connections; requests under way may finish. */
  readonly server?: Pick<Server, 'close'> & Partial<Pick<Server, 'closeIdleConnections' | 'closeAllConnections'>>;
  /** What is closed once the requests are over: the pipelines first, then the rest in order. */
  readonly parts: readonly ClosablePart[];
  /** Seconds for requests under way; what is open then is cut off. Default 10. */
  readonly drainSeconds?: number;
  /** Seconds for the pipelines to deliver. Default 5. */
  readonly deliverSeconds?: number;
}

const CLOSE_MS = 5000;

/**
 * Ends a service in order: the server stops accepting, requests drain, the pipelines deliver, the rest closes. It takes
 * at most the two times and a few seconds, whatever hangs.
 *
 * @example
 * process.once('SIGTERM', () => shutdown({ server, parts: [pipeline, revocations] }).then(() => process.exit(0)))
 * @returns how many events have not reached every billing sink; they stay in the spool.
 * @throws TypeError that lists every problem of the options; AggregateError when parts could not be closed.
 */
export async function shutdown(options: ShutdownOptions): Promise<{ undelivered: number }> {
  const parser = new OptionsParser('shutdown');
  const { server, parts, ...times } = parser.known(options, ['server', 'parts', 'drainSeconds', 'deliverSeconds']);
  const drainMs = parser.number('drainSeconds', times.drainSeconds, 10, { max: 2_000_000 }) * 1000;
  const deliverSeconds = parser.number('deliverSeconds', times.deliverSeconds, 5, { max: 2_000_000 });
  if (!Array.isArray(parts) || parts.some((part) => typeof part?.close !== 'function')) {
    parser.problem('parts must be an array of things with a close()');
  }
  parser.done();
  if (server !== undefined) await drain(server, drainMs);
  const failures: unknown[] = [];
  let undelivered = 0;
  const pipelines = parts.filter((part) => intakeOf(part) !== undefined);
  await Promise.all(
    pipelines.map(async (pipeline) => {
      const close = pipeline.close as (options: CloseOptions) => Promise<{ undelivered: number }>;
      try {
        undelivered += (await close({ deliverSeconds })).undelivered;
      } catch (error) {
        failures.push(error);
      }
    }),
  );
  for (const part of parts) {
    if (pipelines.includes(part)) continue;
    try {
      await atMost(CLOSE_MS, (signal) => part.close(signal));
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length > 0) throw new AggregateError(failures, 'shutdown: not everything could be closed');
  return { undelivered };
}

async function drain(server: NonNullable<ShutdownOptions['server']>, ms: number): Promise<void> {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(() => {
      server.closeAllConnections?.();
      // The ends of the responses are told in the next ticks.
      setTimeout(resolve, 20);
    }, ms);
    server.close(() => {
      clearTimeout(timer);
      // Sockets, and the responses on them, tell of their end in the last phase of a turn of the event loop: behind the next.
      setImmediate(() => setImmediate(resolve));
    });
    server.closeIdleConnections?.();
  });
}

async function atMost(ms: number, work: (signal: AbortSignal) => Promise<unknown>): Promise<void> {
  const controller = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const error = new Error(`close() took longer than ${ms} ms`);
      controller.abort(error);
      reject(error);
    }, ms);
  });
  try {
    await Promise.race([work(controller.signal), late]);
  } finally {
    clearTimeout(timer);
  }
}

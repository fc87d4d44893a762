import { OptionsParser } from '../errors/options-parser.js';
import type { Sink, SinkLimits } from './sink.js';
import type { UsageEvent } from './usage-event.js';

/** What the app decides about a sink of this package. */
export interface SinkOptions {
  /** Cursors are kept by this name. Default: the kind of the sink. */
  readonly name?: string;
  /** Default `billing`. */
  readonly role?: Sink['role'];
  readonly limits?: SinkLimits;
}

/** A sink that keeps every event, for tests and demonstrations. */
export interface MemorySink extends Sink {
  /** What arrived, in order, each event once. */
  readonly events: UsageEvent[];
}

/** Keeps the events in an array. A duplicate is ignored. */
export function memorySink(options: SinkOptions = {}): MemorySink {
  const { name, role, limits } = parseSinkOptions('memorySink', 'memory', options);
  const events: UsageEvent[] = [];
  const seen = new Set<string>();
  return {
    name,
    role,
    limits,
    events,
    async write(batch) {
      for (const event of batch) {
        const key = `${event.source} ${event.id}`;
        if (seen.has(key)) continue;
        seen.add(key);
        events.push(event);
      }
    },
  };
}

/** The options that every sink of this package has; the pipeline checks the limits. */
export function parseSinkOptions(factory: string, kind: string, given: SinkOptions) {
  const parser = new OptionsParser(factory);
  const { name = kind, role, limits = {} } = parser.known(given, ['name', 'role', 'limits']);
  parser.string('name', name);
  parser.oneOf('role', role, ['billing', 'observational'], 'billing');
  parser.done();
  return { name, role: role ?? 'billing', limits } as const;
}

import type { Identity } from '../identity/ambient.cjs';
import type { Clock } from '../runtime/clock.js';
import type { EventLog, LogRefusal } from './event-log.js';
import { attributionOf, type UsageEntry } from './usage-entry.js';

/** A request between its admission and the end of its response. */
export interface OpenRequest {
  /** The instant of its admission, in milliseconds since the epoch. */
  readonly timeMs: number;
  /** The pipeline closes: the event is written now, with an unknown outcome. */
  abandon(): void;
}

/** The side of a pipeline that faces the requests: ids, attribution, and whether it can take anything at all. */
export class Intake {
  readonly log: EventLog<UsageEntry>;
  readonly clock: Clock;
  /** Whether a sink bills. */
  readonly bills: boolean;
  readonly open = new Set<OpenRequest>();
  /** Requests whose intent is not durable yet: they may still be admitted. */
  readonly entering = new Set<Pick<OpenRequest, 'timeMs'>>();
  /** What `onUnavailable: 'dangerouslyAllow'` let through without an event. */
  unmetered = 0;
  /** Reports after the end of the response. */
  late = 0;
  /** Callbacks at the end of a response that threw or answered nonsense. */
  callbackFailures = 0;
  closing = false;
  readonly #fragments = new WeakMap<Identity, string>();
  #count = 0;
  #started: Promise<void> | undefined;
  #ready = false;

  constructor(log: EventLog<UsageEntry>, clock: Clock, bills: boolean) {
    this.log = log;
    this.clock = clock;
    this.bills = bills;
    this.#ready = log.kind === 'memory';
  }

  /** Unique for ever: the instance and a counter. A random id per request would cost a microsecond. */
  nextId(): string {
    this.#count += 1;
    return `${this.log.instance}-${this.#count.toString(36)}`;
  }

  /** The attribution of an identity as JSON members; identities are immutable, so it is made once for each. */
  whoOf(identity: Identity): string {
    let fragment = this.#fragments.get(identity);
    if (fragment === undefined) {
      fragment = attributionOf(identity);
      this.#fragments.set(identity, fragment);
    }
    return fragment;
  }

  /** Resolves when the log can be used. */
  ready(signal?: AbortSignal): Promise<void> {
    if (this.#ready) return Promise.resolve();
    this.#started ??= this.log.ready(signal).then(
      () => {
        this.#ready = true;
      },
      (error) => {
        this.#started = undefined;
        throw error;
      },
    );
    return this.#started;
  }

  /** False until the log has been opened: a request then waits for it. */
  get isReady(): boolean {
    return this.#ready;
  }

  /** Everything admitted before this instant is over and in the log. */
  settledBeforeMs(): number {
    let earliest = this.clock.now();
    for (const { timeMs } of this.open) earliest = Math.min(earliest, timeMs);
    for (const { timeMs } of this.entering) earliest = Math.min(earliest, timeMs);
    return earliest;
  }

  /** Why nothing can be admitted at this moment. */
  get refusal(): LogRefusal | undefined {
    if (this.closing) return { reason: 'the pipeline is closing', retryAfterSeconds: 5 };
    return this.log.refusal;
  }
}

const INTAKE = Symbol.for('tollkeeper.intake');

/** Attaches the intake to its pipeline, where `meter()` finds it, also when it comes from another copy of this package. */
export function attachIntake<T extends object>(pipeline: T, intake: Intake): T {
  return Object.defineProperty(pipeline, INTAKE, { value: intake });
}

/** The intake of a pipeline; undefined when the value is no pipeline. */
export function intakeOf(pipeline: unknown): Intake | undefined {
  if (typeof pipeline !== 'object' || pipeline === null) return undefined;
  return (pipeline as { [INTAKE]?: Intake })[INTAKE];
}

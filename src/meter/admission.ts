import type { IncomingMessage } from 'node:http';
import type { Ending, Outcome, RequestState, ResponseObserver } from '../request/request-state.js';
import type { Quantity, UsageAdmission, UsageRecord } from '../request/usage-record.js';
import type { Intake, OpenRequest } from './intake.js';
import type { ByteCounts } from './measure-bytes.js';
import { routeOf } from './route-of.js';
import { billableByDefault, type UsageEntry } from './usage-entry.js';
import type { UsageEvent } from './usage-event.js';

/** What an app decides about: the event, but for what the log adds. */
export type FinishedEvent = Omit<UsageEvent, 'source' | 'seq'>;

/** What all requests of one `meter()` share. */
export interface AdmissionSettings {
  readonly intake: Intake;
  /** The type, as JSON. */
  readonly type: string;
  readonly intent: boolean;
  readonly billable: ((event: FinishedEvent) => boolean) | undefined;
}

/** What is known about a request when it is admitted. */
export interface Admitted {
  readonly who: string;
  readonly resource: UsageEntry['resource'];
  readonly claims: string | undefined;
  readonly requestId: string | undefined;
}

/**
 * An admitted request: the one object that metering makes for it. It waits for the end of the response, and is then what
 * the log writes.
 */
export class Admission implements UsageEntry, ResponseObserver, UsageAdmission, OpenRequest {
  readonly id: string;
  readonly type: string;
  readonly timeMs: number;
  readonly who: string;
  readonly resource: UsageEntry['resource'];
  readonly claims: string | undefined;
  readonly requestId: string | undefined;
  readonly method: string | undefined;
  readonly counted = true;
  readonly corrects = undefined;
  readonly reason = undefined;
  head: string | undefined = undefined;
  route: string | undefined = undefined;
  status: number | undefined = undefined;
  outcome: Outcome = 'unknown';
  billable = false;
  durationMs: number | undefined = undefined;
  /** Set by `measure`; asked when the response is over. */
  bytes: ByteCounts | undefined = undefined;
  /** Runs in the async context of the request. */
  decide: AdmissionSettings['billable'];
  readonly #settings: AdmissionSettings;
  readonly #usage: UsageRecord;
  readonly #startedMs: number;
  /** Undefined once the event is written. */
  #req: IncomingMessage | undefined;

  constructor(settings: AdmissionSettings, req: IncomingMessage, usage: UsageRecord, admitted: Admitted) {
    const { intake } = settings;
    this.id = intake.nextId();
    this.type = settings.type;
    this.timeMs = intake.clock.now();
    this.who = admitted.who;
    this.resource = admitted.resource;
    this.claims = admitted.claims;
    this.requestId = admitted.requestId;
    this.method = req.method;
    this.decide = settings.billable;
    this.#settings = settings;
    this.#usage = usage;
    this.#startedMs = intake.clock.monotonic();
    this.#req = req;
  }

  get quantities(): Readonly<Record<string, Readonly<Quantity>>> | undefined {
    return this.#usage.quantities;
  }

  get dimensions(): UsageRecord['dimensions'] {
    return this.#usage.dimensions;
  }

  over(_state: RequestState, ending: Ending): void {
    this.#finish(ending.outcome, ending.status);
  }

  abandon(): void {
    this.#finish('unknown', undefined);
  }

  checkpoint(): void {
    if (this.#settings.intent && this.#req !== undefined) this.#settings.intake.log.checkpoint(this);
  }

  late(): void {
    this.#settings.intake.late += 1;
  }

  #finish(outcome: Outcome, status: number | undefined): void {
    const req = this.#req;
    if (req === undefined) return;
    this.#req = undefined;
    const { intake } = this.#settings;
    intake.open.delete(this);
    // Thousandths of a millisecond are noise.
    this.durationMs = Math.round((intake.clock.monotonic() - this.#startedMs) * 1000) / 1000;
    this.outcome = outcome;
    this.status = status;
    this.route = routeOf(req);
    this.bytes?.report(this.#usage, status);
    this.billable = billableByDefault(status, outcome);
    if (this.decide !== undefined) this.#decide(this.decide);
    // What the log has taken may not change any more.
    this.#usage.closed = true;
    intake.log.final(this);
  }

  /** The app's own word on `billable`. One that throws or is no boolean leaves the default, counted. */
  #decide(decide: (event: FinishedEvent) => boolean): void {
    const { intake, type } = this.#settings;
    const { id, timeMs, who, claims, resource, requestId, method, route, status, outcome, billable, durationMs } = this;
    const quantities = { ...this.quantities, requests: { value: 1, basis: 'measured' } };
    const attribution = JSON.parse(`{${who.slice(1)}}`) as Partial<UsageEvent>;
    const event = {
      id,
      type: JSON.parse(type),
      time: new Date(timeMs).toISOString(),
      ...attribution,
      resource,
      claims: claims === undefined ? undefined : JSON.parse(claims),
      requestId,
      method,
      route,
      status,
      outcome,
      billable,
      durationMs,
      quantities,
      dimensions: { ...this.dimensions },
    } as FinishedEvent;
    try {
      const answer: unknown = decide(event);
      if (typeof answer === 'boolean') this.billable = answer;
      else intake.callbackFailures += 1;
    } catch {
      intake.callbackFailures += 1;
    }
  }
}

import type { IncomingMessage } from 'node:http';
import type { AccessError } from '../errors/access-error.js';
import type { BillingField, MissingField } from '../errors/missing-field.js';
import type { ChallengeSettings } from '../http/challenge.js';
import type { Identity } from '../identity/ambient.cjs';
import type { UsageRecord } from './usage-record.js';

/** How refusals of one request are answered. `authenticate` sets it for the middlewares behind it. */
export interface AnswerSettings extends ChallengeSettings {
  /** `respond`: the middleware answers itself. `next`: the app's error handler gets the error. */
  readonly errors: 'respond' | 'next';
  /** Told of every refusal, with `error.reason`. What it throws is swallowed. */
  readonly onReject?: (error: AccessError, req: IncomingMessage) => void;
}

/** What a trusted edge says about the request, beside or instead of an identity. */
export interface Attribution {
  /** The mapped fields that were there and not blank. */
  readonly fields: Readonly<Partial<Record<BillingField, string>>>;
  /** The header that supplies each mapped field, so that a refusal can name it. */
  readonly headers: Readonly<Partial<Record<BillingField, string>>>;
}

/**
 * How a response ended. `client_aborted`: the client left before it had everything. `server_error`: a status of 500 or
 * more, or this side cut the connection in the middle. `unknown`: the process died, or closed, before the end.
 */
export type Outcome = 'complete' | 'client_aborted' | 'server_error' | 'unknown';

export const OUTCOMES: readonly Outcome[] = ['complete', 'client_aborted', 'server_error', 'unknown'];

/** The end of a response. */
export interface Ending {
  readonly outcome: Outcome;
  /** The status that the client saw; before the headers, 499 when it went away and 500 when this side cut it off. */
  readonly status: number;
}

/** Something that waits for the end of the response: a quota hold, a usage event. */
export interface ResponseObserver {
  /** Called exactly once, with the usage that was reported. It must not throw. */
  over(state: RequestState, ending: Ending): void;
  /** Called instead of `over` when a middleware refuses the request before its handler ran. */
  refused?(state: RequestState, error: AccessError): void;
  /** Called when `authenticate` lets the request through, by each one that does. */
  authenticated?(): void;
}

/**
 * What the middlewares share about one request. It hangs on `req` under a registered symbol, because an ESM and a CJS
 * copy of this package may meet on one request: plain data, no private fields, no `instanceof`.
 */
export interface RequestState {
  /** The caller, set by `authenticate()`. */
  identity: Identity | undefined;
  /** Further credentials, by the `as` of their `authenticate()`. */
  others: Map<string, Identity> | undefined;
  /** What a trusted edge stated; with no identity, the request is incomplete. */
  attribution: Attribution | undefined;
  settings: AnswerSettings;
  /** True from the moment of admission: no gate may follow. */
  admitted: boolean;
  /** What waits for the end of the response, in the order in which it was added. */
  observers: ResponseObserver[] | undefined;
  /** The response is over, or a middleware has refused the request. */
  over: boolean;
  usage: UsageRecord | undefined;
}

const REQUEST = Symbol.for('tollkeeper.request');

const DEFAULT_SETTINGS: AnswerSettings = Object.freeze({ errors: 'respond' });

type Carrier = IncomingMessage & { [REQUEST]?: RequestState };

/** The request's state, made on first use. */
export function requestState(req: IncomingMessage): RequestState {
  const known = (req as Carrier)[REQUEST];
  if (known !== undefined) return known;
  const state: RequestState = {
    identity: undefined,
    others: undefined,
    attribution: undefined,
    settings: DEFAULT_SETTINGS,
    admitted: false,
    observers: undefined,
    over: false,
    usage: undefined,
  };
  (req as Carrier)[REQUEST] = state;
  return state;
}

/** The request's state, if any middleware of this package has seen the request. */
export function knownRequestState(req: IncomingMessage): RequestState | undefined {
  return (req as Carrier)[REQUEST];
}

/** Tells what waits for the end of the response that `authenticate` has let the request through. */
export function tellAuthenticated({ observers }: RequestState): void {
  if (observers !== undefined) for (const observer of observers) observer.authenticated?.();
}

/** Fields that are missing of those required, with the headers that would supply them. */
export function missingFields(
  required: readonly BillingField[],
  has: (field: BillingField) => boolean,
  attribution: Attribution | undefined,
): MissingField[] {
  return required
    .filter((field) => !has(field))
    .map((field) => {
      const header = attribution?.headers[field];
      return header === undefined ? { field } : { field, header };
    });
}

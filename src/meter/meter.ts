import { AsyncResource } from 'node:async_hooks';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { AccessError } from '../errors/access-error.js';
import type { BillingField } from '../errors/missing-field.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Middleware, Next } from '../http/middleware.js';
import type { Dimensions, Identity, Resource } from '../identity/ambient.cjs';
import { MIDDLEWARE_ORDER } from '../request/gate.js';
import { refuse } from '../request/refuse.js';
import { type Attribution, missingFields, type RequestState, requestState } from '../request/request-state.js';
import { whenResponseIsOver } from '../request/response-over.js';
import { addQuantity, setDimensions, usageRecord } from '../request/usage-of.js';
import { withDeadline } from '../runtime/deadline.js';
import { READY_WAIT_MS } from '../runtime/lifecycle.js';
import { Admission, type AdmissionSettings, type Admitted, type FinishedEvent } from './admission.js';
import { type Intake, intakeOf } from './intake.js';
import { type Measured, measureBytes } from './measure-bytes.js';
import type { Pipeline } from './pipeline.js';
import { fitsIntoRecord } from './usage-entry.js';

/** Amounts by name: safe integers of at least 0. */
export type Quantities = Readonly<Record<string, number>>;

export interface MeterOptions<Req extends IncomingMessage = IncomingMessage> {
  /** From `createPipeline`. */
  readonly pipeline: Pipeline;
  /** The type of the events, e.g. `api.request`. */
  readonly type: string;
  /** What the request is about. Synchronous. Default: the resource that a trusted edge states, if any. */
  readonly resource?: (req: Req) => Resource | undefined;
  /** What must be known about a request for it to be served; all that is missing is named in one 400. Default `['authId']`. */
  readonly require?: readonly BillingField[];
  /** Known at admission, beside what the handler reports through `usageOf(req)`. Synchronous; basis `reported`. */
  readonly quantities?: Quantities | ((req: Req) => Quantities);
  /** Known at admission, beside what the handler sets through `usageOf(req)`. Synchronous. */
  readonly dimensions?: Partial<Dimensions> | ((req: Req) => Partial<Dimensions>);
  /**
   * Whether the finished event is billed. Synchronous. Default: status below 500 and outcome not `unknown`, which also
   * holds, counted, when it throws.
   */
  readonly billable?: (event: FinishedEvent) => boolean;
  /**
   * `intent`: the request is durable before its handler runs. `completion`: its event is written after the response; a
   * crash may lose requests in flight and what finished in about the last 5 ms. Default: `intent` when the spool is on disk and
   * a sink bills, else `completion`.
   */
  readonly durability?: 'intent' | 'completion';
  /** Bytes of bodies to count. Costs more than all the rest, so nothing by default. */
  readonly measure?: readonly Measured[];
  /** The header with the caller's own request id, recorded and echoed. Default `x-request-id`; `false` ignores it. */
  readonly requestIdHeader?: string | false;
  /**
   * What happens while no event can be kept: `refuse` (default) answers 503; `dangerouslyAllow` serves requests that
   * nobody will ever account for, and counts them.
   */
  readonly onUnavailable?: 'refuse' | 'dangerouslyAllow';
}

const OPTIONS: readonly (keyof MeterOptions)[] = [
  'pipeline',
  'type',
  'resource',
  'require',
  'quantities',
  'dimensions',
  'billable',
  'durability',
  'measure',
  'requestIdHeader',
  'onUnavailable',
];
const FIELDS: readonly BillingField[] = ['authId', 'tenant', 'clientId', 'resource.type', 'resource.id'];
const MEASURED: readonly Measured[] = ['request_bytes', 'response_bytes'];
const REQUEST_ID = /^[\x20-\x7E]{1,200}$/;
const TYPE = /^[\x20-\x7E]{1,128}$/;
const HEADER = /^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$/;

/**
 * Middleware that admits a request and writes one usage event for it when its response is over, whichever way it ends.
 * It is the last one before the handler.
 *
 * Answers: 401 `missing_credentials` without an identity, 400 `missing_billing_fields` naming every one, 400
 * `invalid_request` for a malformed request id, 503 `metering_unavailable` before the handler runs when the event could
 * not be kept, 500 `middleware_order` when it runs twice.
 *
 * @example
 * app.post('/verdict', authenticate({ verifiers }), meter({ pipeline, type: 'verdict' }), handler)
 * @throws TypeError that lists every problem of the options.
 */
export function meter<Req extends IncomingMessage = IncomingMessage>(options: MeterOptions<Req>): Middleware<Req> {
  const parsed = parseOptions(options);
  const { intake, required, resourceOf, quantities, dimensions, measured, requestIdHeader, allowed, settings } = parsed;

  function meterRequest(req: Req, res: ServerResponse, next: Next): void {
    const state = requestState(req);
    let admitted: Admitted;
    try {
      admitted = examine(req, state);
    } catch (error) {
      return refuse(req, res, next, error, 'metering_unavailable');
    }
    if (!intake.isReady) {
      withDeadline(READY_WAIT_MS, (signal) => intake.ready(signal)).then(
        () => take(req, res, next, state, admitted),
        (cause) => unavailable(req, res, next, state, unready(cause)),
      );
      return;
    }
    take(req, res, next, state, admitted);
  }

  /** Who and what the event will be about. @throws AccessError when the request cannot be attributed. */
  function examine(req: Req, state: RequestState): Admitted {
    if (state.admitted) {
      throw new AccessError('middleware_order', { reason: `meter runs twice; the order is ${MIDDLEWARE_ORDER}` });
    }
    const { identity, attribution } = state;
    if (identity === undefined && attribution === undefined) {
      throw new AccessError('missing_credentials', { reason: 'meter: no identity' });
    }
    const resource = resourceOf === undefined ? statedResource(state) : readResource(resourceOf(req));
    if (identity === undefined || !required.every((field) => isKnown(field, identity, attribution, resource))) {
      throw unattributed(state, resource);
    }
    const who = intake.whoOf(identity);
    const claims = attribution === undefined ? undefined : JSON.stringify(identity.claims);
    if (!fitsIntoRecord(who, claims, resource)) {
      throw new AccessError('invalid_request', { reason: 'meter: the attribution is too large for an event' });
    }
    const requestId = requestIdHeader === undefined ? undefined : readRequestId(req, requestIdHeader);
    if (quantities !== undefined || dimensions !== undefined) readUsage(req);
    return { who, resource, claims, requestId };
  }

  /** Names everything that is missing at once. Without an identity there is no authId, whether it was asked for or not. */
  function unattributed({ identity, attribution }: RequestState, resource: Partial<Resource> | undefined): AccessError {
    const fields = identity === undefined ? [...new Set<BillingField>(['authId', ...required])] : required;
    const has = (field: BillingField): boolean => isKnown(field, identity, attribution, resource);
    const missing = missingFields(fields, has, attribution);
    return new AccessError('missing_billing_fields', { missing, reason: 'meter: the request cannot be attributed' });
  }

  function readUsage(req: Req): void {
    const usage = usageRecord(req);
    if (quantities !== undefined) {
      const stated: unknown = typeof quantities === 'function' ? quantities(req) : quantities;
      if (typeof stated !== 'object' || stated === null || 'then' in stated) {
        throw new TypeError('quantities must be an object');
      }
      for (const [name, amount] of Object.entries(stated)) {
        if (amount !== undefined) addQuantity(usage, name, amount, 'reported');
      }
    }
    if (dimensions !== undefined) {
      const stated: unknown = typeof dimensions === 'function' ? dimensions(req) : dimensions;
      if (typeof stated !== 'object' || stated === null || 'then' in stated) {
        throw new TypeError('dimensions must be an object');
      }
      setDimensions(usage, stated);
    }
  }

  function take(req: Req, res: ServerResponse, next: Next, state: RequestState, admitted: Admitted): void {
    // Somebody answered, or the client left: nothing will be served.
    if (isGone(req, res)) return;
    const { refusal } = intake;
    if (refusal !== undefined) {
      const { reason, retryAfterSeconds } = refusal;
      const error = new AccessError('metering_unavailable', { reason: `meter: ${reason}`, retryAfterSeconds });
      return unavailable(req, res, next, state, error);
    }
    const admission = new Admission(settings, req, usageRecord(req), admitted);
    if (!settings.intent) return admit(req, res, next, state, admission);
    intake.entering.add(admission);
    intake.log.intent(admission).then(
      () => {
        intake.entering.delete(admission);
        if (isGone(req, res)) return intake.log.cancel(admission);
        admit(req, res, next, state, admission);
      },
      (cause) => {
        intake.entering.delete(admission);
        // It may lie on the disk all the same.
        intake.log.cancel(admission);
        const error = new AccessError('metering_unavailable', { reason: 'meter: the intent is not durable', cause });
        unavailable(req, res, next, state, error);
      },
    );
  }

  function admit(req: Req, res: ServerResponse, next: Next, state: RequestState, admission: Admission): void {
    usageRecord(req).admission = admission;
    if (measured !== undefined) admission.bytes = measureBytes(req, res, measured);
    if (admission.decide !== undefined) admission.decide = AsyncResource.bind(admission.decide);
    state.admitted = true;
    intake.open.add(admission);
    whenResponseIsOver(req, res, admission);
    if (admission.requestId !== undefined && !res.headersSent) {
      res.setHeader(requestIdHeader as string, admission.requestId);
    }
    next();
  }

  function unavailable(req: Req, res: ServerResponse, next: Next, state: RequestState, error: AccessError): void {
    if (!allowed) return refuse(req, res, next, error, 'metering_unavailable');
    if (isGone(req, res)) return;
    intake.unmetered += 1;
    state.admitted = true;
    next();
  }

  return meterRequest;
}

function isKnown(
  field: BillingField,
  identity: Identity | undefined,
  attribution: Attribution | undefined,
  resource: Partial<Resource> | undefined,
): boolean {
  if (field === 'resource.type') return resource?.type !== undefined;
  if (field === 'resource.id') return resource?.id !== undefined;
  if (identity === undefined) return field !== 'authId' && attribution?.fields[field] !== undefined;
  return identity[field] !== undefined;
}

function unready(cause: unknown): AccessError {
  return new AccessError('metering_unavailable', { reason: 'meter: the log is not ready', cause });
}

function isGone(req: IncomingMessage, res: ServerResponse): boolean {
  // Behind an aborted request on the same connection, only the socket tells (Node up to 22).
  return res.writableEnded || res.destroyed || req.socket?.destroyed === true;
}

function statedResource({ attribution }: RequestState): Partial<Resource> | undefined {
  if (attribution === undefined) return undefined;
  return partial(attribution.fields['resource.type'], attribution.fields['resource.id']);
}

/** Blank counts as absent; whatever is no text is a fault of the app. */
function readResource(resource: unknown): Partial<Resource> | undefined {
  if (resource == null) return undefined;
  const { type, id } = resource as { type?: unknown; id?: unknown };
  if (typeof resource !== 'object' || 'then' in resource) throw new TypeError('a resource is an object, known at once');
  for (const value of [type, id]) {
    if (value != null && typeof value !== 'string') throw new TypeError('a resource is { type, id }, two strings');
  }
  return partial(blankless(type as string), blankless(id as string));
}

function blankless(text: string | null | undefined): string | undefined {
  return text == null || text.trim() === '' ? undefined : text;
}

function partial(type: string | undefined, id: string | undefined): Partial<Resource> | undefined {
  if (type === undefined) return id === undefined ? undefined : { id };
  return id === undefined ? { type } : { type, id };
}

function readRequestId(req: IncomingMessage, header: string): string | undefined {
  const value = req.headers[header];
  if (value === undefined) return undefined;
  if (typeof value === 'string' && REQUEST_ID.test(value)) return value;
  throw new AccessError('invalid_request', {
    reason: 'meter: the request id is not 1 to 200 printable ASCII characters',
  });
}

function parseOptions<Req extends IncomingMessage>(given: MeterOptions<Req>) {
  const parser = new OptionsParser('meter');
  const options = parser.known(given, OPTIONS);
  const { resource, quantities, dimensions, billable, durability, requestIdHeader = 'x-request-id' } = options;
  const intake = intakeOf(options.pipeline);
  if (intake === undefined) parser.problem('pipeline must come from createPipeline');
  const type = parser.string('type', options.type);
  if (type !== '') parser.check(TYPE.test(type), 'type must be 1 to 128 printable ASCII characters');
  parser.optionalFunction('resource', resource);
  parser.optionalFunction('billable', billable);
  const required = listOf(parser, 'require', options.require ?? ['authId'], FIELDS);
  const measured = listOf(parser, 'measure', options.measure ?? [], MEASURED);
  for (const [name, value] of Object.entries({ quantities, dimensions })) {
    if (value === undefined || typeof value === 'function') continue;
    const usage = { quantities: undefined, dimensions: undefined, admission: undefined, closed: false };
    try {
      if (name === 'dimensions') setDimensions(usage, value);
      else
        for (const [quantity, amount] of Object.entries(value))
          addQuantity(usage, quantity, amount as number, 'reported');
    } catch (error) {
      parser.problem(`${name}: ${(error as Error).message}`);
    }
  }
  parser.oneOf('durability', durability, ['intent', 'completion'], 'completion');
  if (durability === 'intent' && intake?.log.kind === 'memory') {
    parser.problem("durability: 'intent' needs a spool on disk");
  }
  if (requestIdHeader !== false && !(typeof requestIdHeader === 'string' && HEADER.test(requestIdHeader))) {
    parser.problem("requestIdHeader must be a header's name or false");
  }
  const allowed = parser.oneOf('onUnavailable', options.onUnavailable, ['refuse', 'dangerouslyAllow'], 'refuse');
  parser.done();
  const known = intake as Intake;
  const settings: AdmissionSettings = {
    intake: known,
    type: JSON.stringify(type),
    intent: durability === undefined ? known.log.kind === 'disk' && known.bills : durability === 'intent',
    billable,
  };
  return {
    intake: known,
    required,
    resourceOf: resource,
    quantities,
    dimensions,
    measured: measured.length === 0 ? undefined : measured,
    requestIdHeader: requestIdHeader === false ? undefined : requestIdHeader.toLowerCase(),
    allowed: allowed === 'dangerouslyAllow',
    settings,
  };
}

function listOf<T extends string>(parser: OptionsParser, name: string, value: unknown, allowed: readonly T[]): T[] {
  if (!Array.isArray(value)) {
    parser.problem(`${name} must be an array`);
    return [];
  }
  for (const item of value) {
    if (!allowed.includes(item)) parser.problem(`${name} may hold ${allowed.join(', ')}`);
  }
  return [...new Set(value as T[])];
}

export type { FinishedEvent, Measured };

import type { IncomingMessage, ServerResponse } from 'node:http';
import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Middleware, Next } from '../http/middleware.js';
import { orderError } from '../request/gate.js';
import { refuse } from '../request/refuse.js';
import {
  type Ending,
  knownRequestState,
  OUTCOMES,
  type Outcome,
  type RequestState,
  type ResponseObserver,
} from '../request/request-state.js';
import { whenResponseIsOver } from '../request/response-over.js';
import { type BoundPlan, opOf } from './bound-plan.js';
import type { Quota } from './create-quota.js';
import { deskOf, type QuotaDesk, type Ruling } from './quota-desk.js';
import { isUnits, type OpResult, type QuotaOp } from './quota-store.js';
import { type HeadersForm, rateLimitHeaders, sendRateLimitHeaders } from './rate-limit-headers.js';

/** Units by name: safe integers of at least 0. */
export type QuotaCosts = Readonly<Record<string, number>>;

export interface EnforceQuotaOptions<Req extends IncomingMessage = IncomingMessage> {
  /** From `createQuota`. */
  readonly quota: Quota;
  /**
   * What the request costs, known before it runs: a number of `requests` (default 1), or a function that gives that or units
   * by name. Synchronous; what it throws, and anything that is no number of units, is a 503. 0 consumes nothing.
   */
  readonly cost?: number | ((req: Req) => number | QuotaCosts);
  /** Units to hold for a cost that is known only afterwards, from `usageOf(req)`. Synchronous. */
  readonly reserve?: (req: Req) => QuotaCosts;
  /** Seconds until a reservation of a process that died is given back. Default 300. */
  readonly reservationSeconds?: number;
  readonly settle?: {
    /** What a reservation comes to when the handler reported nothing. Default `reserved`. */
    readonly whenMissing?: 'reserved' | 'zero';
    /** Outcomes that give everything back that was not reported. Default `['server_error']`. */
    readonly refundOn?: readonly Outcome[];
  };
  /** Which headers tell clients where they stand. Default `draft-11`. */
  readonly headers?: HeadersForm;
}

const OPTIONS: readonly (keyof EnforceQuotaOptions)[] = [
  'quota',
  'cost',
  'reserve',
  'reservationSeconds',
  'settle',
  'headers',
];

/**
 * Middleware that holds a request to its caller's plan. All policies decide in one step, and a refused request consumes
 * nothing. What is held is settled once, when the response is over: to what `usageOf(req)` reported, else to 0 where
 * `refundOn` matches, else to what was held. A refusal by a later middleware gives it all back.
 *
 * Answers: 429 `quota_exceeded` with `Retry-After` when waiting helps, 503 `quota_unavailable`, 401 `missing_credentials`
 * without an identity, 500 `middleware_order` behind `meter`.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function enforceQuota<Req extends IncomingMessage = IncomingMessage>(
  options: EnforceQuotaOptions<Req>,
): Middleware<Req> {
  const { desk, cost, reserve, holdMs, whenMissing, refundOn, headers } = parseOptions(options);

  function enforce(req: Req, res: ServerResponse, next: Next): void {
    const state = knownRequestState(req);
    const identity = state?.identity;
    if (state === undefined || identity === undefined) {
      const error = new AccessError('missing_credentials', { reason: 'enforceQuota: no identity' });
      return refuse(req, res, next, error, 'quota_unavailable');
    }
    if (state.admitted) return refuse(req, res, next, orderError('enforceQuota'), 'middleware_order');
    let ruling: Ruling | Promise<Ruling>;
    let id: string | undefined;
    try {
      const bound = desk.planFor(identity);
      const ops = cost === undefined && reserve === undefined ? bound.plainOps : opsOf(bound, req);
      id = ops.some(needsId) ? desk.nextId() : undefined;
      ruling = desk.decide(bound, ops, { mode: 'all', id, holdMs });
    } catch (error) {
      return refuse(req, res, next, unavailable(error), 'quota_unavailable');
    }
    if (!('then' in ruling)) return rule(req, res, next, ruling, id);
    ruling.then(
      (decided) => rule(req, res, next, decided, id),
      (error) => refuse(req, res, next, error, 'quota_unavailable'),
    );
  }

  function opsOf(bound: BoundPlan, req: Req): QuotaOp[] {
    const stated = typeof cost === 'function' ? cost(req) : cost;
    const costs = cost === undefined ? {} : unitsOf(typeof stated === 'number' ? { requests: stated } : stated);
    const reserved = reserve === undefined ? undefined : unitsOf(reserve(req));
    return bound.policies.map((policy, index) => opOf(policy, bound.keys[index] as string, costs, reserved));
  }

  function rule(req: Req, res: ServerResponse, next: Next, ruling: Ruling, id: string | undefined): void {
    const { result } = ruling;
    if (headers !== false) sendRateLimitHeaders(res, rateLimitHeaders(headers, ruling));
    if (!result.allowed) return refuse(req, res, next, exceeded(ruling), 'quota_exceeded');
    const hold = new QuotaHold(desk, ruling, id, whenMissing, refundOn);
    // Somebody answered, or the client left, while the store was asked: nothing will be served.
    if (res.writableEnded || res.destroyed) return hold.refused();
    whenResponseIsOver(req, res, hold);
    next();
  }

  return enforce;
}

/** What one request holds, until its response is over. */
class QuotaHold implements ResponseObserver {
  readonly #desk: QuotaDesk;
  readonly #ruling: Ruling;
  readonly #id: string | undefined;
  readonly #whenMissing: 'reserved' | 'zero';
  readonly #refundOn: ReadonlySet<Outcome>;

  constructor(
    desk: QuotaDesk,
    ruling: Ruling,
    id: string | undefined,
    whenMissing: 'reserved' | 'zero',
    refundOn: ReadonlySet<Outcome>,
  ) {
    this.#desk = desk;
    this.#ruling = ruling;
    this.#id = id;
    this.#whenMissing = whenMissing;
    this.#refundOn = refundOn;
  }

  over({ usage }: RequestState, { outcome }: Ending): void {
    const { ops, policies, result } = this.#ruling;
    const quantities = usage?.quantities;
    const refunds = this.#refundOn.has(outcome);
    let changed = this.#id !== undefined;
    let debts: QuotaOp[] | undefined;
    const actual: number[] = [];
    for (let index = 0; index < ops.length; index++) {
      const op = ops[index] as QuotaOp;
      const granted = result.ops[index]?.granted ?? 0;
      const { unit } = policies[index] as (typeof policies)[number];
      const reported =
        quantities !== undefined && Object.hasOwn(quantities, unit) ? quantities[unit]?.value : undefined;
      const units = reported ?? (refunds || (op.reserved === true && this.#whenMissing === 'zero') ? 0 : granted);
      if (granted === 0 && units > 0 && op.window.kind !== 'concurrent') {
        debts ??= [];
        debts.push({ ...op, cost: units, need: undefined, reserved: false });
        actual.push(0);
        continue;
      }
      if (units !== granted) changed = true;
      actual.push(units);
    }
    if (changed) this.#desk.settle(this.#ruling, this.#id, actual);
    if (debts !== undefined) this.#desk.book(this.#ruling, debts);
  }

  refused(): void {
    const { ops } = this.#ruling;
    this.#desk.settle(
      this.#ruling,
      this.#id,
      ops.map(() => 0),
    );
  }
}

function needsId({ reserved, window, cost }: QuotaOp): boolean {
  return cost > 0 && (reserved === true || window.kind === 'concurrent');
}

function exceeded({ result, policies }: Ruling): AccessError {
  const violated = policies.flatMap(({ name }, index) => {
    const { retryMs } = result.ops[index] as OpResult;
    return retryMs === 0 ? [] : [{ name, retryMs }];
  });
  const waits = violated.map(({ retryMs }) => retryMs);
  const helps = waits.every((wait) => wait !== null);
  return new AccessError('quota_exceeded', {
    violatedPolicies: violated.map(({ name }) => name),
    reason: 'enforceQuota: a policy is used up',
    retryAfterSeconds: helps ? Math.max(...(waits as number[])) / 1_000 : undefined,
  });
}

function unitsOf(stated: unknown): QuotaCosts {
  if (typeof stated !== 'object' || stated === null || 'then' in stated)
    throw new TypeError('units by name are needed');
  for (const units of Object.values(stated)) {
    if (!isUnits(units)) throw new TypeError('units must be safe integers of at least 0');
  }
  return stated as QuotaCosts;
}

function unavailable(error: unknown): AccessError {
  if (error instanceof AccessError) return error;
  return new AccessError('quota_unavailable', { reason: 'enforceQuota: a callback threw, or gave no number of units' });
}

function parseOptions<Req extends IncomingMessage>(given: EnforceQuotaOptions<Req>) {
  const parser = new OptionsParser('enforceQuota');
  const options = parser.known(given, OPTIONS);
  const { cost, reserve, headers } = options;
  const desk = deskOf(options.quota);
  if (desk === undefined) parser.problem('quota must come from createQuota');
  if (cost !== undefined && typeof cost !== 'function') {
    parser.check(isUnits(cost), 'cost must be a safe integer of at least 0, or a function');
  }
  parser.optionalFunction('reserve', reserve);
  const seconds = parser.number('reservationSeconds', options.reservationSeconds, 300, { min: 1, max: 31_536_000 });
  const settle = parser.known(options.settle ?? {}, ['whenMissing', 'refundOn'], 'settle');
  const whenMissing = parser.oneOf('settle.whenMissing', settle.whenMissing, ['reserved', 'zero'], 'reserved');
  const refundOn = settle.refundOn ?? ['server_error'];
  if (!Array.isArray(refundOn)) parser.problem('settle.refundOn must be an array');
  else for (const outcome of refundOn) parser.oneOf('settle.refundOn', outcome, OUTCOMES, 'complete');
  const form = parser.oneOf('headers', headers, ['draft-11', 'draft-7', 'legacy', false], 'draft-11');
  parser.done();
  return {
    desk: desk as QuotaDesk,
    cost,
    reserve,
    holdMs: seconds * 1_000,
    whenMissing,
    refundOn: new Set<Outcome>(refundOn),
    headers: form as HeadersForm,
  };
}

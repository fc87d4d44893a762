import { channel } from 'node:diagnostics_channel';
import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import { type AddressList, createAddressList } from '../http/address-list.js';
import { addressKey, clientAddress } from '../http/client-address.js';
import type { Middleware } from '../http/middleware.js';
import { orderError } from '../request/gate.js';
import { refuse } from '../request/refuse.js';
import { type RequestState, type ResponseObserver, requestState } from '../request/request-state.js';
import { whenResponseIsOver } from '../request/response-over.js';
import { type Attempt, AttemptGate } from './attempt-gate.js';
import { hashOf } from './bound-plan.js';
import { isUnits, type QuotaOp, type QuotaStore, type StoreWindow, type TakeResult } from './quota-store.js';

export interface LimitAddressOptions {
  /** Where addresses are counted; may be the quota's own store. */
  readonly store: QuotaStore;
  /** Requests, or failures, per `periodSeconds`: a safe integer of at least 1. */
  readonly limit: number;
  /** Seconds in which they are given back, evenly. */
  readonly periodSeconds: number;
  /**
   * `failures` (default): only requests that end with 401 count, so that guessing credentials is bounded. Of those that
   * `authenticate` has not decided about yet, no more are under way than failures are left; others wait, up to 5 s. `all`:
   * every request counts.
   */
  readonly count?: 'failures' | 'all';
  /** The proxies whose `X-Forwarded-For` is believed. Default: none, and the connection's peer counts. */
  readonly trustedProxies?: readonly string[];
}

/** The name under `violated-policies`. */
const POLICY = 'address';

const channelOfFailures = channel('tollkeeper:quota');

/**
 * Middleware before `authenticate`: a limit by the address of the caller. IPv6 counts by /64, which is what one subscriber
 * is given.
 *
 * Answers: 429 `quota_exceeded`, 503 `quota_unavailable` when the store fails or the address is not known.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function limitAddress(options: LimitAddressOptions): Middleware {
  const parser = new OptionsParser('limitAddress');
  const given = parser.known(options, ['store', 'limit', 'periodSeconds', 'count', 'trustedProxies']);
  const { store, limit, trustedProxies } = given;
  if (typeof store?.take !== 'function') parser.problem('store must be a quota store (did you call its factory?)');
  else if (store.leased === true) parser.problem('store: leases need calendar windows');
  parser.check(isUnits(limit) && limit > 0, 'limit must be a safe integer of at least 1');
  if (given.periodSeconds === undefined) parser.problem('periodSeconds is missing');
  const periodSeconds = parser.number('periodSeconds', given.periodSeconds, 1, { min: 0.001, max: 315_360_000 });
  const failures = parser.oneOf('count', given.count, ['failures', 'all'], 'failures') === 'failures';
  let proxies: AddressList | undefined;
  if (trustedProxies !== undefined) {
    proxies = createAddressList(trustedProxies, (text) => parser.problem(`trustedProxies: ${text}`));
  }
  parser.done();
  const window: StoreWindow = { kind: 'gcra', periodMs: periodSeconds * 1_000, burst: limit };

  const gate = new AttemptGate(store, (cause) => publish('settle_error', cause));

  return function limitAddress(req, res, next) {
    if (requestState(req).admitted) return refuse(req, res, next, orderError('limitAddress'), 'middleware_order');
    const isGone = (): boolean => res.writableEnded || res.destroyed;
    const exceeded = (retryMs: number): void => {
      const error = new AccessError('quota_exceeded', {
        violatedPolicies: [POLICY],
        reason: 'limitAddress: too many from this address',
        retryAfterSeconds: retryMs / 1_000,
      });
      refuse(req, res, next, error, 'quota_exceeded');
    };
    const fail = (cause: unknown): void => {
      publish('store_error', cause);
      refuse(req, res, next, unavailable('limitAddress: the store failed'), 'quota_unavailable');
    };
    const address = clientAddress(req, proxies);
    if (address === undefined) {
      const error = unavailable('limitAddress: the address of the caller is not known');
      return refuse(req, res, next, error, 'quota_unavailable');
    }
    const slot = hashOf(['address', addressKey(address)]);
    const op: QuotaOp = { key: `${POLICY}:${slot}:gcra`, window, limit, cost: 1 };
    if (failures) {
      return gate.enter(slot, op, {
        isGone,
        admit(attempt) {
          whenResponseIsOver(req, res, new GuessObserver(attempt, () => gate.count(slot, op)));
          next();
        },
        refuse: exceeded,
        fail,
      });
    }
    const rule = ({ allowed, ops }: TakeResult): void => {
      if (isGone()) return;
      if (allowed) next();
      else exceeded(ops[0]?.retryMs ?? 1_000);
    };
    let answer: TakeResult | Promise<TakeResult>;
    try {
      answer = store.take(slot, [op], { mode: 'all' });
    } catch (cause) {
      return fail(cause);
    }
    if ('then' in answer) answer.then(rule, fail);
    else rule(answer);
  };
}

/** Waits for the word about one request: 401 is a failure, and so is a 401 of the app after `authenticate` let it through. */
class GuessObserver implements ResponseObserver {
  readonly #attempt: Attempt;
  readonly #count: () => void;
  #isOpen = true;

  constructor(attempt: Attempt, count: () => void) {
    this.#attempt = attempt;
    this.#count = count;
  }

  authenticated(): void {
    this.#isOpen = false;
    this.#attempt.passed();
  }

  over(_state: RequestState, { status }: { readonly status: number }): void {
    if (status !== 401) this.#attempt.passed();
    else if (this.#isOpen) this.#attempt.failed();
    else this.#count();
  }

  refused(state: RequestState, { status }: AccessError): void {
    this.over(state, { status });
  }
}

function publish(type: 'store_error' | 'settle_error', cause: unknown): void {
  if (channelOfFailures.hasSubscribers) channelOfFailures.publish({ type, cause });
}

function unavailable(reason: string): AccessError {
  return new AccessError('quota_unavailable', { reason });
}

import type { IncomingMessage } from 'node:http';
import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import { type AddressList, createAddressList } from '../http/address-list.js';
import { addressKey, clientAddress } from '../http/client-address.js';
import type { Middleware } from '../http/middleware.js';
import { orderError } from '../request/gate.js';
import { refuse } from '../request/refuse.js';
import { type ResponseObserver, requestState } from '../request/request-state.js';
import { whenResponseIsOver } from '../request/response-over.js';
import { hashOf } from './bound-plan.js';
import { isUnits, type QuotaOp, type QuotaStore, type StoreWindow, type TakeResult } from './quota-store.js';

export interface LimitAddressOptions {
  /** Where addresses are counted; may be the quota's own store. */
  readonly store: QuotaStore;
  /** Requests, or failures, per `periodSeconds`: a safe integer of at least 1. */
  readonly limit: number;
  /** Seconds in which they are given back, evenly. */
  readonly periodSeconds: number;
  /** `failures` (default): only requests that end with 401 count, so that guessing credentials is bounded. `all`: every one. */
  readonly count?: 'failures' | 'all';
  /** The proxies whose `X-Forwarded-For` is believed. Default: none, and the connection's peer counts. */
  readonly trustedProxies?: readonly string[];
}

/** The name under `violated-policies`. */
const POLICY = 'address';

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

  function countFailure(slot: string, op: QuotaOp): ResponseObserver {
    const charge = (): void => {
      // A failure that cannot be counted now is not worth an answer: the next request asks the store first.
      try {
        const done = store.take(slot, [op], { mode: 'force' });
        if ('then' in done) done.catch(() => {});
      } catch {}
    };
    return {
      over: (_state, { status }) => {
        if (status === 401) charge();
      },
      refused: (_state, { status }) => {
        if (status === 401) charge();
      },
    };
  }

  return function limitAddress(req, res, next) {
    if (requestState(req).admitted) return refuse(req, res, next, orderError('limitAddress'), 'middleware_order');
    const asked = (): TakeResult | Promise<TakeResult> => {
      const { slot, op } = counterOf(req);
      return store.take(slot, [failures ? { ...op, cost: 0, need: 1 } : op], { mode: failures ? 'peek' : 'all' });
    };
    const rule = ({ allowed, ops: [standing] }: TakeResult): void => {
      if (res.writableEnded || res.destroyed) return;
      if (!allowed) {
        const error = new AccessError('quota_exceeded', {
          violatedPolicies: [POLICY],
          reason: 'limitAddress: too many from this address',
          retryAfterSeconds: (standing?.retryMs ?? 1_000) / 1_000,
        });
        return refuse(req, res, next, error, 'quota_exceeded');
      }
      if (failures) {
        const { slot, op } = counterOf(req);
        whenResponseIsOver(req, res, countFailure(slot, op));
      }
      next();
    };
    let answer: TakeResult | Promise<TakeResult>;
    try {
      answer = asked();
    } catch (error) {
      return refuse(req, res, next, unavailable(error), 'quota_unavailable');
    }
    if (!('then' in answer)) return rule(answer);
    answer.then(rule, (error) => refuse(req, res, next, unavailable(error), 'quota_unavailable'));
  };

  function counterOf(req: IncomingMessage): { slot: string; op: QuotaOp } {
    const address = clientAddress(req, proxies);
    if (address === undefined) {
      throw new AccessError('quota_unavailable', { reason: 'limitAddress: the address of the caller is not known' });
    }
    const slot = hashOf(['address', addressKey(address)]);
    return { slot, op: { key: `${POLICY}:${slot}:gcra`, window, limit, cost: 1 } };
  }
}

function unavailable(error: unknown): AccessError {
  if (error instanceof AccessError) return error;
  return new AccessError('quota_unavailable', { reason: 'limitAddress: the store failed' });
}

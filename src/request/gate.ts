import type { IncomingMessage } from 'node:http';
import { AccessError, type AccessErrorCode } from '../errors/access-error.js';
import type { Middleware } from '../http/middleware.js';
import type { Identity } from '../identity/ambient.cjs';
import { refuse } from './refuse.js';
import { knownRequestState } from './request-state.js';

/** The order that a `middleware_order` refusal names. */
export const MIDDLEWARE_ORDER = 'authenticate → require… → enforceQuota → meter → handler';

/** A gate that stands after admission: the app is misassembled. */
export function orderError(name: string): AccessError {
  return new AccessError('middleware_order', {
    reason: `${name} stands after meter; the order is ${MIDDLEWARE_ORDER}`,
  });
}

/**
 * A synchronous middleware that asks one question about the caller. It refuses without an identity (401) and after
 * admission (500); whatever the question throws is a refusal with `code`.
 *
 * @param question returns the refusal, or undefined to let the request through.
 */
export function createGate<Req extends IncomingMessage = IncomingMessage>(
  name: string,
  code: AccessErrorCode,
  question: (identity: Identity, req: Req) => AccessError | undefined,
): Middleware<Req> {
  const gate: Middleware<Req> = (req, res, next) => {
    const state = knownRequestState(req);
    const identity = state?.identity;
    if (identity === undefined) {
      const reason = state?.attribution === undefined ? 'no identity' : 'the edge sent incomplete headers';
      return refuse(req, res, next, new AccessError('missing_credentials', { reason: `${name}: ${reason}` }), code);
    }
    if (state?.admitted === true) return refuse(req, res, next, orderError(name), code);
    let refusal: AccessError | undefined;
    try {
      refusal = question(identity, req);
    } catch (cause) {
      refusal = new AccessError(code, { reason: `${name}: the callback threw`, cause });
    }
    if (refusal !== undefined) return refuse(req, res, next, refusal, code);
    next();
  };
  Object.defineProperty(gate, 'name', { value: name });
  return gate;
}

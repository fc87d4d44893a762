import type { Middleware } from '../http/middleware.js';
import { createIdentity, type IdentityInput } from '../identity/create-identity.js';
import { orderError } from '../request/gate.js';
import { attachIdentity } from '../request/identity-of.js';
import { refuse } from '../request/refuse.js';
import { requestState } from '../request/request-state.js';

/**
 * A middleware that signs a caller in without any credential, in the place of `authenticate()`, for tests of what comes
 * behind it.
 *
 * @throws TypeError for an identity without `subject` and `authId`.
 */
export function asIdentity(input: IdentityInput): Middleware {
  const identity = createIdentity(input, 'as-identity');
  return function signIn(req, res, next) {
    if (requestState(req).admitted) {
      return refuse(req, res, next, orderError('asIdentity'), 'middleware_order');
    }
    attachIdentity(req, identity);
    next();
  };
}

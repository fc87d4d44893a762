import type { IncomingMessage } from 'node:http';
import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Middleware } from '../http/middleware.js';
import type { Identity } from '../identity/ambient.cjs';
import { createGate } from '../request/gate.js';

export interface RequireTenantOptions {
  /** Who may cross tenants. Synchronous: only `true` itself permits, so that a promise does not. */
  readonly crossTenant?: (identity: Identity, tenantId: string) => boolean;
}

/**
 * Lets a caller through whose tenant is the one that the request is about. An identity without a tenant matches none.
 *
 * Answers: 403 `tenant_mismatch` (also when a callback throws or names no tenant), 401 `missing_credentials` without an
 * identity, 500 `middleware_order` behind `meter`.
 *
 * @example
 * app.use('/accounts/:account', requireTenant((req) => req.params.account))
 * @throws TypeError when `tenantOf` is no function or an option is unknown.
 */
export function requireTenant<Req extends IncomingMessage = IncomingMessage>(
  tenantOf: (req: Req) => string | undefined,
  options: RequireTenantOptions = {},
): Middleware<Req> {
  const parser = new OptionsParser('requireTenant');
  const { crossTenant } = parser.known(options, ['crossTenant']);
  parser.check(typeof tenantOf === 'function', 'the first argument must be a function of the request');
  parser.optionalFunction('crossTenant', crossTenant);
  parser.done();
  return createGate<Req>('requireTenant', 'tenant_mismatch', (identity, req) => {
    const tenantId: unknown = tenantOf(req);
    if (typeof tenantId !== 'string' || tenantId === '') return mismatch('the request names no tenant');
    if (identity.tenant === tenantId || crossTenant?.(identity, tenantId) === true) return undefined;
    return mismatch('the identity belongs to another tenant');
  });
}

function mismatch(reason: string): AccessError {
  return new AccessError('tenant_mismatch', { reason });
}

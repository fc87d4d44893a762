import type { IncomingMessage } from 'node:http';
import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Middleware } from '../http/middleware.js';
import type { Resource } from '../identity/ambient.cjs';
import { createGate } from '../request/gate.js';

export interface RequireResourceOptions {
  /** What an identity without any resource constraint may do. Default `refuse`: no constraint is never a wildcard. */
  readonly unconstrained?: 'refuse' | 'allow';
}

/**
 * Lets a caller through whose resource constraint names the resource that the request is about.
 *
 * Answers: 403 `resource_mismatch` (also when the callback throws or names no resource), 401 `missing_credentials`
 * without an identity, 500 `middleware_order` behind `meter`.
 *
 * @throws TypeError when `resourceOf` is no function or an option is unknown.
 */
export function requireResource<Req extends IncomingMessage = IncomingMessage>(
  resourceOf: (req: Req) => Resource | undefined,
  options: RequireResourceOptions = {},
): Middleware<Req> {
  const parser = new OptionsParser('requireResource');
  const { unconstrained } = parser.known(options, ['unconstrained']);
  parser.check(typeof resourceOf === 'function', 'the first argument must be a function of the request');
  const allowed = parser.oneOf('unconstrained', unconstrained, ['refuse', 'allow'], 'refuse') === 'allow';
  parser.done();
  return createGate<Req>('requireResource', 'resource_mismatch', ({ resources }, req) => {
    const wanted: Partial<Resource> | undefined = resourceOf(req);
    if (!isText(wanted?.type) || !isText(wanted.id)) return mismatch('the request names no resource');
    if (resources === undefined) return allowed ? undefined : mismatch('the identity states no resources');
    const listed = resources.some(({ type, id }) => type === wanted.type && id === wanted.id);
    return listed ? undefined : mismatch('the resource is not among those of the identity');
  });
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

function mismatch(reason: string): AccessError {
  return new AccessError('resource_mismatch', { reason });
}

import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Middleware } from '../http/middleware.js';
import type { Scope } from '../identity/ambient.cjs';
import { isScopeToken, isWildcardScope } from '../identity/create-identity.js';
import { createGate } from '../request/gate.js';

/** Which scopes a route needs: all of `all`, and at least one of `any`. */
export interface ScopeRule {
  readonly all?: readonly Scope[];
  readonly any?: readonly Scope[];
}

/**
 * Lets a caller through that has every listed scope (RFC 6749 §3.3), or that fulfils a rule. Scopes are opaque and
 * matched exactly.
 *
 * Answers: 403 `insufficient_scope` with a challenge that lists every scope of the rule (RFC 6750 §3.1), 401
 * `missing_credentials` without an identity, 500 `middleware_order` behind `meter`.
 *
 * @example
 * app.get('/reports', requireScope('reports:read'), handler)
 * app.post('/reports', requireScope({ any: ['reports:write', 'reports:admin'] }), handler)
 * @throws TypeError for an empty rule, a malformed scope or a wildcard.
 */
export function requireScope(...scopes: [Scope, ...Scope[]]): Middleware;
export function requireScope(rule: ScopeRule): Middleware;
export function requireScope(...given: readonly (Scope | ScopeRule)[]): Middleware {
  const parser = new OptionsParser('requireScope');
  const [first] = given;
  const rule: ScopeRule =
    typeof first === 'object' && first !== null
      ? parser.known(first, ['all', 'any'], 'rule')
      : { all: given as readonly Scope[] };
  const all = Array.isArray(rule.all) ? [...rule.all] : [];
  const any = Array.isArray(rule.any) ? [...rule.any] : [];
  for (const [name, list] of Object.entries(rule)) {
    if (list !== undefined && !(Array.isArray(list) && list.length > 0)) parser.problem(`${name} must list a scope`);
  }
  if (all.length + any.length === 0) parser.problem('at least one scope is needed');
  if (first !== null && typeof first === 'object' && given.length > 1) parser.problem('a rule stands alone');
  for (const scope of [...all, ...any]) {
    if (!isScopeToken(scope)) parser.problem('a scope must be printable ASCII without spaces, quotes and backslashes');
    else if (isWildcardScope(scope)) parser.problem(`"${scope}" is a wildcard: scopes are matched exactly`);
  }
  parser.done();
  const needed = [...all, ...any];
  return createGate('requireScope', 'insufficient_scope', ({ scopes }) => {
    for (const scope of all) if (!scopes.has(scope)) return lacking();
    return any.length === 0 || any.some((scope) => scopes.has(scope)) ? undefined : lacking();
  });

  function lacking(): AccessError {
    return new AccessError('insufficient_scope', { scopes: needed, reason: 'the identity lacks a scope of the route' });
  }
}

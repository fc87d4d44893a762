import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Middleware } from '../http/middleware.js';
import type { SubjectKind } from '../identity/ambient.cjs';
import { SUBJECT_KINDS } from '../identity/create-identity.js';
import { createGate } from '../request/gate.js';

/**
 * Lets only these kinds of subject through: the one chokepoint that turns services away from account-owned routes.
 *
 * Answers: 403 `subject_not_allowed`, 401 `missing_credentials` without an identity, 500 `middleware_order` behind `meter`.
 *
 * @throws TypeError for no kind or an unknown one.
 */
export function requireSubject(...kinds: [SubjectKind, ...SubjectKind[]]): Middleware {
  const parser = new OptionsParser('requireSubject');
  if (kinds.length === 0) parser.problem('at least one kind of subject is needed');
  for (const kind of kinds) parser.oneOf('a kind', kind, SUBJECT_KINDS, 'user');
  if (kinds.includes(undefined as unknown as SubjectKind)) parser.problem('a kind is undefined');
  parser.done();
  return createGate('requireSubject', 'subject_not_allowed', ({ subject }) =>
    kinds.includes(subject.kind)
      ? undefined
      : new AccessError('subject_not_allowed', { reason: `a ${subject.kind} may not use this route` }),
  );
}

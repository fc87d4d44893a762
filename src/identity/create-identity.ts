import type { Identity, Resource, Subject, SubjectKind } from './ambient.cjs';
import { frozenCopy } from './frozen-copy.js';
import { ScopeSet } from './scope-set.js';

/** What may be handed in as an identity: `subject` and `authId` are needed, the rest is filled in. */
export interface IdentityInput extends Partial<Omit<Identity, 'subject' | 'authId' | 'scopes'>> {
  readonly subject: Subject;
  readonly authId: string;
  /** Any iterable of scopes. Default: none. */
  readonly scopes?: Iterable<string>;
}

/** Marks identities that `createIdentity` made, of whichever copy of this package. Not enumerable: a spread copy has none. */
const MADE = Symbol.for('tollkeeper.identity');

export const SUBJECT_KINDS: readonly SubjectKind[] = ['user', 'service', 'workload', 'organization'];

/** Whether a value is one of the kinds. */
export function isSubjectKind(value: unknown): value is SubjectKind {
  return SUBJECT_KINDS.includes(value as SubjectKind);
}
const TEXTS = ['tenant', 'clientId', 'tokenId', 'keyId', 'plan', 'issuer', 'verifier'] as const;
const INSTANTS = ['issuedAt', 'expiresAt'] as const;

/** A wildcard grants nothing: scopes are opaque and matched exactly, and nobody can ask for one. */
export function isWildcardScope(scope: string): boolean {
  return (
    scope.includes('*') ||
    scope === 'any' ||
    scope.endsWith(':any') ||
    scope.startsWith('any:') ||
    scope.includes(':any:')
  );
}

/** RFC 6749 §3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E ). */
export function isScopeToken(value: unknown): value is string {
  return typeof value === 'string' && /^[\x21\x23-\x5B\x5D-\x7E]+$/.test(value);
}

/** Whether a value is an identity that `createIdentity` made and nobody can have changed since. */
export function isIdentity(value: unknown): value is Identity {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, MADE);
}

/**
 * A normalised, deeply immutable identity. The input is copied, never frozen; absent fields stay absent (`null` counts as
 * absent). Wildcard scopes (`*`, `…:any`) are dropped: they grant nothing.
 *
 * @param verifier the name of the verifier, which is also the issuer where the input states none.
 * @throws TypeError that lists every problem, without any value.
 */
export function createIdentity(input: IdentityInput, verifier: string): Identity {
  if (isIdentity(input)) return input;
  const problems: string[] = [];
  if (typeof input !== 'object' || input === null) throw new TypeError('identity: must be an object');
  if (!isText(input.authId)) problems.push('authId must be a string that is not empty');
  for (const name of TEXTS) {
    if (input[name] != null && !isText(input[name])) problems.push(`${name} must be a string that is not empty`);
  }
  for (const name of INSTANTS) {
    if (input[name] != null && !Number.isFinite(input[name])) problems.push(`${name} must be a number of seconds`);
  }
  const groups = input.groups ?? [];
  if (!Array.isArray(groups) || !groups.every(isText)) problems.push('groups must be an array of strings');
  const resources = input.resources ?? undefined;
  if (resources !== undefined && !(Array.isArray(resources) && resources.every(isResource))) {
    problems.push('resources must be an array of { type, id }');
  }
  const scopes: unknown = input.scopes ?? [];
  let scopeSet = new ScopeSet<string>([]);
  if (typeof scopes === 'string' || !isIterable(scopes)) problems.push('scopes must be an iterable of strings');
  else {
    const listed = [...scopes];
    if (!listed.every(isText)) problems.push('scopes must be an iterable of strings');
    else scopeSet = new ScopeSet(listed.filter((scope) => !isWildcardScope(scope)));
  }
  const claims = input.claims ?? {};
  if (typeof claims !== 'object' || Array.isArray(claims)) problems.push('claims must be an object');
  const confirmation = input.confirmation ?? undefined;
  if (confirmation !== undefined && typeof confirmation !== 'object') problems.push('confirmation must be an object');
  const subject = subjectOf('subject', input.subject, problems);
  const actor = input.actor == null ? undefined : subjectOf('actor', input.actor, problems);
  if (problems.length > 0) throw new TypeError(`identity: ${problems.join('; ')}`);

  // Assigned one by one, in one order: spreads would cost more than all the checks above, and give every identity a shape
  // of its own.
  const identity: { -readonly [K in keyof Identity]: Identity[K] } = {
    subject: subject as Subject,
    issuer: input.issuer ?? verifier,
    authId: input.authId,
    scopes: scopeSet as Identity['scopes'],
    groups: Object.freeze([...groups]),
    verifier: input.verifier ?? verifier,
    claims: frozenCopy(claims),
  };
  if (input.tenant != null) identity.tenant = input.tenant;
  if (input.clientId != null) identity.clientId = input.clientId;
  if (input.tokenId != null) identity.tokenId = input.tokenId;
  if (input.keyId != null) identity.keyId = input.keyId;
  if (input.plan != null) identity.plan = input.plan;
  if (actor !== undefined) identity.actor = actor;
  if (input.issuedAt != null) identity.issuedAt = input.issuedAt;
  if (input.expiresAt != null) identity.expiresAt = input.expiresAt;
  if (confirmation !== undefined) identity.confirmation = frozenCopy(confirmation);
  if (resources !== undefined) {
    identity.resources = Object.freeze(resources.map(({ type, id }) => Object.freeze({ type, id })));
  }
  Object.defineProperty(identity, MADE, { value: true });
  return Object.freeze(identity);
}

function subjectOf(name: string, value: unknown, problems: string[]): Subject | undefined {
  const { kind, id } = (value ?? {}) as Partial<Subject>;
  if (!isSubjectKind(kind)) problems.push(`${name}.kind must be one of ${SUBJECT_KINDS.join(', ')}`);
  if (!isText(id)) problems.push(`${name}.id must be a string that is not empty`);
  return Object.freeze({ kind: kind as SubjectKind, id: id as string });
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

function isResource(value: unknown): value is Resource {
  return (
    typeof value === 'object' && value !== null && isText((value as Resource).type) && isText((value as Resource).id)
  );
}

function isIterable(value: unknown): value is Iterable<unknown> {
  return typeof value === 'object' && value !== null && Symbol.iterator in value;
}

import type { OptionsParser } from '../errors/options-parser.js';
import type { Resource } from '../identity/ambient.cjs';
import { isScopeToken, isWildcardScope } from '../identity/create-identity.js';
import { type ClaimReader, claimPointer, claimReader, isClaimPath } from './claim-at.js';
import { type ClaimMatch, type ClaimMatcher, compileMatch, covers } from './claim-match.js';
import { kindRules, type WorkloadKind } from './workload-kind.js';

/** What a workload becomes under a policy. */
export interface WorkloadGrant {
  /** Never taken from the caller. */
  readonly tenantId: string;
  readonly clientId: string;
  readonly scopes: readonly string[];
  /** The only resources that it may touch. Absent: no constraint. Empty: nothing. */
  readonly resources?: readonly Resource[];
  /** Seconds that a token which is issued for the workload may live at most. Default: the issuer's own maximum. */
  readonly maxTtlSeconds?: number;
}

/** Which tokens of a platform are taken, and what for. Whatever no policy matches is refused. */
export interface WorkloadPolicy {
  /** Names the policy in requests and reasons. */
  readonly id: string;
  readonly issuer: string;
  /** The token must be meant for this audience and for nothing else. */
  readonly audience: string;
  /** By a claim's name or a JSON Pointer; all of them must match. A claim that is missing or no string does not. */
  readonly match: Readonly<Record<string, ClaimMatch>>;
  readonly grant: WorkloadGrant;
  /** Seconds since `iat` at most. */
  readonly maxSubjectAgeSeconds?: number;
  /** Seconds from `iat` to `exp` at most. Default 86400: a Kubernetes token for the default audience spans a year. */
  readonly maxSubjectLifetimeSeconds?: number;
  /** `once`: a token is good for one use; it needs a `jti`. */
  readonly replay?: 'once';
  /** Kubernetes: also takes tokens that are bound to no pod. */
  readonly allowWithoutPod?: true;
}

/** An issuer that policies may name. */
export interface KnownWorkloadIssuer {
  readonly issuer: string;
  readonly kind: WorkloadKind;
  /** JSON Pointers to the claims beside `sub` that say who a workload is. */
  readonly pins: readonly string[];
}

/** A policy that was read and compiled. */
export interface CompiledPolicy {
  readonly policy: WorkloadPolicy;
  readonly kind: WorkloadKind;
  readonly maxLifetimeSeconds: number;
  /** By JSON Pointer. */
  readonly matchers: ReadonlyMap<string, ClaimMatcher>;
  readonly readers: readonly { readonly read: ClaimReader; readonly matcher: ClaimMatcher }[];
}

export type WorkloadDecision =
  | {
      readonly granted: true;
      readonly policy: WorkloadPolicy;
      readonly grant: WorkloadGrant;
      /** Seconds since the epoch. */
      readonly issuedAt: number;
      /** `exp`, or when the token becomes older than the policy lets it be. */
      readonly expiresAt: number;
    }
  /** `reason` holds nothing out of the token. */
  | { readonly granted: false; readonly reason: string };

const POLICY_OPTIONS: readonly (keyof WorkloadPolicy)[] = [
  'id',
  'issuer',
  'audience',
  'match',
  'grant',
  'maxSubjectAgeSeconds',
  'maxSubjectLifetimeSeconds',
  'replay',
  'allowWithoutPod',
];
const GRANT_OPTIONS: readonly (keyof WorkloadGrant)[] = [
  'tenantId',
  'clientId',
  'scopes',
  'resources',
  'maxTtlSeconds',
];
const DEFAULT_LIFETIME_SECONDS = 86_400;

/**
 * Reads policies and notes every problem: unknown issuers, duplicate ids, matches that pin nobody down.
 *
 * @param where the option's name in messages.
 */
export function parseWorkloadPolicies(
  parser: OptionsParser,
  where: string,
  given: unknown,
  issuers: readonly KnownWorkloadIssuer[],
): readonly CompiledPolicy[] {
  if (!Array.isArray(given)) {
    parser.problem(`${where} must be an array`);
    return [];
  }
  const ids = new Set<string>();
  return given.map((policy: WorkloadPolicy, index) => {
    const compiled = parsePolicy(parser, `${where}[${index}]`, policy, issuers);
    if (ids.has(compiled.policy.id)) parser.problem(`${where}[${index}].id is that of another policy`);
    ids.add(compiled.policy.id);
    return compiled;
  });
}

/** Notes pairs of policies of which every token that matches the one matches the other, for whoever cannot name one. */
export function checkUnambiguous(parser: OptionsParser, where: string, policies: readonly CompiledPolicy[]): void {
  for (const [index, one] of policies.entries()) {
    for (const [other, two] of policies.entries()) {
      if (index === other || !implies(one, two) || (implies(two, one) && other < index)) continue;
      parser.problem(`${where}: whatever matches "${one.policy.id}" matches "${two.policy.id}" too`);
    }
  }
}

/**
 * Decides about a token whose signature, `iss`, `exp` and `nbf` hold already.
 *
 * @param request.now seconds since the epoch.
 * @param request.policy the policy that the caller names; without it exactly one must match.
 */
export function decideWorkload(
  policies: readonly CompiledPolicy[],
  request: {
    readonly issuer: string;
    readonly claims: Readonly<Record<string, unknown>>;
    readonly now: number;
    readonly policy?: string;
    readonly clockToleranceSeconds?: number;
  },
): WorkloadDecision {
  const { issuer, claims, now, policy: named, clockToleranceSeconds = 5 } = request;
  const { iat, exp } = claims;
  if (typeof iat !== 'number' || typeof exp !== 'number') return refusal('the token does not say when it was issued');
  const candidates = policies.filter(
    ({ policy }) => policy.issuer === issuer && (named === undefined || policy.id === named),
  );
  if (candidates.length === 0) return refusal('no policy is about this issuer');
  const reasons = new Set<string>();
  const matching = candidates.filter((candidate) => {
    const fault = faultOf(candidate, claims, iat, exp, now - clockToleranceSeconds);
    if (fault !== undefined) reasons.add(fault);
    return fault === undefined;
  });
  const [match, ...others] = matching;
  if (match === undefined) return refusal([...reasons].join('; '));
  if (others.length > 0) return refusal('several policies match and none was named');
  const { policy } = match;
  const maxAge = policy.maxSubjectAgeSeconds;
  return {
    granted: true,
    policy,
    grant: policy.grant,
    issuedAt: iat,
    expiresAt: maxAge === undefined ? exp : Math.min(exp, iat + maxAge),
  };
}

function faultOf(
  { policy, kind, readers, maxLifetimeSeconds }: CompiledPolicy,
  claims: Readonly<Record<string, unknown>>,
  iat: number,
  exp: number,
  now: number,
): string | undefined {
  const { aud } = claims;
  const audience: unknown = Array.isArray(aud) && aud.length === 1 ? aud[0] : aud;
  if (audience !== policy.audience) return 'the token is not meant for this audience alone';
  const fault = kindRules(kind).fault(claims, policy.allowWithoutPod === true);
  if (fault !== undefined) return `the token is refused: ${fault}`;
  if (!readers.every(({ read, matcher }) => matcher.matches(read(claims)))) return 'no policy matches';
  if (exp - iat > maxLifetimeSeconds) return 'the token lives longer than the policy allows';
  if (policy.maxSubjectAgeSeconds !== undefined && now - iat > policy.maxSubjectAgeSeconds) {
    return 'the token is older than the policy allows';
  }
  if (policy.replay === 'once' && (typeof claims.jti !== 'string' || claims.jti === '')) return 'the token has no jti';
  return undefined;
}

function refusal(reason: string): WorkloadDecision {
  return { granted: false, reason };
}

function parsePolicy(
  parser: OptionsParser,
  where: string,
  given: WorkloadPolicy,
  issuers: readonly KnownWorkloadIssuer[],
): CompiledPolicy {
  const options = parser.known(given, POLICY_OPTIONS, where);
  const id = parser.string(`${where}.id`, options.id);
  const issuer = parser.string(`${where}.issuer`, options.issuer);
  const audience = parser.string(`${where}.audience`, options.audience);
  const known = issuers.find((candidate) => candidate.issuer === issuer);
  const kind = known?.kind;
  if (issuer !== '' && kind === undefined) parser.problem(`${where}.issuer is none of the issuers`);
  const { matchers, readers } = parseMatch(parser, `${where}.match`, options.match);
  const looseness = known === undefined ? undefined : kindRules(known.kind).looseness(matchers, known.pins);
  if (looseness !== undefined) parser.problem(`${where}.match ${looseness}`);
  const { maxSubjectAgeSeconds } = options;
  if (maxSubjectAgeSeconds !== undefined) {
    parser.number(`${where}.maxSubjectAgeSeconds`, maxSubjectAgeSeconds, 0, { min: 1 });
  }
  const maxLifetimeSeconds = parser.number(
    `${where}.maxSubjectLifetimeSeconds`,
    options.maxSubjectLifetimeSeconds,
    DEFAULT_LIFETIME_SECONDS,
    { min: 1 },
  );
  const replay = parser.oneOf(`${where}.replay`, options.replay, ['once'], undefined);
  const allowWithoutPod = parser.oneOf(`${where}.allowWithoutPod`, options.allowWithoutPod, [true], undefined);
  if (allowWithoutPod === true && kind !== 'kubernetes') parser.problem(`${where}.allowWithoutPod is about Kubernetes`);
  const policy: WorkloadPolicy = Object.freeze({
    id,
    issuer,
    audience,
    match: options.match,
    grant: parseGrant(parser, `${where}.grant`, options.grant),
    ...(maxSubjectAgeSeconds === undefined ? {} : { maxSubjectAgeSeconds }),
    maxSubjectLifetimeSeconds: maxLifetimeSeconds,
    ...(replay === undefined ? {} : { replay }),
    ...(allowWithoutPod === undefined ? {} : { allowWithoutPod }),
  });
  return { policy, kind: kind ?? 'oidc', maxLifetimeSeconds, matchers, readers };
}

function parseMatch(parser: OptionsParser, where: string, given: unknown) {
  const matchers = new Map<string, ClaimMatcher>();
  const entries = typeof given === 'object' && given !== null && !Array.isArray(given) ? Object.entries(given) : [];
  if (entries.length === 0) parser.problem(`${where} must match at least one claim`);
  for (const [path, match] of entries) {
    const compiled = compileMatch(match);
    const pointer = claimPointer(path);
    if (!isClaimPath(path)) parser.problem(`${where} has a key that is no claim's name and no JSON Pointer`);
    else if (typeof compiled === 'string') parser.problem(`${where}["${path}"] ${compiled}`);
    else if (matchers.has(pointer)) parser.problem(`${where} names the claim "${path}" twice`);
    else matchers.set(pointer, compiled);
  }
  const readers = [...matchers].map(([path, matcher]) => ({ read: claimReader(path), matcher }));
  return { matchers, readers };
}

function parseGrant(parser: OptionsParser, where: string, given: WorkloadGrant): WorkloadGrant {
  const options = parser.known(given, GRANT_OPTIONS, where);
  const tenantId = parser.string(`${where}.tenantId`, options.tenantId);
  const clientId = parser.string(`${where}.clientId`, options.clientId);
  const scopes: readonly unknown[] = Array.isArray(options.scopes) ? options.scopes : [undefined];
  const usable = scopes.every((scope) => isScopeToken(scope) && !isWildcardScope(scope));
  parser.check(usable, `${where}.scopes must be an array of scopes without wildcards`);
  const { resources, maxTtlSeconds } = options;
  const isResource = (item: unknown): item is Resource =>
    typeof item === 'object' &&
    item !== null &&
    [(item as Resource).type, (item as Resource).id].every((text) => typeof text === 'string' && text !== '');
  if (resources !== undefined && !(Array.isArray(resources) && resources.every(isResource))) {
    parser.problem(`${where}.resources must be an array of { type, id }`);
  }
  if (maxTtlSeconds !== undefined) parser.number(`${where}.maxTtlSeconds`, maxTtlSeconds, 0, { min: 1 });
  return Object.freeze({
    tenantId,
    clientId,
    scopes: Object.freeze([...new Set(scopes as string[])]),
    ...(Array.isArray(resources)
      ? { resources: Object.freeze(resources.map((item) => Object.freeze({ ...item }))) }
      : {}),
    ...(maxTtlSeconds === undefined ? {} : { maxTtlSeconds }),
  });
}

/** Whether every token that matches `one` certainly matches `two`. */
function implies(one: CompiledPolicy, two: CompiledPolicy): boolean {
  if (one.policy.issuer !== two.policy.issuer || one.policy.audience !== two.policy.audience) return false;
  return [...two.matchers].every(([path, matcher]) => {
    const narrower = one.matchers.get(path);
    return narrower !== undefined && covers(matcher, narrower);
  });
}

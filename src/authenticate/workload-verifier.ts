import { OptionsParser } from '../errors/options-parser.js';
import { type Fetch, systemFetch } from '../keys/fetch-json.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { invalidToken } from './compact-jwt.js';
import { createDirectoryContext } from './directory-context.js';
import { tokenIdentity } from './token-identity.js';
import type { VerifiedResult, Verifier } from './verifier.js';
import { parseWorkloadIssuers, WORKLOAD_TOLERANCE_SECONDS, type WorkloadIssuer } from './workload-issuers.js';
import { checkUnambiguous, decideWorkload, parseWorkloadPolicies, type WorkloadPolicy } from './workload-policy.js';

export interface WorkloadVerifierOptions {
  /** The platforms whose tokens are taken. */
  readonly issuers: readonly WorkloadIssuer[];
  /** What their workloads may do. Whatever no policy matches is refused. */
  readonly policies: readonly WorkloadPolicy[];
  /** Default `workload`. */
  readonly name?: string;
  readonly clock?: Clock;
  /** What keys and metadata are fetched with. Default: the platform's `fetch`. */
  readonly fetch?: Fetch;
}

/** How many tokens that are good once are remembered: beyond, it is an outage, since none may be forgotten early. */
const MAX_SEEN = 100_000;

/**
 * Verifies the tokens that platforms give their workloads: Kubernetes projected service-account tokens, GitHub Actions tokens,
 * those of other OpenID issuers. A policy turns one into a subject of the kind `workload` with the tenant, client, scopes and
 * resources of its grant; `authId` is the grant's client.
 *
 * The identity ends with the token, or when the token becomes older than the policy lets it be. Nobody can see here that a pod
 * was deleted meanwhile. A policy with `replay: 'once'` remembers tokens in this process.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function workloadVerifier(
  given: WorkloadVerifierOptions,
): Verifier & Required<Pick<Verifier, 'issuers' | 'revocations' | 'ready' | 'close'>> {
  const parser = new OptionsParser('workloadVerifier');
  const options = parser.known(given, ['issuers', 'policies', 'name', 'clock', 'fetch']);
  const name = options.name === undefined ? 'workload' : parser.string('name', options.name);
  parser.optionalFunction('fetch', options.fetch);
  const parsed = parseWorkloadIssuers(parser, 'issuers', options.issuers);
  const policies = parseWorkloadPolicies(parser, 'policies', options.policies, parsed.known);
  checkUnambiguous(parser, 'policies', policies);
  parser.done();
  const clock = options.clock ?? systemClock;
  const context = createDirectoryContext(name, clock, options.fetch ?? systemFetch);
  const issuers = parsed.create(policies, context);
  const { revocations } = context;
  const seen = new Map<string, number>();

  /** Remembers a token that is good once. @throws AccessError when it was used before. */
  function use(issuer: string, jti: unknown, expiresAt: number, now: number): void {
    const id = JSON.stringify([issuer, jti]);
    if (seen.has(id)) throw invalidToken('the token was used before');
    if (seen.size >= MAX_SEEN) {
      for (const [known, end] of seen) if (end + WORKLOAD_TOLERANCE_SECONDS < now) seen.delete(known);
      if (seen.size >= MAX_SEEN) throw new Error('too many tokens that are good once');
    }
    seen.set(id, expiresAt);
  }

  return {
    name,
    ignoresSignal: true,
    issuers: Object.freeze([...issuers.listed]),
    revocations,
    accepts: ({ scheme, token }) =>
      (scheme === 'bearer' || scheme === 'custom') && token !== undefined && issuers.accepts(token),
    async verify({ token = '' }): Promise<VerifiedResult> {
      const { issuer, claims, keyId, cacheSeconds } = await issuers.verify(token);
      const now = clock.now() / 1_000;
      const decision = decideWorkload(policies, { issuer, claims, now });
      if (!decision.granted) throw invalidToken(decision.reason);
      const { policy, grant, issuedAt, expiresAt } = decision;
      const once = policy.replay === 'once';
      const identity = tokenIdentity(
        {
          subject: { kind: 'workload', id: claims.sub as string },
          issuer,
          authId: grant.clientId,
          tenant: grant.tenantId,
          clientId: grant.clientId,
          tokenId: typeof claims.jti === 'string' && claims.jti !== '' ? claims.jti : undefined,
          keyId,
          scopes: grant.scopes,
          resources: grant.resources,
          issuedAt,
          expiresAt,
          claims,
        },
        name,
      );
      if (once) use(issuer, claims.jti, claims.exp as number, now);
      return {
        identity,
        clockToleranceSeconds: WORKLOAD_TOLERANCE_SECONDS,
        cacheSeconds: once ? 0 : cacheSeconds,
      };
    },
    ready: (signal) => issuers.ready(signal),
    async close(signal) {
      await issuers.close(signal);
      await revocations.close(signal);
    },
  };
}

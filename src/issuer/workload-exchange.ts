import type { IncomingMessage } from 'node:http';
import { invalidToken } from '../authenticate/compact-jwt.js';
import { createDirectoryContext } from '../authenticate/directory-context.js';
import { tokenIdentity } from '../authenticate/token-identity.js';
import type { Verifier } from '../authenticate/verifier.js';
import { VerifierChain } from '../authenticate/verifier-chain.js';
import {
  type ParsedWorkloadIssuers,
  WORKLOAD_TOLERANCE_SECONDS,
  type WorkloadIssuers,
} from '../authenticate/workload-issuers.js';
import { type CompiledPolicy, decideWorkload, type WorkloadDecision } from '../authenticate/workload-policy.js';
import { isAccessError } from '../errors/access-error.js';
import { OAuthError } from '../errors/oauth-error.js';
import type { Identity } from '../identity/ambient.cjs';
import type { Fetch } from '../keys/fetch-json.js';
import type { Revocations } from '../revocation/revocations.js';
import type { Clock } from '../runtime/clock.js';
import type { Lifecycle } from '../runtime/lifecycle.js';
import { type ReplayStore, takeOnce } from './replay-store.js';
import type { Actor, Grantor } from './service-client.js';

export interface WorkloadExchangeSettings {
  readonly issuers: ParsedWorkloadIssuers;
  readonly policies: readonly CompiledPolicy[];
  readonly revocations: Revocations;
  readonly replayStore: ReplayStore;
  readonly defaultTtlSeconds: number;
  readonly maxTtlSeconds: number;
  readonly clock: Clock;
  readonly fetch: Fetch;
}

/** What a workload may be issued. */
export interface WorkloadAdmission {
  readonly grantor: Grantor;
  /** Epoch seconds: when the workload's own token ends, for this policy. What is issued from it ends no later. */
  readonly notAfter: number;
}

type Granted = Extract<WorkloadDecision, { granted: true }>;

const NAME = 'workload';

/** Turns a platform's token into a grantor: the very policies that `workloadVerifier` decides by. */
export class WorkloadExchange implements Lifecycle {
  readonly #settings: WorkloadExchangeSettings;
  readonly #issuers: WorkloadIssuers;
  readonly #context: ReturnType<typeof createDirectoryContext>;

  constructor(settings: WorkloadExchangeSettings) {
    this.#settings = settings;
    this.#context = createDirectoryContext(NAME, settings.clock, settings.fetch);
    this.#issuers = settings.issuers.create(settings.policies, this.#context);
  }

  get listed(): readonly string[] {
    return this.#issuers.listed;
  }

  /**
   * @param policy the policy that the caller names; without it exactly one must match.
   * @throws OAuthError `invalid_request` when the token is refused (RFC 8693 §2.2.2); `temporarily_unavailable` in an outage.
   */
  async admit(req: IncomingMessage, token: string, policy: string | undefined): Promise<WorkloadAdmission> {
    const { revocations, clock, defaultTtlSeconds } = this.#settings;
    const decided: { last?: Granted } = {};
    const verifier: Verifier = {
      name: NAME,
      accepts: () => this.#issuers.accepts(token),
      verify: async () => {
        const { issuer, claims, keyId } = await this.#issuers.verify(token);
        const now = clock.now() / 1_000;
        const decision = decideWorkload(this.#settings.policies, { issuer, claims, now, policy });
        if (!decision.granted) throw invalidToken(decision.reason);
        decided.last = decision;
        const { grant, issuedAt, expiresAt } = decision;
        const identity = tokenIdentity(
          {
            subject: { kind: 'workload', id: claims.sub as string },
            issuer,
            authId: grant.clientId,
            tenant: grant.tenantId,
            clientId: grant.clientId,
            tokenId: typeof claims.jti === 'string' && claims.jti !== '' ? claims.jti : undefined,
            keyId,
            issuedAt,
            expiresAt,
          },
          NAME,
        );
        return { identity, cacheSeconds: 0, clockToleranceSeconds: WORKLOAD_TOLERANCE_SECONDS };
      },
    };
    // The middleware's own chain: what is revoked for it is revoked here.
    const chain = new VerifierChain([verifier], revocations, clock);
    const presented = { req, scheme: 'bearer', token } as const;
    try {
      if (!verifier.accepts(presented)) throw invalidToken('the token is no JWT of a listed platform');
      const { identity } = await chain.decide(verifier, presented);
      const { grant, expiresAt, policy: matched } = decided.last as Granted;
      if (matched.replay === 'once') await this.#useOnce(identity?.issuer, identity?.tokenId, expiresAt);
      const maxTtlSeconds = Math.min(this.#settings.maxTtlSeconds, grant.maxTtlSeconds ?? Number.POSITIVE_INFINITY);
      const grantor: Grantor = {
        clientId: grant.clientId,
        tenant: grant.tenantId,
        scopes: grant.scopes,
        ...(grant.resources === undefined ? {} : { resources: grant.resources }),
        // The policy is the operator's word: without resources in it, no constraint is stated.
        unconstrained: grant.resources === undefined,
        defaultTtlSeconds: Math.min(defaultTtlSeconds, maxTtlSeconds),
        maxTtlSeconds,
        ...(identity === undefined ? {} : { actor: actorOf(identity) }),
      };
      return { grantor, notAfter: expiresAt };
    } catch (error) {
      if (!isAccessError(error)) throw error;
      if (error.status >= 500) throw unavailable(error.reason);
      throw new OAuthError('invalid_request', 'the subject token is refused', { reason: error.reason });
    }
  }

  ready(signal?: AbortSignal): Promise<void> {
    return this.#issuers.ready(signal);
  }

  async close(signal?: AbortSignal): Promise<void> {
    await this.#issuers.close(signal);
    await this.#context.revocations.close(signal);
  }

  async #useOnce(issuer: string | undefined, jti: string | undefined, expiresAt: number): Promise<void> {
    // An array of three: never the id of a client's assertion.
    const id = JSON.stringify([NAME, issuer, jti]);
    let isFirst: boolean;
    try {
      isFirst = await takeOnce(this.#settings.replayStore, id, expiresAt + WORKLOAD_TOLERANCE_SECONDS);
    } catch {
      throw unavailable('the replay store failed');
    }
    if (!isFirst) throw invalidToken('the token was used before');
  }
}

function actorOf({ issuer, subject }: Identity): Actor {
  return { iss: issuer, sub: subject.id, kind: 'workload' };
}

function unavailable(reason: string | undefined): OAuthError {
  return new OAuthError('temporarily_unavailable', 'subject tokens cannot be checked at the moment', { reason });
}

import type { IncomingMessage } from 'node:http';
import { jwtVerifier } from '../authenticate/jwt-verifier.js';
import { opaqueTokenVerifier } from '../authenticate/opaque-token-verifier.js';
import { OAuthError } from '../errors/oauth-error.js';
import type { Resource, Scope } from '../identity/ambient.cjs';
import { createRevocations } from '../revocation/create-revocations.js';
import { memoryRevocationStore } from '../revocation/memory-revocation-store.js';
import type { Revocations } from '../revocation/revocations.js';
import type { Lifecycle } from '../runtime/lifecycle.js';
import { ClientAssertions } from './client-assertion.js';
import { ClientAuthentication } from './client-authentication.js';
import { IntrospectionEndpoint } from './introspection-endpoint.js';
import { createIssuerHandler, type IssuerHandler } from './issuer-handler.js';
import { issuerMetadata } from './issuer-metadata.js';
import { type IssuerOptions, parseIssuerOptions } from './issuer-options.js';
import { readForm, readJsonObject } from './read-form.js';
import { RevocationEndpoint } from './revocation-endpoint.js';
import { type ServiceToken, ServiceTokenEndpoint } from './service-token-endpoint.js';
import { TokenEndpoint } from './token-endpoint.js';
import { TokenInspection } from './token-inspection.js';
import { TokenMint } from './token-mint.js';
import { WorkloadExchange } from './workload-exchange.js';

/** What `issueServiceToken` is asked for. */
export interface IssueServiceToken {
  /** The tenant that the token is for: the client's own, or any for one with `crossTenant`. */
  readonly tenantId: string;
  /** A configured client. */
  readonly clientId: string;
  readonly scopes: readonly Scope[];
  /** The only resource that the token is for. */
  readonly resource?: Resource;
  /** Above 0. More than `maxTtlSeconds` is clamped to it. */
  readonly ttlSeconds: number;
}

/** Issues short-lived access tokens to configured services, and answers for them. */
export interface Issuer extends Lifecycle {
  readonly issuer: string;
  /** What is denied: hand it to `authenticate({ revocations })` in the same process. */
  readonly revocations: Revocations;
  /**
   * A token for one tenant (RFC 9068).
   *
   * @throws OAuthError with the `code` that the endpoint would answer.
   */
  issueServiceToken(request: IssueServiceToken): Promise<ServiceToken>;
  /**
   * A Connect middleware for the issuer's endpoints, below where it is mounted: `POST /oauth/token`, `/oauth/introspect`,
   * `/oauth/revoke`, `/service-tokens`, and `GET /.well-known/jwks.json`, `/.well-known/oauth-authorization-server`. It goes on
   * with `next()` for any other path, and answers 404 where there is no next.
   */
  handler(): IssuerHandler;
}

/** Seconds by which clocks may differ (5) and processes of the issuer may lag behind each other (60). */
const KEEP_MARGIN_SECONDS = 65;

/**
 * Issues tokens to configured clients, statelessly: nothing is stored but the ids of used assertions and what is revoked.
 *
 * Only the configured clients become `service` subjects, by which of them was authenticated.
 *
 * @throws TypeError that lists every problem, of every client too.
 */
export function createIssuer(options: IssuerOptions): Issuer {
  const settings = parseIssuerOptions(options);
  const { issuer, audiences, keyRing, clients, clock, maxBodyBytes } = settings;
  const revocations =
    settings.revocations ??
    settings.registry?.revocations ??
    createRevocations({ store: memoryRevocationStore(), clock, random: settings.random });
  const { registry } = settings;
  // Whatever it signs must be verifiable until it has ended.
  keyRing.keepAtLeast(settings.maxTtlSeconds + KEEP_MARGIN_SECONDS);
  const verifier = jwtVerifier({
    name: 'issuer',
    issuer,
    audience: audiences,
    algorithms: ['ES256', 'Ed25519', 'RS256'],
    keys: { keyRing },
    type: 'at+jwt',
    map: settings.claimNames,
    clock,
  });
  const mint = new TokenMint({ ...settings, revocations });
  const authentication = new ClientAuthentication(clients, new ClientAssertions(settings));
  const inspection = new TokenInspection(
    issuer,
    registry === undefined ? [verifier] : [verifier, opaqueTokenVerifier({ registry })],
    revocations,
    clock,
  );
  const workloads =
    settings.workloads === undefined
      ? undefined
      : new WorkloadExchange({ ...settings, ...settings.workloads, revocations });
  const tokens = new TokenEndpoint({ ...settings, authentication, mint, workloads });
  const serviceTokens = new ServiceTokenEndpoint({ ...settings, authentication, mint, workloads });
  const introspection = new IntrospectionEndpoint({ authentication, inspection });
  const revocation = new RevocationEndpoint({
    authentication,
    inspection,
    revocations,
    revokeOpaque: registry === undefined ? undefined : (tokenId) => registry.revokeToken(tokenId),
    foreignIssuers: workloads?.listed ?? [],
  });
  const granted = settings.workloads?.policies.flatMap(({ policy }) => policy.grant.scopes) ?? [];
  const scopes = [...new Set([...[...clients.values()].flatMap((client) => client.scopes), ...granted])].sort();
  const form = (req: IncomingMessage) => readForm(req, maxBodyBytes);
  const handler = createIssuerHandler({
    ...settings,
    metadata: issuerMetadata(issuer, scopes, workloads !== undefined),
    endpoints: {
      token: async (req) => tokens.answer(req, await form(req)),
      introspection: async (req) => introspection.answer(req, await form(req)),
      revocation: async (req) => revocation.answer(req, await form(req)),
      serviceTokens: async (req) => serviceTokens.answer(req, await readJsonObject(req, maxBodyBytes)),
    },
  });

  return {
    issuer,
    revocations,
    handler: () => handler,
    async issueServiceToken({ clientId, ...request }) {
      const client = clients.get(clientId);
      if (client === undefined) throw new OAuthError('invalid_client', 'no such client is configured');
      if (request.tenantId === undefined) throw new OAuthError('invalid_request', 'tenantId must be a string');
      if (request.ttlSeconds === undefined) throw new OAuthError('invalid_request', 'ttlSeconds must be a number');
      return serviceTokens.issue(client, request);
    },
    async ready(signal) {
      await Promise.all([keyRing, revocations, registry, workloads].map((part) => part?.ready(signal)));
    },
    async close(signal) {
      await verifier.close(signal);
      await workloads?.close(signal);
      if (settings.revocations === undefined && registry === undefined) await revocations.close(signal);
    },
  };
}

import type { IncomingMessage } from 'node:http';
import { isOAuthError, OAuthError } from '../errors/oauth-error.js';
import { parseAuthorization, repeatsAuthorization } from '../http/authorization.js';
import type { Resource } from '../identity/ambient.cjs';
import { isScopeToken } from '../identity/create-identity.js';
import type { ClientAuthentication } from './client-authentication.js';
import { decideGrant } from './grant.js';
import type { Grantor } from './service-client.js';
import { type Answer, bareResource } from './token-endpoint.js';
import type { TokenMint } from './token-mint.js';
import type { WorkloadExchange } from './workload-exchange.js';

/** What a service token is asked for. */
export interface ServiceTokenRequest {
  readonly tenantId?: unknown;
  readonly scopes: unknown;
  readonly resource?: Resource;
  readonly ttlSeconds?: unknown;
}

/** A service token, as `issueServiceToken` resolves to. */
export interface ServiceToken {
  readonly token: string;
  /** The token's `jti`. */
  readonly tokenId: string;
  /** Epoch seconds: the token's `exp`. */
  readonly expiresAt: number;
  readonly scopes: readonly string[];
  /** Whether the lifetime that was asked for was longer than what is granted. */
  readonly clamped: boolean;
}

const FIELDS: readonly string[] = [
  'tenant_id',
  'scopes',
  'resource_id',
  'ttl_seconds',
  'policy',
  'client_id',
  'client_secret',
  'client_assertion',
  'client_assertion_type',
];

export interface ServiceTokenSettings {
  readonly authentication: ClientAuthentication;
  readonly mint: TokenMint;
  readonly resourceType: string | undefined;
  readonly workloads: WorkloadExchange | undefined;
}

/** `POST /service-tokens`: a token for one tenant, without a browser. */
export class ServiceTokenEndpoint {
  readonly #settings: ServiceTokenSettings;

  constructor(settings: ServiceTokenSettings) {
    this.#settings = settings;
  }

  /** @throws OAuthError. */
  async answer(req: IncomingMessage, body: Readonly<Record<string, unknown>>): Promise<Answer> {
    const { resourceType } = this.#settings;
    const { grantor, notAfter } = await this.#caller(req, body);
    // A misspelt constraint must not turn into none.
    if (!Object.keys(body).every((name) => FIELDS.includes(name))) {
      throw new OAuthError('invalid_request', 'the body has a member that is unknown');
    }
    const resourceId = text(body, 'resource_id');
    const request: ServiceTokenRequest = {
      tenantId: body.tenant_id,
      scopes: body.scopes,
      ...(resourceId === undefined ? {} : { resource: bareResource(resourceId, resourceType) }),
      ttlSeconds: body.ttl_seconds ?? undefined,
    };
    const issued = await this.issue(grantor, request, notAfter);
    return {
      token: issued.token,
      token_id: issued.tokenId,
      expires_at: issued.expiresAt,
      scopes: issued.scopes,
      clamped: issued.clamped,
    };
  }

  /** Who asks: a client by its secret or assertion, or a workload by its platform's token. */
  async #caller(req: IncomingMessage, body: Readonly<Record<string, unknown>>): Promise<Caller> {
    const { authentication, workloads } = this.#settings;
    const credentials = {
      clientId: text(body, 'client_id'),
      clientSecret: text(body, 'client_secret'),
      clientAssertion: text(body, 'client_assertion'),
      clientAssertionType: text(body, 'client_assertion_type'),
    };
    const bearer = workloads === undefined ? undefined : bearerToken(req);
    if (workloads === undefined || bearer === undefined) {
      return { grantor: await authentication.client(req, credentials), notAfter: undefined };
    }
    if (Object.values(credentials).some((credential) => credential !== undefined)) {
      throw malformed('the client authenticates in more than one way');
    }
    try {
      return await workloads.admit(req, bearer, text(body, 'policy'));
    } catch (error) {
      // Here the platform's token is what authenticates the call.
      if (!isOAuthError(error) || error.code !== 'invalid_request') throw error;
      throw new OAuthError('invalid_client', 'client authentication failed', { reason: error.reason });
    }
  }

  /** A token within what the grantor has. @throws OAuthError. */
  async issue(grantor: Grantor, request: ServiceTokenRequest, notAfter?: number): Promise<ServiceToken> {
    const { scopes, resource, ttlSeconds } = request;
    const tenantId = request.tenantId ?? grantor.tenant;
    if (typeof tenantId !== 'string' || tenantId === '') throw malformed('tenant_id must be a string');
    if (!Array.isArray(scopes)) throw malformed('scopes must be an array of strings');
    if (!scopes.every(isScopeToken)) throw new OAuthError('invalid_scope', 'a scope is malformed');
    if (ttlSeconds !== undefined && typeof ttlSeconds !== 'number') throw malformed('ttl_seconds must be a number');
    const grant = decideGrant(grantor, {
      tenantId,
      scopes,
      resources: resource === undefined ? [] : [resource],
      audience: [],
      ...(ttlSeconds === undefined ? {} : { ttlSeconds }),
    });
    const { token, tokenId, expiresAt } = await this.#settings.mint.mint(grant, notAfter);
    return { token, tokenId, expiresAt, scopes: grant.scopes, clamped: grant.clamped };
  }
}

/** Who asks for a service token. */
interface Caller {
  readonly grantor: Grantor;
  readonly notAfter: number | undefined;
}

/** The bearer token of the header; two headers are refused by whoever looks at them next. */
function bearerToken(req: IncomingMessage): string | undefined {
  const { authorization } = req.headers;
  if (authorization === undefined || repeatsAuthorization(req.rawHeaders)) return undefined;
  const parsed = parseAuthorization(authorization);
  return parsed?.scheme === 'bearer' ? parsed.token : undefined;
}

/** A member that is text; `null` counts as absent. The empty text does not: a constraint that got lost must not turn into none. */
function text(body: Readonly<Record<string, unknown>>, name: string): string | undefined {
  const value = Object.hasOwn(body, name) ? body[name] : undefined;
  if (value === undefined || value === null) return undefined;
  if (typeof value !== 'string' || value === '') throw malformed('a member of the body is no text');
  return value;
}

function malformed(description: string): OAuthError {
  return new OAuthError('invalid_request', description);
}

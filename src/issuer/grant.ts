import { OAuthError } from '../errors/oauth-error.js';
import type { Resource } from '../identity/ambient.cjs';
import type { Actor, Grantor } from './service-client.js';

/** What a caller asks for, within what it may have. */
export interface GrantRequest {
  /** Absent: every scope of the grantor. */
  readonly scopes?: readonly string[];
  /** Absent: the grantor's own. */
  readonly tenantId?: string;
  /** The resources that are named. Empty: none is. */
  readonly resources: readonly Resource[];
  /** Whom the token is for. Empty: every audience of the issuer. */
  readonly audience: readonly string[];
  /** Seconds; absent: the grantor's default. */
  readonly ttlSeconds?: number;
}

/** What is granted: never more than the grantor has, whatever was asked for. */
export interface Grant {
  readonly clientId: string;
  readonly tenant?: string;
  readonly scopes: readonly string[];
  /** Absent: no constraint is stated, which is no wildcard. */
  readonly resources?: readonly Resource[];
  readonly audience: readonly string[];
  /** Who acts for the client: the workload whose token was exchanged. */
  readonly actor?: Actor;
  readonly ttlSeconds: number;
  /** The lifetime that was asked for is longer than what is granted. */
  readonly clamped: boolean;
}

/**
 * The one place where it is decided what a token may hold.
 *
 * @throws OAuthError `invalid_scope`, `tenant_mismatch`, `invalid_target`, `invalid_request`.
 */
export function decideGrant(grantor: Grantor, request: GrantRequest): Grant {
  const { clientId, tenant, actor } = grantor;
  // The tenant is the grantor's. Only one that acts for any tenant is asked which.
  if (tenant !== undefined && request.tenantId !== undefined && request.tenantId !== tenant) {
    throw new OAuthError('tenant_mismatch', 'the client may not act for this tenant');
  }
  const scopes = request.scopes === undefined ? grantor.scopes : [...new Set(request.scopes)];
  if (!scopes.every((scope) => grantor.scopes.includes(scope))) {
    throw new OAuthError('invalid_scope', 'the client may not have a scope that was asked for');
  }
  const resources = decideResources(grantor, request.resources);
  const asked = request.ttlSeconds === undefined ? grantor.defaultTtlSeconds : Math.floor(request.ttlSeconds);
  if (!(asked >= 1)) throw new OAuthError('invalid_request', 'the lifetime must be at least one second');
  const ttlSeconds = Math.min(asked, grantor.maxTtlSeconds);
  const stated = tenant ?? request.tenantId;
  return {
    clientId,
    ...(stated === undefined ? {} : { tenant: stated }),
    scopes,
    ...(resources === undefined ? {} : { resources }),
    audience: request.audience,
    ...(actor === undefined ? {} : { actor }),
    ttlSeconds,
    clamped: ttlSeconds < asked,
  };
}

/** Whether a grantor may touch a resource that is named. */
export function isOwn({ resources }: Pick<Grantor, 'resources'>, { type, id }: Resource): boolean {
  return resources === undefined || resources.some((own) => own.type === type && own.id === id);
}

function decideResources(grantor: Grantor, named: readonly Resource[]): readonly Resource[] | undefined {
  const { resources, unconstrained } = grantor;
  if (named.length === 0) {
    if (resources === undefined && !unconstrained) {
      throw new OAuthError('invalid_target', 'the client must name a resource');
    }
    return resources;
  }
  if (!named.every((resource) => isOwn(grantor, resource)))
    throw new OAuthError('invalid_target', 'the client may not use a resource that was named');
  return named;
}

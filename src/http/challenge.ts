import type { AccessError } from '../errors/access-error.js';
import { isScopeToken } from '../identity/create-identity.js';

/** What a `WWW-Authenticate` challenge says beside the error. */
export interface ChallengeSettings {
  readonly realm?: string;
  /** URL of the protected-resource metadata (RFC 9728 §5.1). */
  readonly resourceMetadata?: string;
}

/** RFC 6750 §3 characters of a quoted auth-param that need no escape: a realm or URL with others is refused at construction. */
export function isChallengeText(value: unknown): value is string {
  return typeof value === 'string' && /^[\x20-\x21\x23-\x5B\x5D-\x7E]+$/.test(value);
}

/**
 * The `WWW-Authenticate` value of a refusal (RFC 6750 §3): one Bearer challenge, each auth-param once and quoted; on 401
 * and `insufficient_scope` only. Without any credential it has no `error` (§3.1).
 */
export function challengeFor(error: AccessError, settings: ChallengeSettings): string | undefined {
  if (error.status !== 401 && error.code !== 'insufficient_scope') return undefined;
  const params: string[] = [];
  if (settings.realm !== undefined) params.push(`realm="${settings.realm}"`);
  if (error.code !== 'missing_credentials') {
    params.push(`error="${error.code}"`, `error_description="${error.detail}"`);
  }
  if (error.code === 'insufficient_scope' && error.scopes !== undefined && error.scopes.length > 0) {
    // A custom verifier may put anything there: what is no scope cannot stand in the header.
    params.push(`scope="${error.scopes.filter(isScopeToken).join(' ')}"`);
  }
  if (settings.resourceMetadata !== undefined) params.push(`resource_metadata="${settings.resourceMetadata}"`);
  return params.length === 0 ? 'Bearer' : `Bearer ${params.join(', ')}`;
}

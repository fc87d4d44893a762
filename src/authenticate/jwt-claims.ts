import { invalidToken } from './compact-jwt.js';

/** What the registered claims of a token must be (RFC 7519 §4.1). */
export interface ClaimRules {
  /** Accepted audiences; null waives the check. */
  readonly audience: readonly string[] | null;
  readonly clockToleranceSeconds: number;
  readonly maxTokenAgeSeconds: number | undefined;
}

/** When a token was issued and when it ends, in seconds since the epoch. */
export interface TokenTimes {
  readonly issuedAt: number | undefined;
  readonly expiresAt: number;
}

/** NumericDates beyond the range of ECMAScript dates are nonsense. */
const MAX_INSTANT = 8.64e12;

/**
 * Checks `exp`, `nbf`, `iat` and `aud`.
 *
 * @param now seconds since the epoch.
 * @throws AccessError `invalid_token`.
 */
export function checkClaims(claims: Readonly<Record<string, unknown>>, rules: ClaimRules, now: number): TokenTimes {
  const { clockToleranceSeconds: tolerance, maxTokenAgeSeconds: maxAge } = rules;
  const exp = instantOf(claims, 'exp');
  const nbf = instantOf(claims, 'nbf');
  const iat = instantOf(claims, 'iat');
  if (exp === undefined) throw invalidToken('the token has no expiry');
  if (maxAge !== undefined && iat === undefined) throw invalidToken('the token does not say when it was issued');
  const expiresAt = maxAge === undefined ? exp : Math.min(exp, (iat as number) + maxAge);
  if (!(now < expiresAt + tolerance)) throw invalidToken('the token has expired');
  if (nbf !== undefined && nbf > now + tolerance) throw invalidToken('the token is not valid yet');
  if (iat !== undefined && iat > now + tolerance) throw invalidToken('the token was issued in the future');
  checkAudience(Object.hasOwn(claims, 'aud') ? claims.aud : undefined, rules.audience);
  return { issuedAt: iat, expiresAt };
}

/** A NumericDate (RFC 7519 §2). @throws AccessError `invalid_token` for what is no instant. */
export function instantOf(claims: Readonly<Record<string, unknown>>, name: 'exp' | 'nbf' | 'iat'): number | undefined {
  const value = Object.hasOwn(claims, name) ? claims[name] : undefined;
  if (value === undefined) return undefined;
  if (typeof value === 'number' && Math.abs(value) <= MAX_INSTANT) return value;
  throw invalidToken(`${name} is no instant`);
}

/** @throws AccessError `invalid_token` unless one of the accepted audiences is stated; null accepts any, and none. */
export function checkAudience(stated: unknown, accepted: readonly string[] | null): void {
  if (stated === undefined && accepted === null) return;
  const audiences: unknown[] = Array.isArray(stated) ? stated : [stated];
  if (!audiences.every((audience) => typeof audience === 'string')) throw invalidToken('the token has no audience');
  if (accepted === null || audiences.some((audience) => accepted.includes(audience as string))) return;
  throw invalidToken('the token is meant for another audience');
}

/**
 * What RFC 9068 §2.2 demands of an access token beside `iss`, `exp` and `aud`.
 *
 * @throws AccessError `invalid_token`.
 */
export function checkAccessTokenClaims(claims: Readonly<Record<string, unknown>>): void {
  for (const name of ['sub', 'client_id', 'jti']) {
    const value = Object.hasOwn(claims, name) ? claims[name] : undefined;
    if (typeof value !== 'string' || value === '') throw invalidToken(`the access token lacks ${name}`);
  }
  if (!Object.hasOwn(claims, 'iat')) throw invalidToken('the access token lacks iat');
}

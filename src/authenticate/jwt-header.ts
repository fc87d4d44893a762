import { canonicalAlgorithm, type JwtAlgorithm } from '../keys/jwt-algorithm.js';
import { decodeObject, invalidToken } from './compact-jwt.js';

/** What a verifier needs of a JOSE header (RFC 7515 §4). */
export interface JwtHeader {
  readonly algorithm: JwtAlgorithm;
  readonly kid: string | undefined;
  /** The media type, in lower case and without `application/`. */
  readonly type: string | undefined;
}

/** Types of a JWT that may be an access token without being named in `type`. */
const GENERIC_TYPES: readonly (string | undefined)[] = [undefined, 'jwt', 'at+jwt'];

/** Types that are meant for something else and are no access token under any configuration (RFC 8725 §3.12). */
const FOREIGN_TYPES: ReadonlySet<string> = new Set([
  'client-authentication+jwt',
  'dc+sd-jwt',
  'dpop+jwt',
  'entity-statement+jwt',
  'jwk-set+jwt',
  'kb+jwt',
  'logout+jwt',
  'oauth-authz-req+jwt',
  'oauth-client-attestation+jwt',
  'oauth-client-attestation-pop+jwt',
  'openid4vci-proof+jwt',
  'secevent+jwt',
  'statuslist+jwt',
  'token-introspection+jwt',
  'trust-mark+jwt',
  'vc+sd-jwt',
  'vp+jwt',
]);

/** A media type as `typ` abbreviates it (RFC 7515 §4.1.9): compared without case, `application/` may be left out. */
export function shortType(type: string): string {
  return type.toLowerCase().replace(/^application\//, '');
}

/** Whether a type is meant for something else than access tokens. */
export function isForeignType(type: string): boolean {
  return FOREIGN_TYPES.has(shortType(type));
}

/**
 * Whether a token of that type is taken.
 *
 * @param wanted the only type that is taken, and none that `isForeignType`; undefined takes untyped tokens, `JWT` and `at+jwt`.
 */
export function isWantedType(type: string | undefined, wanted: string | undefined): boolean {
  return wanted === undefined ? GENERIC_TYPES.includes(type) : type === wanted;
}

/**
 * Reads a header segment. `jku`, `x5u`, `jwk` and `x5c` are the sender's own words about the key: they are neither read nor
 * fetched.
 *
 * @throws AccessError `invalid_token`.
 */
export function readHeader(segment: string): JwtHeader {
  const header = decodeObject(segment);
  const own = (name: string): unknown => (Object.hasOwn(header, name) ? header[name] : undefined);
  const alg = own('alg');
  const kid = own('kid');
  const typ = own('typ');
  if (typeof alg !== 'string') throw invalidToken('the header has no algorithm');
  // No extension is understood here, so any that is critical must be refused (RFC 7515 §4.1.11); `b64` is one (RFC 7797).
  if (own('crit') !== undefined || own('b64') !== undefined) throw invalidToken('the header has critical extensions');
  if (own('enc') !== undefined) throw invalidToken('the token is encrypted');
  if (kid !== undefined && (typeof kid !== 'string' || kid === '')) throw invalidToken('the header has a bad kid');
  if (typ !== undefined && typeof typ !== 'string') throw invalidToken('the header has a bad typ');
  return {
    algorithm: canonicalAlgorithm(alg),
    kid: kid as string | undefined,
    type: typ === undefined ? undefined : shortType(typ as string),
  };
}

import { describeFailure, FetchError } from './fetch-json.js';

/**
 * Where an issuer's metadata may be: OpenID Connect Discovery 1.0 §4 appends its well-known segment to the issuer,
 * RFC 8414 §3.1 puts its own between host and path. Both drop a slash at the issuer's end.
 */
export function metadataUrls(issuer: string): string[] {
  const { origin, pathname } = new URL(issuer);
  const path = pathname.replace(/\/$/, '');
  return [
    `${origin}${path}/.well-known/openid-configuration`,
    `${origin}/.well-known/oauth-authorization-server${path}`,
  ];
}

/**
 * Finds an issuer's `jwks_uri`.
 *
 * @param get fetches a JSON document.
 * @param isAllowed whether keys may be fetched from that URL.
 * @throws FetchError when neither location has metadata of this very issuer.
 */
export async function discoverJwksUri(
  issuer: string,
  get: (url: string) => Promise<unknown>,
  isAllowed: (url: string) => boolean,
): Promise<string> {
  const reasons: string[] = [];
  for (const url of metadataUrls(issuer)) {
    let metadata: unknown;
    try {
      metadata = await get(url);
    } catch (error) {
      reasons.push(describeFailure(error));
      continue;
    }
    const { issuer: stated, jwks_uri: jwksUri } = (metadata ?? {}) as Record<string, unknown>;
    // RFC 8414 §3.3: identical, byte for byte, or the keys of another issuer would be trusted.
    if (stated !== issuer) reasons.push('its metadata names another issuer');
    else if (typeof jwksUri !== 'string' || !isAllowed(jwksUri)) reasons.push('its metadata has no usable jwks_uri');
    else return jwksUri;
  }
  throw new FetchError(`discovery failed: ${reasons.join('; ')}`);
}

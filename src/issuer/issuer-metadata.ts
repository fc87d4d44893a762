import { ASSERTION_ALGORITHMS } from './service-client.js';

export const CLIENT_CREDENTIALS = 'client_credentials';
export const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';

/** Where the issuer's endpoints stand, below its own URL. */
export const PATHS = {
  token: '/oauth/token',
  introspection: '/oauth/introspect',
  revocation: '/oauth/revoke',
  serviceTokens: '/service-tokens',
  jwks: '/.well-known/jwks.json',
  metadata: '/.well-known/oauth-authorization-server',
} as const;

const METHODS = ['client_secret_basic', 'client_secret_post', 'private_key_jwt'] as const;

/** Authorization server metadata (RFC 8414 §2). No member is an empty array: there are no response types, so none is stated. */
export function issuerMetadata(
  issuer: string,
  scopes: readonly string[],
  exchanges: boolean,
): Readonly<Record<string, unknown>> {
  const base = issuer.endsWith('/') ? issuer.slice(0, -1) : issuer;
  const metadata: Record<string, unknown> = {
    issuer,
    token_endpoint: `${base}${PATHS.token}`,
    jwks_uri: `${base}${PATHS.jwks}`,
    grant_types_supported: exchanges ? [CLIENT_CREDENTIALS, TOKEN_EXCHANGE] : [CLIENT_CREDENTIALS],
  };
  for (const endpoint of ['token', 'introspection', 'revocation'] as const) {
    metadata[`${endpoint}_endpoint`] = `${base}${PATHS[endpoint]}`;
    metadata[`${endpoint}_endpoint_auth_methods_supported`] = METHODS;
    metadata[`${endpoint}_endpoint_auth_signing_alg_values_supported`] = ASSERTION_ALGORITHMS;
  }
  if (scopes.length > 0) metadata.scopes_supported = scopes;
  return metadata;
}

import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { type JWK, SignJWT } from 'jose';
import { createKeyRing, type KeyRing } from 'tollkeeper';
import { createIssuer, hashClientSecret, type Issuer, type IssuerOptions } from 'tollkeeper/issuer';
import { type Served, serve } from '../support/index.js';

export const ISSUER = 'https://issuer.example';
export const AUDIENCE = 'https://api.example';
export const SECRET = 'ci-secret_0123456789.ABCDEF';
export const OLD_SECRET = 'old-secret_0123456789.ABCDEF';

const pair = generateKeyPairSync('ec', { namedCurve: 'P-256' });
/** The key of the client `signer`. */
export const CLIENT_KEY: KeyObject = pair.privateKey;
export const CLIENT_JWK = pair.publicKey.export({ format: 'jwk' }) as JWK;

export interface Fixture extends Served {
  readonly issuer: Issuer;
  readonly keyRing: KeyRing;
  /** Reasons of the refusals. */
  readonly reasons: (string | undefined)[];
  /** A form to an endpoint, as `ci` with its secret in the header unless `headers` say otherwise. */
  post(
    path: string,
    form: Record<string, string> | string | URLSearchParams,
    headers?: Record<string, string>,
  ): Promise<Response>;
  /** JSON to `/service-tokens`, as `ci`. */
  serviceToken(body: unknown, headers?: Record<string, string>): Promise<Response>;
  /** A token of the token endpoint, as `ci`. */
  token(form?: Record<string, string>): Promise<string>;
}

/** Five clients, a key ring and a server on a free port. */
export async function issuerFixture(options: Partial<IssuerOptions> = {}): Promise<Fixture> {
  const keyRing =
    options.keyRing ?? (await createKeyRing({ ...(options.clock === undefined ? {} : { clock: options.clock }) }));
  const reasons: (string | undefined)[] = [];
  const issuer = createIssuer({
    issuer: ISSUER,
    audience: AUDIENCE,
    keyRing,
    maxTtlSeconds: 3_600,
    resourceType: 'repository',
    clients: CLIENTS,
    onReject: (error) => reasons.push(error.reason),
    ...options,
  });
  const handler = issuer.handler();
  const served = await serve((req, res) => handler(req, res));
  const post: Fixture['post'] = (path, form, headers = { authorization: basic('ci', SECRET) }) =>
    fetch(`${served.url}${path}`, {
      method: 'POST',
      headers: { 'content-type': 'application/x-www-form-urlencoded', ...headers },
      body: new URLSearchParams(form).toString(),
    });
  return {
    ...served,
    issuer,
    keyRing,
    reasons,
    post,
    serviceToken: (body, headers = { authorization: basic('ci', SECRET) }) =>
      fetch(`${served.url}/service-tokens`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: typeof body === 'string' ? body : JSON.stringify(body),
      }),
    async token(form = {}) {
      const response = await post('/oauth/token', { grant_type: 'client_credentials', ...form });
      return ((await response.json()) as { access_token: string }).access_token;
    },
  };
}

export const CLIENTS: IssuerOptions['clients'] = [
  {
    id: 'ci',
    name: 'Continuous integration',
    secretHashes: [hashClientSecret(SECRET), hashClientSecret(OLD_SECRET)],
    scopes: ['repo:read', 'usage:read'],
    tenant: 'acme',
    unconstrainedResources: true,
    ttlSeconds: 600,
  },
  {
    id: 'other',
    secretHashes: [hashClientSecret(SECRET)],
    scopes: ['repo:read', 'usage:read'],
    tenant: 'acme',
    unconstrainedResources: true,
  },
  {
    id: 'pinned',
    secretHashes: [hashClientSecret(SECRET)],
    scopes: ['repo:read'],
    tenant: 'acme',
    resources: [
      { type: 'repository', id: 'A' },
      { type: 'repository', id: 'B' },
    ],
  },
  {
    id: 'signer',
    jwks: { keys: [CLIENT_JWK] },
    scopes: ['repo:read'],
    crossTenant: true,
    unconstrainedResources: true,
  },
  { id: 'naming', secretHashes: [hashClientSecret(SECRET)], scopes: [], tenant: 'acme' },
];

export function basic(id: string, secret: string): string {
  return `Basic ${Buffer.from(`${id}:${secret}`).toString('base64')}`;
}

/** A client assertion of `signer`; claims and header members replace the good ones, undefined leaves one out. */
export function assertion(
  claims: Record<string, unknown> = {},
  header: Record<string, unknown> = {},
  key = CLIENT_KEY,
): Promise<string> {
  const now = Math.floor(Date.now() / 1_000);
  const payload = {
    iss: 'signer',
    sub: 'signer',
    aud: ISSUER,
    jti: crypto.randomUUID(),
    iat: now,
    exp: now + 60,
    ...claims,
  };
  return new SignJWT(payload).setProtectedHeader({ alg: 'ES256', ...header }).sign(key);
}

export function assertionForm(clientAssertion: string): Record<string, string> {
  return {
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
    client_assertion: clientAssertion,
  };
}

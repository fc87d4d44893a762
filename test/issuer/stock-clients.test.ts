import { JwtVerifier as AwsJwtVerifier } from 'aws-jwt-verify';
import { type CryptoKey, createRemoteJWKSet, importJWK, jwtVerify } from 'jose';
import * as oauth from 'oauth4webapi';
import * as openid from 'openid-client';
import {
  authenticate,
  createKeyRing,
  createTokenRegistry,
  identityOf,
  jwtVerifier,
  memoryTokenStore,
} from 'tollkeeper';
import { createIssuer, type Issuer, type IssuerOptions } from 'tollkeeper/issuer';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { identityProvider, signed, testKey } from '../support/identity-provider.js';
import { type Served, serve } from '../support/index.js';
import { AUDIENCE, CLIENT_KEY, CLIENTS, SECRET } from './issuer-fixture.js';

/** An issuer whose own URL is where it listens, as stock clients demand. */
async function listening(algorithm: 'ES256' | 'Ed25519' | 'RS256', options: Partial<IssuerOptions> = {}) {
  const keyRing = await createKeyRing({ algorithm });
  const registry = createTokenRegistry({
    store: memoryTokenStore(),
    peppers: { current: { id: 'p1', secret: 'a pepper of 32 bytes, or of more: 0123456789' } },
    prefix: 'acme',
  });
  let issuer: Issuer | undefined;
  const served: Served = await serve((req, res) => issuer?.handler()(req, res));
  issuer = createIssuer({
    issuer: served.url,
    audience: AUDIENCE,
    keyRing,
    registry,
    maxTtlSeconds: 600,
    clients: CLIENTS,
    ...options,
  });
  return { ...served, keyRing, registry, issuer };
}

let es256: Awaited<ReturnType<typeof listening>>;
beforeAll(async () => {
  es256 = await listening('ES256');
});
afterAll(() => es256.close());

const privateKey = async () => (await importJWK(CLIENT_KEY.export({ format: 'jwk' }), 'ES256')) as CryptoKey;

describe('oauth4webapi', () => {
  it.each([
    ['ci', 'client_secret_basic', async () => oauth.ClientSecretBasic(SECRET)],
    ['ci', 'client_secret_post', async () => oauth.ClientSecretPost(SECRET)],
    ['signer', 'private_key_jwt', async () => oauth.PrivateKeyJwt(await privateKey())],
  ] as const)('gets, introspects and revokes a token as %s by %s', async (clientId, _, authentication) => {
    const url = new URL(es256.url);
    const options = { [oauth.allowInsecureRequests]: true };
    const server = await oauth.processDiscoveryResponse(
      url,
      await oauth.discoveryRequest(url, { ...options, algorithm: 'oauth2' }),
    );
    const client = { client_id: clientId };
    const auth = await authentication();
    const granted = await oauth.processClientCredentialsResponse(
      server,
      client,
      await oauth.clientCredentialsGrantRequest(
        server,
        client,
        auth,
        new URLSearchParams({ scope: 'repo:read' }),
        options,
      ),
    );
    expect(granted).toMatchObject({ token_type: 'bearer', expires_in: 600 });
    const introspect = async () =>
      oauth.processIntrospectionResponse(
        server,
        client,
        await oauth.introspectionRequest(server, client, auth, granted.access_token, options),
      );
    expect(await introspect()).toMatchObject({ active: true, client_id: clientId, scope: 'repo:read' });
    await oauth.processRevocationResponse(
      await oauth.revocationRequest(server, client, auth, granted.access_token, options),
    );
    expect(await introspect()).toEqual({ active: false });
  });

  it('reads our refusals', async () => {
    const url = new URL(es256.url);
    const options = { [oauth.allowInsecureRequests]: true };
    const server = await oauth.processDiscoveryResponse(
      url,
      await oauth.discoveryRequest(url, { ...options, algorithm: 'oauth2' }),
    );
    const ask = async (secret: string, form: Record<string, string>) => {
      const client = { client_id: 'ci' };
      const response = await oauth.clientCredentialsGrantRequest(
        server,
        client,
        oauth.ClientSecretPost(secret),
        new URLSearchParams(form),
        options,
      );
      return oauth.processClientCredentialsResponse(server, client, response);
    };
    await expect(ask('wrong', {})).rejects.toMatchObject({ error: 'invalid_client', status: 401 });
    await expect(ask(SECRET, { scope: 'repo:write' })).rejects.toMatchObject({ error: 'invalid_scope', status: 400 });
  });

  it('verifies our tokens by RFC 9068', async () => {
    const { token } = await es256.issuer.issueServiceToken({
      tenantId: 'acme',
      clientId: 'ci',
      scopes: ['repo:read'],
      ttlSeconds: 60,
    });
    const url = new URL(es256.url);
    const options = { [oauth.allowInsecureRequests]: true };
    const server = await oauth.processDiscoveryResponse(
      url,
      await oauth.discoveryRequest(url, { ...options, algorithm: 'oauth2' }),
    );
    const request = new Request('https://api.example/', { headers: { authorization: `Bearer ${token}` } });
    const claims = await oauth.validateJwtAccessToken(server, request, AUDIENCE, options);
    expect(claims).toMatchObject({ sub: 'ci', client_id: 'ci', scope: 'repo:read' });
  });
});

describe('openid-client', () => {
  it.each([
    ['ci', 'client_secret_basic', async () => openid.ClientSecretBasic(SECRET)],
    ['ci', 'client_secret_post', async () => openid.ClientSecretPost(SECRET)],
    ['signer', 'private_key_jwt', async () => openid.PrivateKeyJwt(await privateKey())],
  ] as const)(
    'gets, introspects and revokes a token as %s by %s, opaque ones too',
    async (clientId, _, authentication) => {
      const config = await openid.discovery(new URL(es256.url), clientId, undefined, await authentication(), {
        algorithm: 'oauth2',
        execute: [openid.allowInsecureRequests],
      });
      const granted = await openid.clientCredentialsGrant(config, { scope: 'repo:read' });
      const client = await es256.registry.createClient({ name: `${clientId} ${_}`, tenant: 'acme' });
      const opaque = await es256.registry.issueToken({ clientId: client.id, scopes: ['scan:read'] });
      for (const token of [granted.access_token, opaque.token]) {
        expect(await openid.tokenIntrospection(config, token)).toMatchObject({ active: true });
        await openid.tokenRevocation(config, token);
        expect(await openid.tokenIntrospection(config, token)).toEqual({ active: false });
      }
    },
  );
});

describe('a job without a secret', () => {
  const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
  const TYPE = 'urn:ietf:params:oauth:token-type:jwt';
  const options = { [oauth.allowInsecureRequests]: true };
  const key = testKey('platform', 'RS256');

  /** What a stock client makes of a platform's token. */
  const clients: Record<string, (url: URL, subjectToken: string) => Promise<{ access_token: string; scope?: string }>> =
    {
      async oauth4webapi(url, subjectToken) {
        const response = await oauth.discoveryRequest(url, { ...options, algorithm: 'oauth2' });
        const server = await oauth.processDiscoveryResponse(url, response);
        const client = { client_id: 'ci' };
        const form = { subject_token: subjectToken, subject_token_type: TYPE, scope: 'repo:read' };
        const answer = await oauth.genericTokenEndpointRequest(server, client, oauth.None(), EXCHANGE, form, options);
        return oauth.processGenericTokenEndpointResponse(server, client, answer);
      },
      async 'openid-client'(url, subjectToken) {
        const config = await openid.discovery(url, 'ci', undefined, openid.None(), {
          algorithm: 'oauth2',
          execute: [openid.allowInsecureRequests],
        });
        const form = { subject_token: subjectToken, subject_token_type: TYPE, scope: 'repo:read' };
        return openid.genericGrantRequest(config, EXCHANGE, form);
      },
    };

  it.each(Object.entries(clients))(
    'mints, exchanges and uses a token until it is revoked, with %s',
    async (_name, exchange) => {
      const platform = await identityProvider([key]);
      const { url, issuer, close } = await listening('ES256', {
        workloadIssuers: [{ issuer: platform.issuer, kind: 'oidc', keys: { jwksUri: platform.jwksUri } }],
        workloadPolicies: [
          {
            id: 'job',
            issuer: platform.issuer,
            audience: 'https://tokens.example',
            match: { sub: 'project:1:ref:main' },
            grant: { tenantId: 'acme', clientId: 'ci', scopes: ['repo:read', 'usage:read'], maxTtlSeconds: 120 },
          },
        ],
      });
      const verifier = jwtVerifier({
        issuer: url,
        audience: AUDIENCE,
        algorithms: ['ES256'],
        keys: { jwksUri: `${url}/.well-known/jwks.json` },
        type: 'at+jwt',
      });
      const gate = authenticate({ verifiers: [verifier], revocations: issuer.revocations });
      const api = await serve((req, res) => gate(req, res, () => res.end(JSON.stringify(identityOf(req)))));
      const now = Math.floor(Date.now() / 1_000);
      const subject = { iss: platform.issuer, aud: 'https://tokens.example', iat: now, exp: now + 300 };
      const minted = signed(key, { ...subject, sub: 'project:1:ref:main' });

      await expect(
        exchange(new URL(url), signed(key, { ...subject, sub: 'project:2:ref:main' })),
      ).rejects.toMatchObject({ error: 'invalid_request', status: 400 });
      const { access_token: token } = await exchange(new URL(url), minted);
      const use = () => fetch(api.url, { headers: { authorization: `Bearer ${token}` } });
      const used = await use();
      expect([used.status, await used.json()]).toMatchObject([
        200,
        { subject: { kind: 'service', id: 'ci' }, tenant: 'acme', scopes: ['repo:read'], issuer: url },
      ]);
      // The platform's own token is none for the API.
      expect((await fetch(api.url, { headers: { authorization: `Bearer ${minted}` } })).status).toBe(401);

      const config = await openid.discovery(new URL(url), 'ci', undefined, openid.ClientSecretBasic(SECRET), {
        algorithm: 'oauth2',
        execute: [openid.allowInsecureRequests],
      });
      expect(await openid.tokenIntrospection(config, token)).toMatchObject({ active: true, client_id: 'ci' });
      await openid.tokenRevocation(config, token);
      expect(await openid.tokenIntrospection(config, token)).toEqual({ active: false });
      expect((await use()).status).toBe(401);
      await api.close();
      await verifier.close();
      await close();
      await platform.close();
    },
  );
});

describe('stock verifiers', () => {
  it.each(['ES256', 'Ed25519', 'RS256'] as const)(
    "jose's remote JWKS verifies our %s tokens, before and after a rotation",
    async (algorithm) => {
      const issuer = await listening(algorithm);
      const jwks = createRemoteJWKSet(new URL(`${issuer.url}/.well-known/jwks.json`), { cooldownDuration: 0 });
      const issue = () =>
        issuer.issuer.issueServiceToken({ tenantId: 'acme', clientId: 'ci', scopes: [], ttlSeconds: 60 });
      const check = async (token: string) =>
        (await jwtVerify(token, jwks, { issuer: issuer.url, audience: AUDIENCE, typ: 'at+jwt' })).payload.sub;
      const { token } = await issue();
      expect(await check(token)).toBe('ci');
      const { kid } = await issuer.keyRing.stage();
      await issuer.keyRing.revoke(issuer.keyRing.signer().kid);
      expect(issuer.keyRing.signer().kid).toBe(kid);
      expect(await check((await issue()).token)).toBe('ci');
      await issuer.close();
    },
  );

  it.each(['ES256', 'RS256'] as const)('aws-jwt-verify takes our %s tokens', async (algorithm) => {
    const issuer = await listening(algorithm);
    const verifier = AwsJwtVerifier.create({
      issuer: issuer.url,
      audience: AUDIENCE,
      jwksUri: 'https://unused.example/jwks',
    });
    verifier.cacheJwks((await (await fetch(`${issuer.url}/.well-known/jwks.json`)).json()) as never);
    const { token } = await issuer.issuer.issueServiceToken({
      tenantId: 'acme',
      clientId: 'ci',
      scopes: ['repo:read'],
      ttlSeconds: 60,
    });
    expect(await verifier.verify(token)).toMatchObject({ sub: 'ci', scope: 'repo:read', tenant_id: 'acme' });
    await issuer.close();
  });
});

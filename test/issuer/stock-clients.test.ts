import { JwtVerifier as AwsJwtVerifier } from 'aws-jwt-verify';
import { type CryptoKey, createRemoteJWKSet, importJWK, jwtVerify } from 'jose';
import * as oauth from 'oauth4webapi';
import * as openid from 'openid-client';
import { createKeyRing, createTokenRegistry, memoryTokenStore } from 'tollkeeper';
import { createIssuer, type Issuer } from 'tollkeeper/issuer';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Served, serve } from '../support/index.js';
import { AUDIENCE, CLIENT_KEY, CLIENTS, SECRET } from './issuer-fixture.js';

/** An issuer whose own URL is where it listens, as stock clients demand. */
async function listening(algorithm: 'ES256' | 'Ed25519' | 'RS256') {
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

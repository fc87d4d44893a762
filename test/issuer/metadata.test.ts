import { calculateJwkThumbprint, decodeJwt, type JWK } from 'jose';
import { createKeyRing } from 'tollkeeper';
import { createIssuer } from 'tollkeeper/issuer';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { serve } from '../support/index.js';
import { AUDIENCE, CLIENTS, type Fixture, ISSUER, issuerFixture } from './issuer-fixture.js';

describe('the public documents of an issuer', () => {
  let fixture: Fixture;
  beforeAll(async () => {
    fixture = await issuerFixture();
  });
  afterAll(() => fixture.close());

  it('publishes its keys, cacheable for five minutes, without any private part', async () => {
    const response = await fetch(`${fixture.url}/.well-known/jwks.json`);
    expect(response.status).toBe(200);
    expect(response.headers.get('cache-control')).toBe('public, max-age=300');
    const { keys } = (await response.json()) as { keys: JWK[] };
    expect(keys).toHaveLength(1);
    expect(Object.keys(keys[0] ?? {}).sort()).toEqual(['alg', 'crv', 'kid', 'kty', 'use', 'x', 'y']);
    expect(keys[0]?.kid).toBe(await calculateJwkThumbprint(keys[0] as JWK));
    await fixture.keyRing.stage();
    const after = (await (await fetch(`${fixture.url}/.well-known/jwks.json`)).json()) as { keys: JWK[] };
    expect(after.keys).toHaveLength(2);
  });

  it('publishes metadata of RFC 8414 without an empty array and without "none"', async () => {
    const response = await fetch(`${fixture.url}/.well-known/oauth-authorization-server`);
    expect(response.headers.get('content-type')).toBe('application/json');
    const metadata = (await response.json()) as Record<string, unknown>;
    expect(metadata).toMatchObject({
      issuer: ISSUER,
      token_endpoint: `${ISSUER}/oauth/token`,
      introspection_endpoint: `${ISSUER}/oauth/introspect`,
      revocation_endpoint: `${ISSUER}/oauth/revoke`,
      jwks_uri: `${ISSUER}/.well-known/jwks.json`,
      grant_types_supported: ['client_credentials'],
      token_endpoint_auth_methods_supported: ['client_secret_basic', 'client_secret_post', 'private_key_jwt'],
      scopes_supported: ['repo:read', 'usage:read'],
    });
    for (const value of Object.values(metadata)) if (Array.isArray(value)) expect(value).not.toHaveLength(0);
    expect(JSON.stringify(metadata)).not.toMatch(/none|HS256/);
  });

  it.each([
    ['GET', '/oauth/token', 'POST'],
    ['PUT', '/oauth/introspect', 'POST'],
    ['DELETE', '/oauth/revoke', 'POST'],
    ['GET', '/service-tokens', 'POST'],
    ['POST', '/.well-known/jwks.json', 'GET, HEAD'],
  ])('answers %s %s with 405 and what is allowed', async (method, path, allow) => {
    const response = await fetch(`${fixture.url}${path}`, { method });
    expect(response.status).toBe(405);
    expect(response.headers.get('allow')).toBe(allow);
    expect(response.headers.get('cache-control')).toBe('no-store');
    expect(await response.json()).toEqual({ error: 'invalid_request' });
  });

  it('answers HEAD, ignores a query, and 404 for anything else where there is no next', async () => {
    const head = await fetch(`${fixture.url}/.well-known/jwks.json?a=b`, { method: 'HEAD' });
    expect(head.status).toBe(200);
    expect(await head.text()).toBe('');
    const missing = await fetch(`${fixture.url}/elsewhere`);
    expect(missing.status).toBe(404);
    expect(missing.headers.get('cache-control')).toBe('no-store');
  });

  it.each([
    'https://issuer.example',
    'https://issuer.example/',
    'https://issuer.example/a',
    'https://issuer.example/a/',
  ])('states the issuer byte for byte, in the metadata and in tokens: %s', async (name) => {
    const served = await issuerFixture({ issuer: name });
    const { pathname } = new URL(name);
    // RFC 8414 §3.1: a slash at the end of the issuer's path is left out.
    const path = `/.well-known/oauth-authorization-server${pathname.replace(/\/$/, '')}`;
    const metadata = (await (await fetch(`${served.url}${path}`)).json()) as Record<string, string>;
    expect(metadata.issuer).toBe(name);
    expect(metadata.token_endpoint).toBe(`${name.replace(/\/$/, '')}/oauth/token`);
    expect(decodeJwt(await served.token()).iss).toBe(name);
    await served.close();
  });

  it('puts the well-known part between the host and the path of the issuer', async () => {
    const issuer = createIssuer({
      issuer: `${ISSUER}/tenants/a`,
      audience: AUDIENCE,
      keyRing: await createKeyRing(),
      maxTtlSeconds: 60,
      clients: [{ ...CLIENTS[0], scopes: [] } as (typeof CLIENTS)[number]],
    });
    const served = await serve(issuer.handler());
    const response = await fetch(`${served.url}/.well-known/oauth-authorization-server/tenants/a`);
    const metadata = (await response.json()) as Record<string, unknown>;
    expect(metadata).toMatchObject({
      issuer: `${ISSUER}/tenants/a`,
      token_endpoint: `${ISSUER}/tenants/a/oauth/token`,
    });
    expect(metadata).not.toHaveProperty('scopes_supported');
    expect((await fetch(`${served.url}/tenants/a/.well-known/jwks.json`)).status).toBe(200);
    await served.close();
  });
});

it('answers 500 without a word about it when something of its own breaks, and survives an onReject that throws', async () => {
  const fixture = await issuerFixture({
    random: () => {
      throw new Error('secret detail');
    },
    onReject: () => {
      throw new Error('watcher');
    },
  });
  const response = await fixture.post('/oauth/token', { grant_type: 'client_credentials' });
  expect(response.status).toBe(500);
  expect(await response.json()).toEqual({ error: 'server_error', error_description: 'the request failed' });
  await fixture.close();
});

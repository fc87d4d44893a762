import assert from 'node:assert/strict';
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createRemoteJWKSet, decodeJwt, jwtVerify } from 'jose';
import { createTokenClient } from 'tollkeeper/client';
import { isOAuthError } from 'tollkeeper/issuer';
import { manualClock, testIssuer } from 'tollkeeper/testing';
import { acceptance } from '../support/acceptance.js';
import { startLore } from './app.js';

const run = acceptance('lore');
const secret = randomBytes(32).toString('base64url');
const mirror = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const accounts = await testIssuer({
  issuer: 'https://accounts.customer.example',
  audience: 'https://lore.example/api',
});
const clock = manualClock(Date.now());
const lore = await startLore({
  ciSecret: secret,
  mirrorKeys: { keys: [mirror.publicKey.export({ format: 'jwk' })] },
  accounts: { issuer: accounts.issuer, jwks: accounts.jwks },
  clock,
});

interface Answer {
  readonly status: number;
  readonly body: {
    token: string;
    token_id: string;
    expires_at: number;
    scopes: string[];
    clamped: boolean;
    error: string;
  };
}

async function serviceToken(body: object, password = secret): Promise<Answer> {
  const response = await fetch(`${lore.url}/service-tokens`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Basic ${btoa(`nightly-ci:${password}`)}` },
    body: JSON.stringify(body),
  });
  return { status: response.status, body: (await response.json()) as Answer['body'] };
}

async function repository(token: string, id: string, method = 'GET', tenant = 'acme') {
  const response = await fetch(`${lore.url}/tenants/${tenant}/repositories/${id}`, {
    method,
    headers: { authorization: `Bearer ${token}` },
  });
  return { status: response.status, body: (await response.json().catch(() => ({}))) as Record<string, unknown> };
}

const wish = { tenant_id: 'acme', scopes: ['repo:read'], ttl_seconds: 600 };

await run.check(
  'S1.1, S1.3, S1.7',
  'a CI job gets a tenant-scoped token without a browser, and knows when it ends',
  async () => {
    const { status, body } = await serviceToken(wish);
    assert.equal(status, 200);
    const claims = decodeJwt(body.token);
    assert.equal(claims.exp, body.expires_at);
    assert.equal(claims.tenant_id, 'acme');
    assert.equal(body.token_id, claims.jti);
    assert.equal((await repository(body.token, 'A')).status, 200);
    assert.equal('login_url' in body, false);
  },
);

await run.check('S1.2, S1.12', 'any stock verifier takes it, by the published keys of the server', async () => {
  const { body } = await serviceToken(wish);
  const keys = createRemoteJWKSet(new URL(`${lore.url}/.well-known/jwks.json`));
  const { payload } = await jwtVerify(body.token, keys, { issuer: lore.url, audience: 'https://lore.example/api' });
  assert.equal(payload.client_id, 'nightly-ci');
});

await run.check('S1.8', 'the subject is a service and the token says so', async () => {
  const { body } = await serviceToken(wish);
  const seen = await repository(body.token, 'A');
  assert.deepEqual(seen.body.subject, { kind: 'service', id: 'nightly-ci' });
  assert.equal(seen.body.service, true);
});

await run.check('S1.14', 'a bad secret is 401', async () => {
  const { status, body } = await serviceToken(wish, 'wrong');
  assert.deepEqual([status, body.error], [401, 'invalid_client']);
});

await run.check('S1.14', 'another tenant is 403', async () => {
  const { status } = await serviceToken({ ...wish, tenant_id: 'other' });
  assert.equal(status, 403);
});

await run.check('S1.4', 'a write scope is refused: invalid_scope, 400', async () => {
  const { status, body } = await serviceToken({ ...wish, scopes: ['repo:write'] });
  assert.deepEqual([status, body.error], [400, 'invalid_scope']);
});

await run.check('S1.5', 'a lifetime of zero or less is 400, a huge one is clamped and the answer says so', async () => {
  assert.equal((await serviceToken({ ...wish, ttl_seconds: 0 })).status, 400);
  assert.equal((await serviceToken({ ...wish, ttl_seconds: -5 })).status, 400);
  const { status, body } = await serviceToken({ ...wish, ttl_seconds: 10_000_000 });
  assert.deepEqual([status, body.clamped], [200, true]);
  const claims = decodeJwt(body.token);
  assert.equal((claims.exp as number) - (claims.iat as number), 3_600);
  assert.equal((await serviceToken(wish)).body.clamped, false);
});

await run.check('S1.6', 'a token for repository A is 403 on B, and a constraint is never a wildcard', async () => {
  const { body } = await serviceToken({ ...wish, resource_id: 'A' });
  assert.equal((await repository(body.token, 'A')).status, 200);
  assert.equal((await repository(body.token, 'B')).status, 403);
});

await run.check('S1.4', 'DELETE is 403', async () => {
  const { body } = await serviceToken(wish);
  assert.equal((await repository(body.token, 'A', 'DELETE')).status, 403);
});

await run.check('S1.3', "another tenant's repositories are 403", async () => {
  const { body } = await serviceToken(wish);
  assert.equal((await repository(body.token, 'A', 'GET', 'other')).status, 403);
});

await run.check('S1.10', 'after its revocation the token is 401', async () => {
  const { body } = await serviceToken(wish);
  assert.equal((await repository(body.token, 'A')).status, 200);
  const revoked = await fetch(`${lore.url}/oauth/revoke`, {
    method: 'POST',
    headers: { authorization: `Basic ${btoa(`nightly-ci:${secret}`)}` },
    body: new URLSearchParams({ token: body.token }),
  });
  assert.equal(revoked.status, 200);
  assert.equal((await repository(body.token, 'A')).status, 401);
});

await run.check(
  'S1.9, S1.11',
  'a client helper fetches and caches, without any shared secret, and its error is typed',
  async () => {
    const client = createTokenClient({
      tokenEndpoint: `${lore.url}/oauth/token`,
      credentials: {
        clientId: 'mirror',
        privateKey: mirror.privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
      },
      scopes: ['repo:read'],
      clock,
    });
    const token = await client.getToken();
    assert.equal(await client.getToken(), token);
    assert.equal((await repository(token, 'A')).status, 200);
    assert.equal((await repository(token, 'B')).status, 403);
    const greedy = createTokenClient({
      tokenEndpoint: `${lore.url}/oauth/token`,
      credentials: { clientId: 'nightly-ci', clientSecret: secret },
      scopes: ['repo:write'],
      clock,
    });
    await assert.rejects(greedy.getToken(), (error: unknown) => isOAuthError(error) && error.code === 'invalid_scope');
  },
);

await run.check(
  'S1.13, S1.15',
  "tokens of the customer's accounts service keep verifying, with claims of other names",
  async () => {
    const theirs = accounts.token({ sub: 'dana', account: 'acme', permissions: ['repo:read'] });
    const { status, body } = await repository(await theirs, 'A');
    assert.deepEqual([status, body.subject], [200, { kind: 'user', id: 'dana' }]);
  },
);

await run.check('S1.2', 'tokens that have not expired survive a rotation of the keys', async () => {
  const { body } = await serviceToken({ ...wish, ttl_seconds: 3_600 });
  const next = await lore.keyRing.stage();
  clock.advance(961);
  await lore.keyRing.activate(next.kid);
  const fresh = await serviceToken(wish);
  assert.equal((await repository(body.token, 'A')).status, 200);
  assert.equal((await repository(fresh.body.token, 'A')).status, 200);
  const published = (await (await fetch(`${lore.url}/.well-known/jwks.json`)).json()) as { keys: unknown[] };
  assert.equal(published.keys.length, 2);
});

lore.server.close();
lore.server.closeAllConnections();
await run.finish();

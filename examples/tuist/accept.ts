import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createRemoteJWKSet, jwtVerify } from 'jose';
import { createKeyRing } from 'tollkeeper';
import { createTokenClient } from 'tollkeeper/client';
import { createIssuer, hashClientSecret } from 'tollkeeper/issuer';
import { testIssuer } from 'tollkeeper/testing';
import { acceptance } from '../support/acceptance.js';
import { AUDIENCE, startTuist, type TuistSettings } from './app.js';

const run = acceptance('tuist');
const secrets = {
  cacheSecret: randomBytes(32).toString('base64url'),
  reportsSecret: randomBytes(32).toString('base64url'),
};
const idp = await testIssuer({ issuer: 'https://users.tuist.example', audience: AUDIENCE });
const cluster = await testIssuer({ issuer: 'https://kubernetes.default.svc', audience: AUDIENCE });
const stranger = await testIssuer({ issuer: 'https://kubernetes.default.svc', audience: AUDIENCE });
const settings: TuistSettings = {
  ...secrets,
  users: { issuer: idp.issuer, jwks: idp.jwks },
  cluster: { issuer: cluster.issuer, jwks: cluster.jwks },
};
const tuist = await startTuist(settings);
const folder = mkdtempSync(join(tmpdir(), 'tuist-'));

/** A projected ServiceAccount token, as a cluster makes them. */
async function podToken(
  overrides: Record<string, unknown> = {},
  { signer = cluster, seconds = 3_600 } = {},
): Promise<string> {
  const now = Math.floor(Date.now() / 1_000);
  return signer.token(
    {
      sub: 'system:serviceaccount:jobs:processor',
      aud: [AUDIENCE],
      iat: now,
      nbf: now,
      jti: randomBytes(8).toString('hex'),
      'kubernetes.io': {
        namespace: 'jobs',
        serviceaccount: { name: 'processor', uid: 'b9f1c5a2-0000-4000-8000-000000000001' },
        pod: { name: 'processor-7d9', uid: 'b9f1c5a2-0000-4000-8000-000000000002' },
      },
      ...overrides,
    },
    { expiresInSeconds: seconds },
  );
}

async function clientToken(id: string, secret: string, form: Record<string, string> = {}, url = tuist.url) {
  const response = await fetch(`${url}/oauth/token`, {
    method: 'POST',
    headers: { authorization: `Basic ${btoa(`${id}:${secret}`)}` },
    body: new URLSearchParams({ grant_type: 'client_credentials', ...form }),
  });
  return {
    status: response.status,
    body: (await response.json()) as { access_token: string; expires_in: number; error?: string },
  };
}

async function call(
  path: string,
  token?: string,
  { method = 'GET', workload, url = tuist.url }: { method?: string; workload?: string; url?: string } = {},
) {
  const headers: Record<string, string> = {};
  if (token !== undefined) headers.authorization = `Bearer ${token}`;
  if (workload !== undefined) headers['x-workload-token'] = workload;
  const response = await fetch(`${url}${path}`, { method, headers });
  return { status: response.status, body: (await response.json().catch(() => ({}))) as Record<string, unknown> };
}

const user = await idp.token({ sub: 'ada', tenant_id: 'acme' });
const cache = (await clientToken('cache', secrets.cacheSecret)).body.access_token;
const reports = (await clientToken('reports', secrets.reportsSecret)).body.access_token;

await run.check('S4.1', 'configured services get short-lived tokens with their own scopes and lifetimes', async () => {
  const { status, body } = await clientToken('cache', secrets.cacheSecret);
  assert.equal(status, 200);
  assert.equal(body.expires_in, 300);
  assert.equal((await clientToken('reports', secrets.reportsSecret)).body.expires_in, 900);
  assert.equal((await clientToken('cache', 'wrong')).status, 401);
});

await run.check('S4.1, S4.2', 'any stock verifier takes the tokens, by the published keys', async () => {
  const keys = createRemoteJWKSet(new URL(`${tuist.url}/.well-known/jwks.json`));
  const { payload } = await jwtVerify(cache, keys, { issuer: tuist.url, audience: AUDIENCE, typ: 'at+jwt' });
  assert.deepEqual([payload.client_id, payload.is_service_account], ['cache', true]);
});

await run.check('S4.1', 'no scope configured is no scope granted', async () => {
  const { status, body } = await clientToken('idle', `${secrets.reportsSecret}-idle`, { scope: 'cache:read' });
  assert.deepEqual([status, body.error], [400, 'invalid_scope']);
});

await run.check(
  'S4.5, S4.6',
  'duplicate and reserved ids and :any scopes are a startup error that lists all of them',
  async () => {
    const secretHashes = [await hashClientSecret(secrets.cacheSecret)];
    const client = (id: string, scopes: string[]) => ({
      id,
      secretHashes,
      scopes,
      tenant: 'acme',
      unconstrainedResources: true as const,
    });
    const keyRing = await createKeyRing();
    assert.throws(
      () =>
        createIssuer({
          issuer: 'https://tuist.example',
          audience: AUDIENCE,
          keyRing,
          maxTtlSeconds: 900,
          reservedClientIds: ['tuist-app'],
          clients: [
            client('twice', []),
            client('twice', []),
            client('tuist-app', ['a:read']),
            client('wild', ['cache:any', '*']),
          ],
        }),
      (error: Error) =>
        error instanceof TypeError && ['twice', 'tuist-app', 'cache:any'].every((part) => error.message.includes(part)),
    );
  },
);

await run.check('S4.2, S4.8', 'a service on an account-owned route is 403 at the chokepoint, never 500', async () => {
  for (const token of [cache, reports]) {
    const { status, body } = await call('/accounts/acme/projects', token);
    assert.deepEqual([status, body.code], [403, 'subject_not_allowed']);
  }
  assert.equal((await call('/accounts/acme/projects', user)).status, 200);
});

await run.check('S4.3', 'who is no configured service never becomes one', async () => {
  assert.equal((await clientToken('tuist-app', secrets.cacheSecret)).status, 401);
  const dynamic = await idp.token({ sub: 'dyn', client_id: 'dyn-app', tenant_id: 'acme', scope: 'cache:read' });
  assert.equal((await call('/internal/accounts/acme/cache', dynamic)).status, 403);
});

await run.check('S4.7', 'an account token on another account is 403', async () => {
  assert.equal((await call('/accounts/other/projects', user)).status, 403);
  assert.equal((await call('/internal/accounts/acme/cache', reports)).status, 200);
  const { status, body } = await call('/internal/accounts/other/cache', reports);
  assert.deepEqual([status, body.code], [403, 'tenant_mismatch']);
});

await run.check(
  'S4.4, S4.7, S4.13',
  'with the same scope, only the service that the rule names crosses accounts',
  async () => {
    for (const account of ['acme', 'other']) {
      const { status, body } = await call(`/internal/accounts/${account}/cache`, cache);
      assert.deepEqual([status, body.by], [200, 'cache']);
    }
    assert.equal((await call('/internal/accounts/other/cache', reports)).status, 403);
  },
);

await run.check('S4.9', 'issuance and internal routes answer only inside the internal network', async () => {
  const outside = await startTuist({ ...settings, internalNetworks: ['10.0.0.0/8'] });
  assert.equal((await clientToken('cache', secrets.cacheSecret, {}, outside.url)).status, 403);
  const { status, body } = await call('/internal/builds', await podToken(), { method: 'POST', url: outside.url });
  assert.deepEqual([status, body.code], [403, 'network_not_allowed']);
  outside.server.close();
  outside.server.closeAllConnections();
});

await run.check('S4.10', 'a pod calls with its projected ServiceAccount token', async () => {
  const { status, body } = await call('/internal/builds', await podToken(), { method: 'POST' });
  assert.equal(status, 200);
  assert.equal(body.kind, 'workload');
});

for (const [title, token] of [
  ['wrong audience', podToken({ aud: ['https://another.example'] })],
  ['a second audience', podToken({ aud: [AUDIENCE, 'https://another.example'] })],
  ['wrong issuer', podToken({ iss: 'https://another.cluster' })],
  ['wrong ServiceAccount', podToken({ sub: 'system:serviceaccount:jobs:other' })],
  [
    'nested claims that disagree',
    podToken({
      'kubernetes.io': {
        namespace: 'other',
        serviceaccount: { name: 'processor', uid: 'x' },
        pod: { name: 'p', uid: 'y' },
      },
    }),
  ],
  ['wrong key', podToken({}, { signer: stranger })],
  ['overlong lifetime', podToken({}, { seconds: 31_536_000 })],
  ['missing iat', podToken({ iat: undefined })],
] as const) {
  await run.check('S4.10', `${title} → 401`, async () => {
    assert.equal((await call('/internal/builds', await token, { method: 'POST' })).status, 401);
  });
}

await run.check('S4.11', 'an empty key set is 503, never access', async () => {
  const unconfigured = await startTuist({ ...settings, cluster: { issuer: cluster.issuer, jwks: { keys: [] } } });
  const { status, body } = await call('/internal/builds', await podToken(), { method: 'POST', url: unconfigured.url });
  assert.deepEqual([status, body.code], [503, 'verifier_unavailable']);
  unconfigured.server.close();
  unconfigured.server.closeAllConnections();
});

await run.check(
  'S4.12',
  "a second credential beside the user's: a bad one is 401, an absent one elevates nobody",
  async () => {
    const path = '/accounts/acme/projects';
    assert.deepEqual((await call(path, user)).body, { user: 'ada', elevated: false });
    assert.deepEqual((await call(path, user, { workload: await podToken() })).body, { user: 'ada', elevated: true });
    assert.equal((await call(path, user, { workload: await podToken({ aud: ['x'] }) })).status, 401);
    assert.equal((await call(path, user, { workload: 'garbage' })).status, 401);
    assert.equal((await call(path, undefined, { workload: await podToken() })).status, 401);
  },
);

await run.check(
  'S4.10, S4.13',
  'a pod exchanges its projected token for a service token, read anew from its file, and introspection knows it',
  async () => {
    const subjectTokenFile = join(folder, 'token');
    writeFileSync(subjectTokenFile, await podToken());
    const client = createTokenClient({ tokenEndpoint: `${tuist.url}/oauth/token`, credentials: { subjectTokenFile } });
    const token = await client.getToken();
    const { status, body } = await call('/internal/builds', token, { method: 'POST' });
    assert.equal(status, 200, JSON.stringify(body));
    const introspected = await fetch(`${tuist.url}/oauth/introspect`, {
      method: 'POST',
      headers: { authorization: `Basic ${btoa(`cache:${secrets.cacheSecret}`)}` },
      body: new URLSearchParams({ token }),
    });
    const answer = (await introspected.json()) as Record<string, unknown>;
    assert.deepEqual([answer.active, answer.client_id], [true, 'processor']);
  },
);

rmSync(folder, { recursive: true });
tuist.server.close();
tuist.server.closeAllConnections();
await run.finish();

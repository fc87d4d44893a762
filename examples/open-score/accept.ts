import assert from 'node:assert/strict';
import { createHmac, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { postgresLedger } from 'tollkeeper/postgres';
import { testIssuer } from 'tollkeeper/testing';
import { startPostgres } from '../../test/support/start-postgres.js';
import { startProcess } from '../../test/support/start-process.js';
import { startRedis } from '../../test/support/start-redis.js';
import { acceptance } from '../support/acceptance.js';
import { AUDIENCE, type OpenScoreSettings } from './app.js';

const run = acceptance('open-score');
const folder = mkdtempSync(join(tmpdir(), 'open-score-'));
const [postgres, redis] = await Promise.all([startPostgres(), startRedis()]);

// The platform: it signs JWTs and publishes its keys, and counts how often it is asked for them.
const platform = await testIssuer({ issuer: 'https://platform.example', audience: AUDIENCE });
let fetches = 0;
const keys = createServer((_req, res) => {
  fetches += 1;
  res.setHeader('content-type', 'application/json');
  res.end(JSON.stringify(platform.jwks));
}).listen(0, '127.0.0.1');
await new Promise((resolve) => keys.once('listening', resolve));
const sharedToken = randomBytes(32).toString('hex');
const settings: OpenScoreSettings = {
  databaseUrl: postgres.url,
  redisUrl: `redis://127.0.0.1:${redis.port}`,
  platform: { issuer: platform.issuer, jwksUri: `http://127.0.0.1:${(keys.address() as AddressInfo).port}/` },
  sharedToken,
  spoolDirectory: join(folder, 'spool'),
};
const file = new URL('./server.ts', import.meta.url);
const start = () => startProcess<{ url: string }>(file, { env: { OPEN_SCORE: JSON.stringify(settings) } });
const replicas = [await start(), await start()];
const [first, second] = replicas.map(({ ready }) => ready.url) as [string, string];

const token = (sub: string, org: string, plan = 'pro', claims: object = {}, seconds = 600) =>
  platform.token({ sub, org, plan, jti: randomBytes(8).toString('hex'), ...claims }, { expiresInSeconds: seconds });

const answered = new Map<string, number>();
async function verdict(url: string, credential?: string, headers: Record<string, string> = {}, who?: string) {
  const authorization: Record<string, string> =
    credential === undefined ? {} : { authorization: `Bearer ${credential}` };
  const response = await fetch(`${url}/v0/verdict`, { method: 'POST', headers: { ...authorization, ...headers } });
  if (response.status === 200 && who !== undefined) answered.set(who, (answered.get(who) ?? 0) + 1);
  return {
    status: response.status,
    headers: response.headers,
    body: (await response.json()) as Record<string, unknown>,
  };
}

await run.check('S0.1', 'the shared token still works beside the users’ own', async () => {
  assert.equal((await verdict(first, sharedToken, {}, '/shared')).status, 200);
  assert.equal((await verdict(first, `${sharedToken.slice(0, -1)}x`)).status, 401);
});

await run.check(
  'S0.2, S0.7, S0.9',
  'a token identifies a user and an organization, with no scopes at all',
  async () => {
    const { status, body } = await verdict(first, await token('ann', 'acme'), {}, 'acme/ann');
    assert.deepEqual([status, body.for, body.organization], [200, 'ann', 'acme']);
  },
);

const publicKey = JSON.stringify(platform.jwks.keys[0]);
const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
const claims = { iss: platform.issuer, aud: AUDIENCE, sub: 'eve', exp: Math.floor(Date.now() / 1_000) + 600 };
const unsigned = `${encode({ alg: 'none', typ: 'JWT' })}.${encode(claims)}`;
const confused = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode(claims)}`;
for (const [title, credential] of [
  ['no token', undefined],
  ['garbage', 'garbage'],
  ['an expired token', await token('ann', 'acme', 'pro', {}, -60)],
  ['another audience', await token('ann', 'acme', 'pro', { aud: 'https://other.example' })],
  ['alg: none', `${unsigned}.`],
  [
    'HS256 signed with the public key',
    `${confused}.${createHmac('sha256', publicKey).update(confused).digest('base64url')}`,
  ],
] as const) {
  await run.check('S0.9, S0.10', `${title} → 401 with a challenge`, async () => {
    const { status, headers } = await verdict(first, credential);
    // `alg: none` has an empty third segment: it is no well-formed bearer token's JWT either way.
    assert.equal(status, 401);
    assert.match(headers.get('www-authenticate') ?? '', /^Bearer realm="open-score"/);
  });
}

await run.check(
  'S0.4, S0.13',
  "one user's fourth call in three per minute is 429, in whichever replica, while another gets 200",
  async () => {
    const dan = await token('dan', 'acme', 'free');
    const statuses: number[] = [];
    for (const url of [first, second, first, second]) statuses.push((await verdict(url, dan, {}, 'acme/dan')).status);
    assert.deepEqual(statuses, [200, 200, 200, 429]);
    const refused = await verdict(first, dan);
    assert.ok(Number(refused.headers.get('retry-after')) > 0);
    assert.equal((await verdict(second, await token('eli', 'acme', 'free'), {}, 'acme/eli')).status, 200);
  },
);

await run.check('S0.15', 'a forged X-Forwarded-For resets nothing', async () => {
  const dan = await token('dan', 'acme', 'free');
  for (const address of ['1.2.3.4', '10.0.0.1', '::1']) {
    assert.equal((await verdict(first, dan, { 'x-forwarded-for': address })).status, 429);
  }
});

await run.check('S0.10', 'the keys are fetched once per process for 100 requests', async () => {
  const users = await Promise.all(Array.from({ length: 100 }, (_, index) => token(`user-${index}`, 'crowd')));
  const results = await Promise.all(users.map((each, index) => verdict(first, each, {}, `crowd/user-${index}`)));
  assert.ok(results.every(({ status }) => status === 200));
  assert.ok(fetches <= replicas.length, `${fetches} fetches`);
});

await run.check(
  'S0.5, S0.11',
  'revoke the organization: its users are 401 everywhere, nobody else rotates',
  async () => {
    const [ann, bob] = [await token('ann', 'acme'), await token('bob', 'blue')];
    for (const url of [first, second]) {
      assert.equal((await verdict(url, ann, {}, 'acme/ann')).status, 200);
      assert.equal((await verdict(url, bob, {}, 'blue/bob')).status, 200);
    }
    const done = new Promise((resolve) => replicas[0]?.onMessage(resolve));
    replicas[0]?.send({ revoke: { tenant: 'acme' } });
    await done;
    assert.equal((await verdict(first, ann)).status, 401);
    const until = Date.now() + 5_000;
    while ((await verdict(second, ann)).status !== 401)
      assert.ok(Date.now() < until, 'the second replica did not hear of it');
    for (const url of [first, second]) assert.equal((await verdict(url, bob, {}, 'blue/bob')).status, 200);
  },
);

await run.check('S0.3, S0.6, S0.13', 'the report equals the 200 answers, per user and per organization', async () => {
  await Promise.all(replicas.map(({ kill }) => kill('SIGTERM')));
  const pool = new pg.Pool({ connectionString: postgres.url, max: 2 });
  const ledger = postgresLedger(pool);
  const query = { from: new Date(Date.now() - 3_600_000), to: new Date(Date.now() + 3_600_000) };
  const { rows } = await ledger.usage({ ...query, groupBy: ['tenant', 'subject'] });
  const reported = new Map(rows.map(({ key, events }) => [`${key.tenant ?? ''}/${key.subject}`, events]));
  // Between the revocation and its arrival in the second replica, a few calls of ann were still answered.
  assert.ok((reported.get('acme/ann') ?? 0) >= (answered.get('acme/ann') ?? 0));
  for (const map of [reported, answered]) map.delete('acme/ann');
  assert.deepEqual([...reported].sort(), [...answered].sort());
  for (const { state, missing } of await ledger.audit()) assert.deepEqual([state, missing], ['closed', []]);
  await pool.end();
});

await Promise.all(replicas.map(({ kill }) => kill()));
keys.close();
keys.closeAllConnections();
await Promise.all([postgres.stop(), redis.stop()]);
rmSync(folder, { recursive: true, force: true });
await run.finish();

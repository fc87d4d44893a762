import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { createTokenRegistry, memoryTokenStore } from 'tollkeeper';
import { startPostgres } from '../../test/support/start-postgres.js';
import { startProcess } from '../../test/support/start-process.js';
import { startRedis } from '../../test/support/start-redis.js';
import { acceptance } from '../support/acceptance.js';
import type { DosSettings } from './app.js';

const run = acceptance('dos');
const folder = mkdtempSync(join(tmpdir(), 'dos-'));
const [postgres, redis] = await Promise.all([startPostgres(), startRedis()]);
const settings: DosSettings = {
  databaseUrl: postgres.url,
  redisUrl: `redis://127.0.0.1:${redis.port}`,
  pepper: randomBytes(32).toString('hex'),
  adminToken: randomBytes(24).toString('hex'),
  spoolDirectory: join(folder, 'spool'),
};
const start = () =>
  startProcess<{ url: string }>(new URL('./server.ts', import.meta.url), { env: { DOS: JSON.stringify(settings) } });
const replicas = [await start(), await start()];
const [first, second] = replicas.map(({ ready }) => ready.url) as [string, string];

// biome-ignore lint/suspicious/noExplicitAny: answers of many shapes, looked at field by field.
type Body = any;

async function call(
  url: string,
  path: string,
  token?: string,
  method = 'GET',
  body?: object,
): Promise<{ status: number; body: Body }> {
  const response = await fetch(`${url}${path}`, {
    method,
    headers: {
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, body: text === '' ? undefined : JSON.parse(text) };
}
const admin = (method: string, path: string, body?: object, url = first) =>
  call(url, `/admin${path}`, settings.adminToken, method, body);

async function client(name: string, plan?: string): Promise<string> {
  const { status, body } = await admin('POST', '/clients', {
    name,
    tenant: 'acme',
    ...(plan === undefined ? {} : { plan }),
  });
  assert.equal(status, 201);
  return body.id;
}
async function issue(
  clientId: string,
  scopes: string[],
  groups: string[] = [],
): Promise<{ id: string; token: string }> {
  const { status, body } = await admin('POST', `/clients/${clientId}/tokens`, { scopes, groups });
  assert.equal(status, 201, JSON.stringify(body));
  return { id: body.record.id, token: body.token };
}
/** What holds in one process holds in the other within the stated bound: poll, and the time to fetch. */
async function within(check: () => Promise<boolean>): Promise<void> {
  const until = Date.now() + 3_000;
  while (!(await check())) assert.ok(Date.now() < until, 'it did not hold in the second process within the bound');
}

const customer = await client('customer');
const both = await issue(customer, ['scan:read', 'clearance:read'], ['3', '1', '2']);
const raw: string[] = [both.token];

await run.check('S3.19, S3.20', 'none or an invalid token → 401', async () => {
  assert.equal((await call(first, '/v1/scans/pkg:a')).status, 401);
  assert.equal((await call(first, '/v1/scans/pkg:a', `${both.token.slice(0, -1)}_`)).status, 401);
});

await run.check(
  'S3.4, S3.5, S3.20',
  'scopes separate scan data from clearance data, and one token may hold both',
  async () => {
    const scans = await issue(customer, ['scan:read']);
    raw.push(scans.token);
    assert.equal((await call(first, '/v1/scans/pkg:a', scans.token)).status, 200);
    assert.equal((await call(first, '/v1/clearances/pkg:a', scans.token)).status, 403);
    for (const path of ['/v1/scans/pkg:a', '/v1/clearances/pkg:a'])
      assert.equal((await call(second, path, both.token)).status, 200);
  },
);

await run.check(
  'S3.6, S3.7, S3.8, S3.18',
  'groups stay in the order of the request body on req, and the best-ranked one that has the item wins',
  async () => {
    const { body } = await call(first, '/v1/clearances/pkg:a', both.token);
    assert.deepEqual([body.groups, body.group, body.conclusion], [['3', '1', '2'], '3', 'BSD-3-Clause']);
    assert.equal((await call(first, '/v1/clearances/pkg:b', both.token)).body.group, '2');
  },
);

await run.check('S3.21', 'a non-admin at the admin API → 403, nobody → 401', async () => {
  assert.equal((await call(first, '/admin/clients', both.token)).status, 403);
  assert.equal((await call(first, '/admin/clients')).status, 401);
  assert.equal((await admin('GET', '/clients')).status, 200);
});

await run.check(
  'S3.9, S3.16, S3.17',
  'PATCH ["2","3"] removes "1", on the very next request, in the second process within the bound; [] clears, omitted keeps',
  async () => {
    assert.equal((await admin('PATCH', `/tokens/${both.id}`, { groups: ['2', '3'] })).status, 200);
    assert.deepEqual((await call(first, '/v1/clearances/pkg:a', both.token)).body.groups, ['2', '3']);
    await within(async () => (await call(second, '/v1/clearances/pkg:a', both.token)).body.groups.join() === '2,3');
    await admin('PATCH', `/tokens/${both.id}`, { description: 'kept' });
    assert.deepEqual((await call(first, '/v1/clearances/pkg:a', both.token)).body.groups, ['2', '3']);
    await admin('PATCH', `/tokens/${both.id}`, { groups: [] });
    assert.deepEqual((await call(first, '/v1/clearances/pkg:a', both.token)).body.groups, []);
  },
);

await run.check('S3.10, S3.16', 'a change of scopes holds on the very next request', async () => {
  const { id, token } = await issue(customer, ['scan:read', 'clearance:read']);
  raw.push(token);
  for (const url of [first, second]) assert.equal((await call(url, '/v1/clearances/pkg:a', token)).status, 200);
  await admin('PATCH', `/tokens/${id}`, { scopes: ['scan:read'] });
  assert.equal((await call(first, '/v1/clearances/pkg:a', token)).status, 403);
  await within(async () => (await call(second, '/v1/clearances/pkg:a', token)).status === 403);
});

await run.check('S3.16, S3.17', 'revoked → 401, on the very next request', async () => {
  const { id, token } = await issue(customer, ['scan:read']);
  raw.push(token);
  for (const url of [first, second]) assert.equal((await call(url, '/v1/scans/pkg:a', token)).status, 200);
  assert.equal((await admin('DELETE', `/tokens/${id}`)).status, 204);
  assert.equal((await call(first, '/v1/scans/pkg:a', token)).status, 401);
  await within(async () => (await call(second, '/v1/scans/pkg:a', token)).status === 401);
});

await run.check(
  'S3.14, S3.16',
  'a rotation gives a new token, shown once, and ends the old one on the very next request',
  async () => {
    const { id, token } = await issue(customer, ['scan:read']);
    assert.equal((await call(second, '/v1/scans/pkg:a', token)).status, 200);
    const { status, body } = await admin('POST', `/tokens/${id}/rotate`);
    assert.ok([200, 201].includes(status));
    raw.push(token, body.token);
    assert.equal((await call(first, '/v1/scans/pkg:a', token)).status, 401);
    assert.equal((await call(first, '/v1/scans/pkg:a', body.token)).status, 200);
    await within(async () => (await call(second, '/v1/scans/pkg:a', token)).status === 401);
    assert.equal(JSON.stringify((await admin('GET', `/tokens/${body.record.id}`)).body).includes(body.token), false);
  },
);

await run.check('S3.1, S3.16', "a client's deletion ends all of its tokens on the very next request", async () => {
  const gone = await client('gone');
  const tokens = [await issue(gone, ['scan:read']), await issue(gone, ['scan:read'])];
  for (const { token } of tokens) assert.equal((await call(first, '/v1/scans/pkg:a', token)).status, 200);
  assert.equal((await admin('DELETE', `/clients/${gone}`)).status, 204);
  for (const { token } of tokens) {
    assert.equal((await call(first, '/v1/scans/pkg:a', token)).status, 401);
    await within(async () => (await call(second, '/v1/scans/pkg:a', token)).status === 401);
  }
});

await run.check('S3.22', 'duplicate groups are a 400, an unknown client a 404, a taken name a 409', async () => {
  assert.equal((await admin('POST', `/clients/${customer}/tokens`, { scopes: [], groups: ['1', '1'] })).status, 400);
  assert.equal((await admin('POST', '/clients/cl_0000000000000000/tokens', { scopes: [] })).status, 404);
  assert.equal((await admin('POST', '/clients', { name: 'customer', tenant: 'acme' })).status, 409);
});

await run.check('S3.24', 'a token can expire, and shows when it was last used', async () => {
  const past = new Date(Date.now() - 1_000).toISOString();
  assert.equal((await admin('POST', `/clients/${customer}/tokens`, { scopes: [], expiresAt: past })).status, 400);
  await within(async () => JSON.stringify((await admin('GET', `/tokens/${both.id}`)).body).includes('lastUsedAt'));
});

await run.check('S3.3', 'limits count per client, over all of its tokens and both replicas', async () => {
  const small = await client('small', 'small');
  const tokens = [await issue(small, ['scan:read']), await issue(small, ['scan:read'])];
  const statuses: number[] = [];
  for (let index = 0; index < 7; index++) {
    statuses.push(
      (await call([first, second][index % 2] as string, '/v1/scans/pkg:a', tokens[index % 2]?.token)).status,
    );
  }
  assert.deepEqual(statuses, [200, 200, 200, 200, 200, 429, 429]);
});

await run.check('S3.11, S3.12', 'a dump of the store has no raw token and not the secret of the HMACs', async () => {
  const pool = new pg.Pool({ connectionString: postgres.url, max: 1 });
  const { rows: tables } = await pool.query("SELECT tablename FROM pg_tables WHERE tablename LIKE 'tollkeeper%'");
  let dump = '';
  for (const { tablename } of tables)
    dump += JSON.stringify((await pool.query(`SELECT t::text FROM ${tablename} t`)).rows);
  assert.ok(dump.length > 1_000);
  for (const token of raw)
    assert.equal(dump.includes(token) || dump.includes(token.split('_').at(-1) as string), false);
  assert.equal(dump.includes(settings.pepper), false);
  await pool.end();
});

await run.check(
  'S3.13, S3.23',
  'a short or placeholder secret refuses to start, and a dropped one ends all of its tokens',
  async () => {
    for (const secret of ['changeme', 'secret', '', 'x'.repeat(40)]) {
      assert.throws(
        () =>
          createTokenRegistry({ store: memoryTokenStore(), prefix: 'dos', peppers: { current: { id: 'a', secret } } }),
        TypeError,
      );
    }
  },
);

await run.check('S3.2', 'usage is reported and compared per client', async () => {
  await within(async () => {
    const { status, body } = await admin('GET', `/clients/${customer}/usage`);
    return status === 200 && JSON.stringify(body).includes('requests');
  });
});

await Promise.all(replicas.map(({ kill }) => kill('SIGTERM')));
await Promise.all([postgres.stop(), redis.stop()]);
rmSync(folder, { recursive: true, force: true });
await run.finish();

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, request } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import type { UsageEvent } from 'tollkeeper';
import { postgresLedger } from 'tollkeeper/postgres';
import { startPostgres } from '../../test/support/start-postgres.js';
import { startProcess } from '../../test/support/start-process.js';
import { acceptance } from '../support/acceptance.js';
import type { PhoebeSettings } from './app.js';

const run = acceptance('phoebe');
const folder = mkdtempSync(join(tmpdir(), 'phoebe-'));
const postgres = await startPostgres({ durable: true });
const pool = new pg.Pool({ connectionString: postgres.url, max: 4, connectionTimeoutMillis: 1_000 });
pool.on('error', () => {});
const ledger = postgresLedger(pool);
await ledger.migrate();

// The model server: streams tokens, or fails, as the path's query says.
let upstreamCalls = 0;
const model = createServer(async (req, res) => {
  upstreamCalls += 1;
  const query = new URL(req.url as string, 'http://x').searchParams;
  req.resume();
  if (query.has('fail')) return void res.writeHead(500).end();
  if (query.has('silent')) return;
  res.writeHead(200, { 'content-type': 'text/event-stream' });
  const tokens = Number(query.get('tokens') ?? 3);
  const text = Array.from({ length: tokens }, (_, index) => `data: token ${index}\n\n`).join('');
  // With `every`, that many characters at a time, each in a packet of its own.
  const every = Number(query.get('every') ?? text.length);
  for (let at = 0; at < text.length; at += every) {
    res.write(text.slice(at, at + every));
    if (query.has('every')) await new Promise((resolve) => setTimeout(resolve, 2));
  }
  if (!query.has('endless')) res.end();
}).listen(0, '127.0.0.1');
await new Promise((resolve) => model.once('listening', resolve));

const settings: PhoebeSettings = {
  databaseUrl: postgres.url,
  upstream: `http://127.0.0.1:${(model.address() as AddressInfo).port}`,
  edge: ['127.0.0.1'],
  spoolDirectory: join(folder, 'spool'),
};
const start = () =>
  startProcess<{ port: number }>(new URL('./server.ts', import.meta.url), {
    env: { PHOEBE: JSON.stringify(settings) },
  });
let proxy = await start();

interface Call {
  readonly query?: string;
  readonly headers?: Record<string, string>;
  /** The loopback address that the caller comes from: the edge is 127.0.0.1. */
  readonly from?: string;
  /** Leaves after so many bytes of the answer; 0: before the headers. */
  readonly leaveAfter?: number;
}

function call({
  query = '',
  headers = {},
  from = '127.0.0.1',
  leaveAfter,
}: Call): Promise<{ status: number; headers: Record<string, unknown>; body: string }> {
  return new Promise((resolve, reject) => {
    let body = '';
    let status = 0;
    const req = request({
      port: proxy.ready.port,
      host: '127.0.0.1',
      localAddress: from,
      method: 'POST',
      path: `/v1/completions?${query}`,
      headers,
    });
    const leave = (): void => {
      req.destroy();
      resolve({ status, headers: {}, body });
    };
    req.on('error', (error) => (leaveAfter === undefined ? reject(error) : resolve({ status, headers: {}, body })));
    req.on('response', (res) => {
      status = res.statusCode ?? 0;
      res.setEncoding('utf8').on('data', (chunk: string) => {
        body += chunk;
        if (leaveAfter !== undefined && leaveAfter > 0 && body.length >= leaveAfter) leave();
      });
      res.on('end', () => resolve({ status, headers: res.headers, body }));
      res.on('error', () => resolve({ status, headers: res.headers, body }));
    });
    req.end('{}');
    if (leaveAfter === 0) setTimeout(leave, 100);
  });
}

const whole = (more: Record<string, string> = {}) => ({
  'x-saturn-auth-id': 'key-1',
  'x-saturn-resource-id': 'model-7',
  'x-saturn-resource-type': 'deployment',
  ...more,
});
const traced = () => `trace-${randomBytes(6).toString('hex')}`;

async function eventsOf(requestId: string, count = 1): Promise<UsageEvent[]> {
  const until = Date.now() + 15_000;
  for (;;) {
    const found: UsageEvent[] = [];
    for await (const event of ledger.events({ requestId })) found.push(event);
    if (found.length >= count || Date.now() > until) return found;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

async function total(): Promise<number> {
  return Number((await pool.query('SELECT count(*) FROM tollkeeper_events')).rows[0].count);
}

await run.check('S2.8', 'neither header → 400 naming both, one missing → naming it', async () => {
  const fields = async (headers: Record<string, string>) => {
    const { status, body } = await call({ headers });
    return [
      status,
      (JSON.parse(body).missing as { field: string; header: string }[]).map(
        ({ field, header }) => `${field} ${header}`,
      ),
    ];
  };
  assert.deepEqual(await fields({}), [400, ['authId x-saturn-auth-id', 'resource.id x-saturn-resource-id']]);
  assert.deepEqual(await fields({ 'x-saturn-auth-id': 'k' }), [400, ['resource.id x-saturn-resource-id']]);
  assert.deepEqual(await fields({ 'x-saturn-resource-id': 'r' }), [400, ['authId x-saturn-auth-id']]);
  assert.deepEqual(await fields({ 'x-saturn-auth-id': '  ', 'x-saturn-resource-id': 'r' }), [
    400,
    ['authId x-saturn-auth-id'],
  ]);
});

await run.check('S2.6, S2.7', 'an untrusted peer with forged headers → 401', async () => {
  assert.equal((await call({ headers: whole(), from: '127.0.0.2' })).status, 401);
});

await run.check('S2.14', 'a 201-character request id → 400', async () => {
  assert.equal((await call({ headers: whole({ 'x-request-id': 'x'.repeat(201) }) })).status, 400);
});

await run.check(
  'S2.8, S2.10, S2.11',
  'for all of these neither the model server nor the ledger saw anything',
  async () => {
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    assert.deepEqual([upstreamCalls, await total()], [0, 0]);
  },
);

await run.check(
  'S2.1, S2.2, S2.3, S2.14',
  'the event is attributed to the key, with every X-Saturn-* header verbatim, and the request id is echoed',
  async () => {
    const id = traced();
    const answer = await call({
      query: 'tokens=5',
      headers: whole({
        'x-saturn-foo': 'Bar; "baz"',
        'x-saturn-user-id': 'u-1',
        'x-saturn-group-id': 'g-1',
        'x-request-id': id,
      }),
    });
    assert.deepEqual([answer.status, answer.headers['x-request-id']], [200, id]);
    const [event] = await eventsOf(id);
    assert.equal(event?.authId, 'key-1');
    assert.deepEqual(event?.resource, { type: 'deployment', id: 'model-7' });
    assert.equal(event?.claims?.['x-saturn-foo'], 'Bar; "baz"');
    assert.equal(event?.claims?.['x-saturn-group-id'], 'g-1');
    assert.equal(event?.subject?.id, 'u-1');
  },
);

await run.check(
  'S2.4, S2.5, S2.9',
  'user, group and organization are not needed, and absent fields are absent',
  async () => {
    const id = traced();
    assert.equal((await call({ headers: whole({ 'x-request-id': id }) })).status, 200);
    const [event] = await eventsOf(id);
    assert.equal(Object.hasOwn(event as object, 'tenant'), false);
  },
);

await run.check('S2.13', 'a streamed answer bills what was streamed', async () => {
  const id = traced();
  await call({ query: 'tokens=41', headers: whole({ 'x-request-id': id }) });
  assert.equal((await eventsOf(id))[0]?.quantities.output_tokens?.value, 41);
});

await run.check('S2.13', 'a token is billed once wherever the packets of its line are cut', async () => {
  for (const every of [1, 4, 7]) {
    const id = traced();
    await call({ query: `tokens=11&every=${every}`, headers: whole({ 'x-request-id': id }) });
    assert.equal((await eventsOf(id))[0]?.quantities.output_tokens?.value, 11);
  }
});

await run.check('S2.12', 'an upstream fault is a 502 and bills nothing', async () => {
  const id = traced();
  assert.equal((await call({ query: 'fail', headers: whole({ 'x-request-id': id }) })).status, 502);
  const [event] = await eventsOf(id);
  assert.deepEqual([event?.status, event?.outcome, event?.billable], [502, 'server_error', false]);
});

for (const [title, query, leaveAfter, status] of [
  ['before the headers', 'silent', 0, 499],
  ['in the stream', 'endless&tokens=7', 20, 200],
] as const) {
  await run.check('S2.12, S2.13', `a client that leaves ${title} gives exactly one event, client_aborted`, async () => {
    const id = traced();
    await call({ query, leaveAfter, headers: whole({ 'x-request-id': id }) });
    await eventsOf(id);
    await new Promise((resolve) => setTimeout(resolve, 300));
    const events = await eventsOf(id);
    assert.deepEqual(
      events.map((event) => [event.outcome, event.status]),
      [['client_aborted', status]],
    );
    if (status === 200) assert.equal(events[0]?.quantities.output_tokens?.value, 7);
  });
}

await run.check(
  'S2.12',
  'the database stopped: answers are unaffected, the events come after it is back, and duplicates collapse',
  async () => {
    await postgres.kill();
    const ids = Array.from({ length: 10 }, traced);
    for (const id of ids) assert.equal((await call({ headers: whole({ 'x-request-id': id }) })).status, 200);
    await postgres.restart();
    for (const id of ids) assert.equal((await eventsOf(id)).length, 1);
  },
);

await run.check(
  'S2.11, S2.12',
  'kill -9 of the proxy under load: the ledger has every answer that a client saw, none twice',
  async () => {
    const seen: string[] = [];
    const load = Array.from({ length: 8 }, async () => {
      for (let index = 0; index < 40; index++) {
        const id = traced();
        const answer = await call({ headers: whole({ 'x-request-id': id }) }).catch(() => undefined);
        if (answer?.status === 200) seen.push(id);
        if (answer === undefined) return;
      }
    });
    await new Promise((resolve) => setTimeout(resolve, 250));
    await proxy.kill('SIGKILL');
    await Promise.all(load);
    assert.ok(seen.length > 0);
    proxy = await start();
    for (const id of seen) assert.equal((await eventsOf(id)).length, 1, id);
  },
);

await run.check(
  'S2.11',
  'after a clean end every source is closed and none has a gap; the totals equal the events',
  async () => {
    await proxy.kill('SIGTERM');
    for (const { state, missing } of await ledger.audit()) assert.deepEqual([state, missing], ['closed', []]);
    const query = { from: new Date(Date.now() - 3_600_000), to: new Date(Date.now() + 3_600_000) };
    const { rows } = await ledger.usage({ ...query, groupBy: ['authId'] });
    const counted = rows.reduce((sum, { events, notBillable }) => sum + events + notBillable.events, 0);
    assert.equal(counted, await total());
    assert.deepEqual(await ledger.verify(), []);
  },
);

await proxy.kill();
model.close();
model.closeAllConnections();
await pool.end();
await postgres.stop();
rmSync(folder, { recursive: true, force: true });
await run.finish();

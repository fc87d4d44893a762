/**
 * An API that knows its callers, refuses the wrong ones and accounts for every request: it starts on a free port, uses
 * itself over HTTP, and prints what happened. `npm run demo`; with `npm run demo -- --serve` it stays up.
 */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import express from 'express';
import {
  authenticate,
  createPipeline,
  createTokenRegistry,
  identityOf,
  jwtVerifier,
  memoryTokenStore,
  meter,
  opaqueTokenVerifier,
  requireScope,
  shutdown,
  usageOf,
} from 'tollkeeper';
import { sqliteLedger } from 'tollkeeper/sqlite';
import { testIssuer } from 'tollkeeper/testing';
import { openDatabase } from './support/open-database.js';

const serve = process.argv.includes('--serve');
let admitted = 0;
const folder = mkdtempSync(join(tmpdir(), 'tollkeeper-demo-'));

// 1. Who may call: two API clients with keys of ours, and users of an identity provider that signs JWTs.
const registry = createTokenRegistry({
  store: memoryTokenStore(),
  peppers: { current: { id: 'demo', secret: randomBytes(32) } },
  prefix: 'acme',
});
const [ada, bob] = await Promise.all(
  ['Ada Analytics', 'Bob Builders'].map((name) =>
    registry.createClient({ name, tenant: name.toLowerCase().replace(' ', '-') }),
  ),
);
const adaKey = await registry.issueToken({ clientId: ada!.id, scopes: ['verdicts:read'] });
const bobKey = await registry.issueToken({ clientId: bob!.id, scopes: ['verdicts:read', 'verdicts:write'] });
const idp = await testIssuer({ issuer: 'https://idp.example', audience: 'https://api.example' });
const jwt = await idp.token({ sub: 'carol', client_id: 'carols-app', tenant_id: 'carol-co', scope: 'verdicts:read' });
const foreign = await (await testIssuer({ issuer: 'https://idp.example', audience: 'https://api.example' })).token({
  sub: 'eve',
});

// 2. Where usage goes: a spool on disk, so that nothing is lost on the way, and a ledger that can be asked for totals.
const db = await openDatabase(join(folder, 'ledger.db'));
const ledger = sqliteLedger(db);
await ledger.migrate();
const pipeline = createPipeline({ sinks: [ledger], spool: { directory: join(folder, 'spool') }, source: 'demo' });
await pipeline.ready();

// 3. The API. Each route says what it needs; the handler asks nobody which kind of credential was shown.
const app = express();
const verifiers = [
  opaqueTokenVerifier({ registry }),
  jwtVerifier({ issuer: idp.issuer, audience: 'https://api.example', algorithms: ['ES256'], keys: { jwks: idp.jwks } }),
];
const metered = (type: string) =>
  meter({
    pipeline,
    type,
    resource: (req) => ({ type: 'project', id: String(req.headers['x-project'] ?? '') }),
    require: ['authId', 'clientId', 'resource.id'],
  });
app.use(authenticate({ verifiers, realm: 'demo' }));
app.get('/v1/verdicts', requireScope('verdicts:read'), metered('verdict.read'), (req, res) => {
  usageOf(req).add('characters', 42);
  res.json({ verdict: 'fine', for: identityOf(req).subject.id });
});
app.post('/v1/verdicts', requireScope('verdicts:write'), metered('verdict.write'), (_req, res) => {
  res.status(201).json({ verdict: 'written' });
});
const server = app.listen(0, '127.0.0.1');
await new Promise((resolve) => server.once('listening', resolve));
const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/verdicts`;

if (serve) {
  console.log(`The API is up. Try it, then stop it with Ctrl+C:\n`);
  console.log(`curl -i ${url}`);
  console.log(`curl -i -H 'x-project: p1' -H 'authorization: Bearer ${adaKey.token}' ${url}`);
  console.log(`curl -i -H 'x-project: p1' -H 'authorization: Bearer ${adaKey.token}' -X POST ${url}`);
  console.log(`curl -i -H 'authorization: Bearer ${bobKey.token}' ${url}`);
  console.log(`curl -i -H 'x-project: p1' -H 'authorization: Bearer ${bobKey.token}' -X POST ${url}`);
  await new Promise((resolve) => {
    process.once('SIGINT', resolve);
    process.once('SIGTERM', resolve);
  });
} else {
  await useTheApi();
}

// 4. The end: the server stops, what is in flight drains, the pipeline delivers; then the books are read.
const { undelivered } = await shutdown({ server, parts: [pipeline] });
const agrees = await printTheBooks();
await ledger.close();
db.close();
rmSync(folder, { recursive: true, force: true });
if (undelivered > 0 || !agrees) {
  console.error('The totals do not equal the admitted requests.');
  process.exitCode = 1;
}

async function useTheApi(): Promise<void> {
  const project = { 'x-project': 'p1' };
  const requests: [what: string, method: string, headers: Record<string, string>][] = [
    ['no credential', 'GET', project],
    ["Ada's API key", 'GET', { ...project, authorization: `Bearer ${adaKey.token}` }],
    ["Ada's API key again", 'GET', { ...project, authorization: `Bearer ${adaKey.token}` }],
    ["Carol's JWT", 'GET', { ...project, authorization: `Bearer ${jwt}` }],
    ['a JWT of another key', 'GET', { ...project, authorization: `Bearer ${foreign}` }],
    ['a mistyped API key', 'GET', { ...project, authorization: `Bearer ${adaKey.token.slice(0, -1)}_` }],
    ['Ada may not write', 'POST', { ...project, authorization: `Bearer ${adaKey.token}` }],
    ['Bob may', 'POST', { ...project, authorization: `Bearer ${bobKey.token}` }],
    ['Bob names no project', 'POST', { authorization: `Bearer ${bobKey.token}` }],
  ];
  for (const request of requests) await ask(...request);
  await registry.revokeToken(adaKey.record.id);
  await ask("Ada's key, just revoked", 'GET', { ...project, authorization: `Bearer ${adaKey.token}` });
}

async function ask(what: string, method: string, headers: Record<string, string>): Promise<void> {
  const response = await fetch(url, { method, headers });
  const body = (await response.json()) as { code?: string; missing?: { field: string }[] };
  if (response.ok) admitted += 1;
  const missing = body.missing?.map(({ field }) => field).join(', ');
  const said =
    body.code === undefined ? JSON.stringify(body) : `${body.code}${missing === undefined ? '' : ` (${missing})`}`;
  console.log(`${what.padEnd(24)} ${method.padEnd(4)} → ${response.status} ${said}`);
}

async function printTheBooks(): Promise<boolean> {
  const hour = 3_600_000;
  const report = await ledger.usage({
    from: new Date(Date.now() - hour),
    to: new Date(Date.now() + hour),
    groupBy: ['clientId', 'type'],
  });
  const names = new Map([ada!, bob!].map(({ id, name }) => [id, name]));
  console.log('\nUsage per client');
  console.table(
    report.rows.map(({ key, events, quantities }) => ({
      client: names.get(key.clientId ?? '') ?? key.clientId,
      type: key.type,
      requests: events,
      // What was not reported is absent, and not 0.
      characters: quantities.characters?.toString() ?? '',
    })),
  );
  const total = report.rows.reduce((sum, { events, notBillable }) => sum + events + notBillable.events, 0);
  const audit = await ledger.audit();
  const differences = await ledger.verify();
  console.log('Audit');
  console.table(
    audit.map(({ source, state, last, count, missing }) => ({ source, state, last, count, missing: missing.length })),
  );
  const complete = audit.every(({ state, missing }) => state === 'closed' && missing.length === 0);
  if (!serve) console.log(`${admitted} requests were admitted; the ledger has ${total}.`);
  return complete && differences.length === 0 && (serve || total === admitted);
}

import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import {
  authenticate,
  createTokenRegistry,
  memoryTokenStore,
  opaqueTokenVerifier,
  type TokenRegistry,
  type TokenStore,
} from 'tollkeeper';
import { postgresTokenStore } from 'tollkeeper/postgres';
import { sqliteTokenStore } from 'tollkeeper/sqlite';
import { openDatabase } from '../examples/support/open-database.js';
import { startPostgres } from '../test/support/start-postgres.js';
import { argument, environment, median, printTable, writeResults } from './report.js';

/**
 * What an opaque token costs, cached and not, beside a plain table of SHA-256 hashes in the same run. Every lookup asks for
 * another token, in random order, over `--tokens=50000` (the published figures: 1,000,000). "The query alone" is what the
 * driver and its database take for the same rows: what an uncached token costs beyond it is our own.
 */
const tokens = argument('tokens', 50_000);
const lookups = argument('lookups', 5_000);
const ROUNDS = 5;
const RECORD_SCOPES = ['scan:read', 'clearance:read'];
const folder = mkdtempSync(join(tmpdir(), 'tollkeeper-bench-tokens-'));
const rows: Record<string, unknown>[] = [];

/** The query of the stores, as they send it. */
const QUERY = `SELECT t.*, c.id AS has_client, c.tenant, c.plan
FROM tollkeeper_tokens t LEFT JOIN tollkeeper_clients c ON c.id = t.client_id WHERE t.id`;

interface Sample {
  readonly token: string;
  readonly id: string;
  readonly hash: string;
}

function registryOn(store: TokenStore): TokenRegistry {
  return createTokenRegistry({ store, peppers: { current: { id: 'p1', secret: randomBytes(32) } }, prefix: 'acme' });
}

/** Real tokens, some of which are asked for; the rest of the table is filled with rows of the same size. */
async function issue(registry: TokenRegistry): Promise<Sample[]> {
  const client = await registry.createClient({ name: 'customer', tenant: 'acme-inc', plan: 'pro' });
  const samples: Sample[] = [];
  for (let index = 0; index < Math.min(lookups, tokens); index++) {
    const input = { clientId: client.id, scopes: RECORD_SCOPES, groups: ['3', '1', '2'] };
    const { token, record } = await registry.issueToken(input);
    samples.push({ token, id: record.id, hash: sha256(token) });
  }
  return samples;
}

function sha256(token: string): string {
  return createHash('sha256').update(token).digest('hex');
}

/** One after the other: time by the clock of each in one round, and this process's CPU as the median of rounds without a clock. */
async function measure(what: string, count: number, once: (index: number) => unknown): Promise<void> {
  const shares: number[] = [];
  // The first rounds compile.
  for (let round = -2; round < ROUNDS; round++) {
    const before = process.cpuUsage();
    for (let index = 0; index < count; index++) {
      const result = once(index);
      if (result instanceof Promise) await result;
    }
    const { user, system } = process.cpuUsage(before);
    if (round >= 0) shares.push((user + system) / count);
  }
  const times: number[] = [];
  for (let index = 0; index < count; index++) {
    const started = performance.now();
    const result = once(index);
    if (result instanceof Promise) await result;
    times.push(performance.now() - started);
  }
  add(what, times, median(shares));
}

/** So many at a time, as under load: time of each from when it was asked for. */
async function measureTogether(what: string, count: number, width: number, once: (index: number) => Promise<unknown>) {
  const times: number[] = [];
  const cpu = process.cpuUsage();
  for (let from = 0; from < count; from += width) {
    const started = performance.now();
    const batch = Array.from({ length: Math.min(width, count - from) }, (_, index) =>
      once(from + index).then(() => times.push(performance.now() - started)),
    );
    await Promise.all(batch);
  }
  const { user, system } = process.cpuUsage(cpu);
  add(what, times, (user + system) / count);
}

function add(what: string, times: number[], cpu: number): void {
  times.sort((a, b) => a - b);
  const at = (share: number): string => ((times[Math.floor((times.length - 1) * share)] as number) * 1_000).toFixed(1);
  rows.push({ what, 'median µs': at(0.5), 'p99 µs': at(0.99), 'CPU µs': cpu.toFixed(2) });
}

const res = { writableEnded: false, destroyed: false } as never;

/** Through the middleware, with a fresh copy of the header, as it comes from a socket. */
function caller(registry: TokenRegistry, samples: readonly Sample[], cached: boolean) {
  const middleware = authenticate({
    verifiers: [opaqueTokenVerifier({ registry })],
    ...(cached ? {} : { cache: false as const }),
  });
  const headers = samples.map(({ token }) => Buffer.from(`Bearer ${token}`, 'latin1'));
  return (index: number): Promise<void> | undefined => {
    const authorization = (headers[index % headers.length] as Buffer).latin1Slice();
    const req = {
      headers: { authorization },
      rawHeaders: ['Authorization', authorization],
    } as unknown as IncomingMessage;
    if (cached) {
      middleware(req, res, () => {});
      if (req.identity !== undefined) return undefined;
    }
    return new Promise((resolve, reject) => {
      middleware(req, res, (error) => (error || req.identity === undefined ? reject(error) : resolve()));
    });
  };
}

try {
  {
    const registry = registryOn(memoryTokenStore());
    const samples = await issue(registry);
    const known = samples.slice(0, 500);
    const ask = caller(registry, known, true);
    for (let index = 0; index < known.length; index++) await ask(index);
    await measure('cached (authenticate, 500 callers)', lookups * 20, ask);
    const uncached = caller(registry, samples, false) as (index: number) => Promise<void>;
    await measure('uncached, memory store: our own share', samples.length * 4, uncached);
    await measureTogether('uncached, memory store, 50 at a time', samples.length, 50, uncached);
    await registry.close();
  }
  {
    const db = await openDatabase(join(folder, 'tokens.db'));
    db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536');
    const store = sqliteTokenStore(db);
    await store.migrate();
    const registry = registryOn(store);
    const samples = await issue(registry);
    db.exec(`
      INSERT INTO tollkeeper_tokens (id, version, client_id, pepper_id, mac, created_at, updated_at, record)
      WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${Math.max(1, tokens - samples.length)})
      SELECT lower(hex(randomblob(8))), 1, t.client_id, 'p1', t.mac, 0, 0, t.record
      FROM n, (SELECT * FROM tollkeeper_tokens LIMIT 1) t;
      CREATE TABLE plain_keys (hash TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
      INSERT INTO plain_keys SELECT lower(hex(randomblob(32))), t.record
      FROM tollkeeper_tokens, (SELECT record FROM tollkeeper_tokens LIMIT 1) t`);
    const insert = db.prepare('INSERT INTO plain_keys VALUES (?, ?)');
    db.exec('BEGIN');
    for (const { hash } of samples) insert.run(hash, JSON.stringify({ scopes: RECORD_SCOPES }));
    db.exec('COMMIT');
    const select = db.prepare('SELECT record FROM plain_keys WHERE hash = ?');
    await measure('plain SHA-256 table, SQLite', samples.length, (index) => {
      const { record } = select.get(sha256((samples[index] as Sample).token)) as { record: string };
      return JSON.parse(record) as unknown;
    });
    const query = db.prepare(`${QUERY} = ?`);
    await measure('the query alone, SQLite', samples.length, (index) => query.all((samples[index] as Sample).id));
    const uncached = caller(registry, samples, false) as (index: number) => Promise<void>;
    await measure('uncached, SQLite', samples.length, uncached);
    await measureTogether('uncached, SQLite, 50 at a time', samples.length, 50, uncached);
    await registry.close();
    db.close();
  }
  {
    const server = await startPostgres({ settings: { shared_buffers: '256MB' } });
    const pool = new pg.Pool({ connectionString: server.url, max: 4 });
    const store = postgresTokenStore(pool);
    await store.migrate();
    const registry = registryOn(store);
    const samples = await issue(registry);
    await pool.query(`
      INSERT INTO tollkeeper_tokens (id, version, client_id, pepper_id, mac, created_at, updated_at, record)
      SELECT substr(md5(random()::text || i), 1, 16), 1, t.client_id, 'p1', t.mac, 0, 0, t.record
      FROM generate_series(1, ${Math.max(1, tokens - samples.length)}) i, (SELECT * FROM tollkeeper_tokens LIMIT 1) t;
      CREATE TABLE plain_keys (hash text PRIMARY KEY, record text NOT NULL);
      INSERT INTO plain_keys SELECT encode(sha256(id::bytea), 'hex'), record FROM tollkeeper_tokens`);
    await pool.query('INSERT INTO plain_keys SELECT unnest($1::text[]), $2', [
      samples.map(({ hash }) => hash),
      JSON.stringify({ scopes: RECORD_SCOPES }),
    ]);
    await pool.query('VACUUM ANALYZE');
    const select = 'SELECT record FROM plain_keys WHERE hash = $1';
    await measure('plain SHA-256 table, PostgreSQL', samples.length, async (index) => {
      const { rows: found } = await pool.query(select, [sha256((samples[index] as Sample).token)]);
      return JSON.parse(found[0].record) as unknown;
    });
    await measure('the query alone, PostgreSQL', samples.length, (index) =>
      pool.query(`${QUERY} = ANY($1)`, [[(samples[index] as Sample).id]]),
    );
    const uncached = caller(registry, samples, false) as (index: number) => Promise<void>;
    await measure('uncached, PostgreSQL', samples.length, uncached);
    await measureTogether('uncached, PostgreSQL, 50 at a time', samples.length, 50, uncached);
    await registry.close();
    await pool.end();
    await server.stop();
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}

console.log(`${environment()}\n${tokens} tokens, ${Math.min(lookups, tokens)} of them asked for in each row`);
printTable(rows);
console.log(JSON.stringify({ tokens, rows }));
writeResults('tokens', rows);

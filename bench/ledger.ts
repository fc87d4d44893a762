import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { createPipeline, type Ledger, type UsageEvent } from 'tollkeeper';
import { postgresLedger } from 'tollkeeper/postgres';
import { sqliteLedger } from 'tollkeeper/sqlite';
import { openDatabase } from '../examples/support/open-database.js';
import { startPostgres } from '../test/support/start-postgres.js';
import { argument, environment, printTable, writeResults } from './report.js';

/**
 * The ledger: events per second from a spool into SQLite and PostgreSQL, beside one insert per event in the same run, and a
 * month's usage by client over many events.
 *
 * `--events=50000` drained from the spool, `--stored-sqlite=` and `--stored-postgres=` events under the query (the published
 * figures: 5,000,000 and 10,000,000), `--clients=200`.
 */
const drained = argument('events', 50_000);
const stored = { SQLite: argument('stored-sqlite', 200_000), PostgreSQL: argument('stored-postgres', 200_000) };
const clients = argument('clients', 200);
const signal = new AbortController().signal;
const MONTH = Date.parse('2026-03-01T00:00:00Z');
const folder = mkdtempSync(join(tmpdir(), 'tollkeeper-bench-ledger-'));

function eventOf(index: number, source: string, count: number): UsageEvent {
  return {
    id: `${source.replace('/', '-')}-${index.toString(36)}`,
    source,
    seq: index + 1,
    type: 'report',
    time: new Date(MONTH + Math.floor((index / count) * 30 * 86_400_000)).toISOString(),
    authId: `key-${index % (clients * 3)}`,
    subject: { kind: 'user', id: `user-${index % (clients * 5)}` },
    issuer: 'https://idp.example',
    verifier: 'jwt',
    tenant: `tenant-${index % clients}`,
    clientId: `client-${index % clients}`,
    plan: 'pro',
    method: 'POST',
    route: '/v1/reports/:id',
    status: 200,
    outcome: 'complete',
    billable: true,
    durationMs: 12.5,
    quantities: {
      requests: { value: 1, basis: 'measured' },
      output_tokens: { value: index % 4_096, basis: 'reported' },
    },
    dimensions: { model: `m-${index % 4}` },
  };
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return (performance.now() - started) / 1_000;
}

/** From a spool: everything is recorded while the sink holds still, then delivered. */
async function drain(name: string, ledger: Ledger): Promise<number> {
  let release = (): void => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  const sink = {
    ...ledger,
    write: async (events: readonly UsageEvent[], stop: AbortSignal) => held.then(() => ledger.write(events, stop)),
  };
  const pipeline = createPipeline({ sinks: [sink], source: 'bench', spool: { directory: join(folder, name) } });
  await pipeline.ready();
  for (let index = 0; index < drained; index += 1_000) {
    await Promise.all(
      Array.from({ length: Math.min(1_000, drained - index) }, (_, more) => {
        const { type, authId, subject, issuer, verifier, tenant, clientId, plan } = eventOf(index + more, 's', drained);
        return pipeline.record({
          type,
          authId,
          subject,
          issuer,
          verifier,
          tenant,
          clientId,
          plan,
          quantities: { requests: 1, output_tokens: more },
        } as never);
      }),
    );
  }
  const seconds = await timed(async () => {
    release();
    await pipeline.flush();
  });
  await pipeline.close();
  return seconds;
}

async function fill(ledger: Ledger, count: number, concurrency: number): Promise<number> {
  const size = ledger.limits?.maxEvents ?? 100;
  let next = 0;
  return timed(() =>
    Promise.all(
      Array.from({ length: concurrency }, async () => {
        while (next < count) {
          const from = next;
          next += size;
          const batch = Array.from({ length: Math.min(size, count - from) }, (_, more) =>
            eventOf(from + more, 'bulk/1', count),
          );
          await ledger.write(batch, signal);
        }
      }),
    ),
  );
}

async function month(ledger: Ledger): Promise<number[]> {
  const query = { from: new Date(MONTH), to: new Date(MONTH + 31 * 86_400_000), groupBy: ['clientId'] as const };
  const times: number[] = [];
  for (let run = 0; run < 5; run++) times.push(await timed(() => ledger.usage(query)));
  return times.sort((a, b) => a - b);
}

const rows: Record<string, unknown>[] = [];
const rate = (count: number, seconds: number): string => `${Math.round(count / seconds).toLocaleString('en')} events/s`;

const db = await openDatabase(join(folder, 'ledger.db'));
db.exec('PRAGMA journal_mode = WAL');
const sqlite = sqliteLedger(db);
await sqlite.migrate();
const few = Math.min(drained, 5_000);

const server = await startPostgres({ durable: true, settings: { shared_buffers: '256MB' } });
const pool = new pg.Pool({ connectionString: server.url, max: 4 });
const postgres = postgresLedger(pool);
await postgres.migrate();
try {
  db.exec('CREATE TABLE naive (id TEXT PRIMARY KEY, json TEXT NOT NULL)');
  const insert = db.prepare('INSERT INTO naive VALUES (?, ?)');
  const naiveSqlite = await timed(async () => {
    for (let index = 0; index < few; index++) insert.run(`n${index}`, JSON.stringify(eventOf(index, 'n/1', few)));
  });
  await pool.query('CREATE TABLE naive (id text PRIMARY KEY, json text NOT NULL)');
  const naivePostgres = await timed(async () => {
    let next = 0;
    await Promise.all(
      Array.from({ length: 4 }, async () => {
        while (next < few) {
          const index = next++;
          await pool.query('INSERT INTO naive VALUES ($1, $2)', [
            `n${index}`,
            JSON.stringify(eventOf(index, 'n/1', few)),
          ]);
        }
      }),
    );
  });
  rows.push({ what: 'SQLite, one insert per event', result: rate(few, naiveSqlite) });
  rows.push({ what: 'SQLite, drained from a spool', result: rate(drained, await drain('sqlite', sqlite)) });
  rows.push({ what: 'PostgreSQL, one insert per event, 4 connections', result: rate(few, naivePostgres) });
  rows.push({ what: 'PostgreSQL, drained from a spool', result: rate(drained, await drain('postgres', postgres)) });
  for (const [name, ledger, count] of [
    ['SQLite', sqlite, stored.SQLite],
    ['PostgreSQL', postgres, stored.PostgreSQL],
  ] as const) {
    const seconds = await fill(ledger, count, name === 'SQLite' ? 1 : 2);
    rows.push({ what: `${name}, write() in batches of ${ledger.limits?.maxEvents}`, result: rate(count, seconds) });
    const times = await month(ledger);
    rows.push({
      what: `${name}, usage() of a month by client, ${clients.toLocaleString('en')} clients, ${count.toLocaleString('en')} events`,
      result: `${((times[2] as number) * 1_000).toFixed(0)} ms (${((times[0] as number) * 1_000).toFixed(0)}–${((times[4] as number) * 1_000).toFixed(0)})`,
    });
  }
} finally {
  await pool.end();
  await server.stop();
  db.close();
  rmSync(folder, { recursive: true, force: true });
}
console.log(environment());
printTable(rows);
writeResults('ledger', rows);

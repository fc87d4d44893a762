import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { postgresLedger } from 'tollkeeper/postgres';
import { expect, it } from 'vitest';
import { describeWith, sized, startPostgres, startProcess } from '../support/index.js';

const WRITERS = sized(4, 10);
const SECONDS = sized(4, 60);

describeWith('postgres', 'many processes that write into one ledger', () => {
  it('never deadlock, lose nothing and count nothing twice', async () => {
    const server = await startPostgres();
    const pool = new pg.Pool({ connectionString: server.url, max: 4 });
    pool.on('error', () => {});
    const ledger = postgresLedger(pool);
    await ledger.migrate();
    const file = fileURLToPath(new URL('./ledger-writer.ts', import.meta.url));
    const writers = await Promise.all(
      Array.from({ length: WRITERS }, (_, index) =>
        startProcess(file, { env: { DATABASE_URL: server.url, WRITER: String(index), SECONDS: String(SECONDS) } }),
      ),
    );
    const ends = await Promise.all(writers.map(({ exited }) => exited));
    expect(ends.map((end) => (typeof end === 'object' ? (end as { code: number | null }).code : end))).toEqual(
      new Array(WRITERS).fill(0),
    );
    const { rows } = await pool.query(
      `SELECT count(*)::int AS events, count(DISTINCT (source, seq))::int AS different,
         sum((json::jsonb #>> '{quantities,tokens,value}')::numeric)::text AS tokens FROM tollkeeper_events`,
    );
    const [deadlocks] = (await pool.query('SELECT sum(deadlocks)::int AS count FROM pg_stat_database')).rows;
    const report = await ledger.usage({
      from: '2026-03-01',
      to: '2026-03-02',
      groupBy: ['tenant', 'clientId', 'authId'],
    });
    const total = report.rows.reduce((sum, { events }) => sum + events, 0);
    const tokens = report.rows.reduce((sum, { quantities }) => sum + (quantities.tokens ?? 0n), 0n);
    console.log(`${WRITERS} writers, ${SECONDS} s: ${rows[0].events} events, ${deadlocks.count} deadlocks`);
    expect(rows[0].events).toBeGreaterThan(WRITERS * 50);
    expect(rows[0].different).toBe(rows[0].events);
    expect(total).toBe(rows[0].events);
    expect(tokens).toBe(BigInt(rows[0].tokens));
    expect(deadlocks.count).toBe(0);
    expect(await ledger.verify()).toEqual([]);
    const audit = await ledger.audit();
    expect(audit.length).toBe(WRITERS + 1);
    for (const { source, state, missing } of audit) {
      expect(missing).toEqual([]);
      if (source !== 'writer/shared') expect(state).toBe('closed');
    }
    await pool.end();
    await server.stop();
  }, 300_000);
});

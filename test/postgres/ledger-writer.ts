/** A process that writes into a ledger as fast as it can: its own events, and again some of those that it shares with all. */
import pg from 'pg';
import type { UsageEvent } from 'tollkeeper';
import { postgresLedger } from 'tollkeeper/postgres';
import { usageEvent } from 'tollkeeper/testing';

const { DATABASE_URL, WRITER, SECONDS } = process.env as Record<string, string>;
const pool = new pg.Pool({ connectionString: DATABASE_URL, max: 3 });
pool.on('error', () => {});
const ledger = postgresLedger(pool);
await ledger.ready();
console.log(`ready ${JSON.stringify({ writer: WRITER })}`);

const signal = new AbortController().signal;
const source = `writer/${WRITER}`;
const until = Date.now() + Number(SECONDS) * 1_000;
let seq = 0;
let batches = 0;

function event(name: string, number: number): UsageEvent {
  return usageEvent({
    id: `${name.replace('/', '.')}-${number}`,
    source: name,
    seq: number,
    // All writers meet on the same few roll-ups.
    tenant: `t${number % 5}`,
    clientId: `c${number % 7}`,
    authId: `k${number % 11}`,
    time: new Date(Date.parse('2026-03-01T10:00:00Z') + (number % 50) * 60_000).toISOString(),
    quantities: { requests: { value: 1, basis: 'measured' }, tokens: { value: number, basis: 'reported' } },
  });
}

async function write(): Promise<void> {
  while (Date.now() < until) {
    const own = Array.from({ length: 50 }, () => event(source, ++seq));
    // Everybody delivers these: each counts once.
    const shared = Array.from({ length: 10 }, (_, index) => event('writer/shared', 1 + ((batches * 10 + index) % 200)));
    batches += 1;
    await ledger.write(
      [...own, ...shared].sort(() => Math.random() - 0.5),
      signal,
    );
  }
}
await Promise.all([write(), write()]);
await ledger.sourceNotes([{ kind: 'closed', source, lastSeq: seq }]);
await pool.end();
console.log(`done ${JSON.stringify({ seq })}`);

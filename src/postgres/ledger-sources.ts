import { createSourceRecord, type SourceRecord } from '../usage/source-book.js';
import type { PostgresConnection } from './postgres-pool.js';

type Querying = Pick<PostgresConnection, 'query'>;

/** The records of these sources, locked until the end of the transaction: one writer at a time per source. */
export async function lockSources(connection: Querying, names: ReadonlySet<string>): Promise<SourceRecord[]> {
  const sorted = [...names].sort();
  await connection.query('INSERT INTO tollkeeper_sources (source) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING', [
    sorted,
  ]);
  const { rows } = await connection.query(
    'SELECT * FROM tollkeeper_sources WHERE source = ANY($1) ORDER BY source COLLATE "C" FOR UPDATE',
    [sorted],
  );
  return rows.map(recordOf);
}

export async function saveSource(connection: Querying, record: SourceRecord): Promise<void> {
  const { source, last, count, closed, throughMs, arrived, excused } = record;
  await connection.query(
    `UPDATE tollkeeper_sources SET last = $2, count = $3, closed = $4, through_ms = $5, arrived = $6, excused = $7
     WHERE source = $1`,
    [source, last, count, closed, throughMs ?? null, JSON.stringify(arrived.runs()), JSON.stringify(excused.runs())],
  );
}

export async function loadSources(connection: Querying): Promise<SourceRecord[]> {
  return (await connection.query('SELECT * FROM tollkeeper_sources ORDER BY source COLLATE "C"')).rows.map(recordOf);
}

/** Milliseconds: what is older may have been deleted. */
export async function loadPrunedMs(connection: Querying): Promise<number> {
  const { rows } = await connection.query("SELECT value FROM tollkeeper_ledger_state WHERE name = 'pruned_ms'");
  return rows[0] === undefined ? Number.NEGATIVE_INFINITY : Number(rows[0].value);
}

function recordOf(row: Readonly<Record<string, unknown>>): SourceRecord {
  const record = createSourceRecord(String(row.source));
  record.last = Number(row.last);
  record.count = Number(row.count);
  record.closed = row.closed === true;
  record.throughMs = row.through_ms === null ? undefined : Number(row.through_ms);
  for (const [from, to] of row.arrived as [number, number][]) record.arrived.add(from, to);
  for (const [from, to] of row.excused as [number, number][]) record.excused.add(from, to);
  return record;
}

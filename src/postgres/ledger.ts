import type { SourceNote } from '../meter/sink.js';
import type { UsageEvent } from '../meter/usage-event.js';
import { isBookable, verdictsOn } from '../usage/bookable.js';
import { addEvent, addRollup } from '../usage/event-totals.js';
import type { Ledger } from '../usage/ledger.js';
import {
  DAY_MS,
  keyText,
  QUARTER_MS,
  ROLLUP_COLUMNS,
  ROLLUP_KEYS,
  type RollupKey,
  rollupKeyOf,
} from '../usage/rollup.js';
import { RollupDifferences } from '../usage/rollup-differences.js';
import { auditOf, completeness, enterNote, type SourceRecord } from '../usage/source-book.js';
import { isRolledUp, planUsage, type Stretch } from '../usage/usage-plan.js';
import { matches, type ParsedQuery, parseEventFilter, parseUsageQuery } from '../usage/usage-query.js';
import { UsageTotals } from '../usage/usage-totals.js';
import { LEDGER_STEPS, monthStart, PARTITION_LOCK, partitionName } from './ledger-schema.js';
import { loadPrunedMs, loadSources, lockSources, saveSource } from './ledger-sources.js';
import { LedgerWriter, requestIdText } from './ledger-writer.js';
import { assertMigrated, migrate } from './migrate.js';
import { inTransaction, isPostgresPool, type PostgresConnection, type PostgresPool } from './postgres-pool.js';

/** Rows that are fetched at once while events are streamed. */
const PAGE = 2_000;
const ALWAYS: Stretch = { fromMs: Number.NEGATIVE_INFINITY, toMs: Number.POSITIVE_INFINITY };
/** Milliseconds that `prune` waits for those who read: writers wait behind it. */
const PRUNE_WAIT_MS = 10_000;

export interface PostgresLedgerOptions {
  /** The sink's name. Default `ledger`. */
  readonly name?: string;
  /** Batches that one process writes at once, each on a connection of its own. Default 2. */
  readonly concurrency?: number;
}

/** A ledger in PostgreSQL, which can also forget the events that are too old to be asked for. */
export interface PostgresLedger extends Ledger {
  /**
   * Deletes the events before `before`: drops whole months, deletes the rest. Roll-ups and audit keep them. What is asked
   * by subject, resource, plan or dimension is then known only from `before` on, and so are corrections of older events.
   *
   * @throws when somebody reads events for longer than 10 s meanwhile (`events()`, `verify()`): try again later.
   */
  prune(before: Date): Promise<void>;
}

interface EventRow {
  readonly event: UsageEvent;
  readonly attributed: UsageEvent | undefined;
  /** Of the roll-ups that it was booked under. */
  readonly keyId: number | undefined;
}

/**
 * The ledger in PostgreSQL 13 or later, for many writers: takes the app's own pool, and never ends it. Call `migrate()`
 * once before use. Writers that meet take their locks in one order, so that they wait and never deadlock.
 *
 * Totals by tenant, client, authId, issuer and type come from roll-ups; by subject, resource, plan or dimension from the
 * events themselves, which takes time in proportion to their number.
 *
 * @throws TypeError when `pool` is no pool.
 */
export function postgresLedger(pool: PostgresPool, options: PostgresLedgerOptions = {}): PostgresLedger {
  if (!isPostgresPool(pool)) throw new TypeError('postgresLedger: a pool with query() and connect() is needed');
  const { name = 'ledger', concurrency = 2 } = options;
  const writer = new LedgerWriter(pool);

  /** The UTC days of a query by intervals that there are roll-ups of: one look into the index for each. */
  async function bookedDays(connection: PostgresConnection, query: ParsedQuery): Promise<number[]> {
    if (query.intervalStart === undefined || !isRolledUp(query)) return [];
    const { rows } = await connection.query(
      `WITH RECURSIVE booked (day) AS (
         SELECT min(bucket) FROM tollkeeper_rollups WHERE tier = $1::bigint AND bucket >= $2::bigint
         UNION ALL
         SELECT (SELECT min(bucket) FROM tollkeeper_rollups WHERE tier = $1 AND bucket > day) FROM booked WHERE day < $3::bigint
       ) SELECT day FROM booked WHERE day < $3`,
      [DAY_MS, Math.floor(query.fromMs / DAY_MS) * DAY_MS, query.toMs],
    );
    return rows.map(({ day }) => Number(day));
  }

  async function addRollups(
    connection: PostgresConnection,
    totals: UsageTotals,
    query: ParsedQuery,
    tier: number,
    stretches: readonly Stretch[],
  ): Promise<void> {
    if (stretches.length === 0) return;
    const wanted = ROLLUP_KEYS.map((key, index) => ({ key, column: ROLLUP_COLUMNS[index] as string }));
    const grouped = wanted.filter(({ key }) => query.keys.includes(key));
    const filters = wanted.filter(({ key }) => query.filter[key] !== undefined);
    const columns = ['start_ms', ...grouped.map(({ column }) => column), 'billable', 'quantity'].join(', ');
    const where = filters.map(({ column }, index) => `${column} = $${index + 5}`).join(' AND ');
    const { rows } = await connection.query(
      `SELECT ${columns}, SUM(amount)::text AS amount
       FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS stretch (from_ms, to_ms, start_ms)
       CROSS JOIN LATERAL (SELECT key_id, quantity, SUM(amount) AS amount FROM tollkeeper_rollups
         WHERE tier = $1 AND bucket >= from_ms AND bucket < to_ms GROUP BY key_id, quantity) AS sums
       JOIN tollkeeper_usage_keys USING (key_id)
       ${where === '' ? '' : `WHERE ${where}`}
       GROUP BY ${columns}`,
      [
        tier,
        stretches.map(({ fromMs }) => fromMs),
        stretches.map(({ toMs }) => toMs),
        stretches.map(({ startMs }) => startMs ?? null),
        ...filters.map(({ key }) => keyText(query.filter[key] ?? '')),
      ],
    );
    for (const row of rows) {
      addRollup(totals, query, {
        startMs: row.start_ms === null ? undefined : Number(row.start_ms),
        values: Object.fromEntries(grouped.map(({ key, column }) => [key, String(row[column])])),
        billable: row.billable === true,
        quantity: String(row.quantity),
        amount: BigInt(String(row.amount)),
      });
    }
  }

  /** The events of a stretch, each with the event whose attribution counts. Inside a transaction. */
  async function* stream(
    connection: PostgresConnection,
    { fromMs, toMs }: Stretch,
    { ordered = false, id, requestId }: { ordered?: boolean; id?: string; requestId?: string } = {},
  ): AsyncGenerator<EventRow> {
    const cursor = 'tollkeeper_stream';
    const values: unknown[] = [instantOf(fromMs), instantOf(toMs)];
    const also = (column: string, value: string | undefined): string =>
      value === undefined ? '' : `AND ${column} = $${values.push(value)}`;
    await connection.query(
      `DECLARE ${cursor} NO SCROLL CURSOR FOR
       SELECT e.json, e.key_id, CASE WHEN e.corrects IS NOT NULL THEN (
         SELECT o.json FROM tollkeeper_events o WHERE o.id = e.corrects AND o.corrects IS NULL
         ORDER BY o.source, o.time LIMIT 1) END AS original
       FROM tollkeeper_events e
       WHERE e.time >= $1 AND e.time < $2 ${also('e.id', id)}
         ${also('e.request_id', requestId === undefined ? undefined : requestIdText(requestId))}
       ${ordered ? 'ORDER BY e.time, e.source, e.seq, e.id' : ''}`,
      values,
    );
    for (;;) {
      const { rows } = await connection.query(`FETCH ${PAGE} FROM ${cursor}`);
      for (const { json, key_id, original } of rows) {
        const event = JSON.parse(String(json)) as UsageEvent;
        const found = original === null ? undefined : (JSON.parse(String(original)) as UsageEvent);
        yield {
          event,
          attributed: event.corrects === undefined ? event : found,
          keyId: key_id === null ? undefined : Number(key_id),
        };
      }
      if (rows.length < PAGE) break;
    }
    await connection.query(`CLOSE ${cursor}`);
  }

  /** Runs `work` on one snapshot of the database. */
  function onSnapshot<T>(work: (connection: PostgresConnection) => Promise<T>): Promise<T> {
    return inTransaction(pool, async (connection) => {
      await connection.query('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY');
      return work(connection);
    });
  }

  return {
    name,
    limits: { maxEvents: 8_000, maxBytes: 8 * 1024 * 1024, concurrency },
    async ready() {
      await assertMigrated(pool, 'ledger', LEDGER_STEPS);
    },
    async migrate() {
      await migrate(pool, 'ledger', LEDGER_STEPS);
    },
    async close() {},
    async write(events, signal) {
      const taken = events.filter(isBookable);
      await writer.write(taken, signal);
      return verdictsOn(events, taken);
    },
    async sourceNotes(notes: readonly SourceNote[], signal?: AbortSignal) {
      if (notes.length === 0) return;
      await inTransaction(
        pool,
        async (connection) => {
          const records = await lockSources(connection, new Set(notes.map(({ source }) => source)));
          const byName = new Map(records.map((record) => [record.source, record]));
          for (const note of notes) enterNote(byName.get(note.source) as SourceRecord, note);
          for (const record of records) await saveSource(connection, record);
        },
        signal,
      );
    },
    async usage(given) {
      const query = parseUsageQuery(given);
      return onSnapshot(async (connection) => {
        const totals = new UsageTotals();
        const plan = planUsage(query, await bookedDays(connection, query));
        await addRollups(connection, totals, query, DAY_MS, plan.days);
        await addRollups(connection, totals, query, QUARTER_MS, plan.quarters);
        for (const stretch of plan.events) {
          for await (const { event, attributed } of stream(connection, stretch)) {
            addEvent(totals, query, event, attributed);
          }
        }
        return { rows: totals.rows(), ...completeness(await loadSources(connection), query.toMs) };
      });
    },
    async audit() {
      return (await loadSources(pool)).map(auditOf);
    },
    async *events(given) {
      const { fromMs, toMs, ...filter } = parseEventFilter(given);
      const connection = await pool.connect();
      let broken = false;
      const spoil = (): void => {
        broken = true;
      };
      // The loss of the connection fails the reading, and only that.
      connection.on('error', spoil);
      try {
        await connection.query('BEGIN READ ONLY');
        for await (const { event } of stream(connection, { fromMs, toMs }, { ...filter, ordered: true })) {
          if (matches(event, filter)) yield event;
        }
      } finally {
        await connection.query('ROLLBACK').catch(spoil);
        connection.removeListener('error', spoil);
        connection.release(broken);
      }
    },
    async verify() {
      return onSnapshot(async (connection) => {
        const differences = new RollupDifferences(await loadPrunedMs(connection));
        const keys = await loadKeys(connection);
        for await (const { event, attributed, keyId } of stream(connection, ALWAYS)) {
          // The original of a correction may have been deleted: then its key tells what it was booked under.
          const booked = event.corrects !== undefined && keyId !== undefined ? keys.get(keyId) : undefined;
          differences.add(event, attributed === undefined ? booked : rollupKeyOf(attributed));
        }
        const { rows } = await connection.query(
          'SELECT tier, bucket, key_id, quantity, amount::text AS amount FROM tollkeeper_rollups ORDER BY tier, bucket',
        );
        return differences.compare(
          rows.map((row) => ({
            tier: Number(row.tier),
            bucket: Number(row.bucket),
            key: keys.get(Number(row.key_id)) ?? { values: [], billable: false },
            quantity: String(row.quantity),
            amount: BigInt(String(row.amount)),
          })),
        );
      });
    },
    async prune(before) {
      const beforeMs = before.getTime();
      if (Number.isNaN(beforeMs)) throw new TypeError('prune: before must be a valid Date');
      await inTransaction(pool, async (connection) => {
        await connection.query(`SET LOCAL lock_timeout = ${PRUNE_WAIT_MS}`);
        await connection.query('SELECT pg_advisory_xact_lock($1)', [PARTITION_LOCK]);
        await connection.query(
          `INSERT INTO tollkeeper_ledger_state AS s (name, value) VALUES ('pruned_ms', $1)
           ON CONFLICT (name) DO UPDATE SET value = GREATEST(s.value, excluded.value)`,
          [beforeMs],
        );
        const { rows } = await connection.query(
          `SELECT c.relname AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = 'tollkeeper_events'::regclass AND c.relname < $1`,
          [partitionName(monthStart(beforeMs))],
        );
        for (const { name: partition } of rows) await connection.query(`DROP TABLE ${String(partition)}`);
        await connection.query('DELETE FROM tollkeeper_events WHERE time < $1', [before.toISOString()]);
      });
    },
  };
}

async function loadKeys(connection: PostgresConnection): Promise<Map<number, RollupKey>> {
  const { rows } = await connection.query('SELECT * FROM tollkeeper_usage_keys');
  return new Map(
    rows.map((row) => [
      Number(row.key_id),
      { values: ROLLUP_COLUMNS.map((column) => String(row[column])), billable: row.billable === true },
    ]),
  );
}

function instantOf(ms: number): string {
  return Number.isFinite(ms) ? new Date(ms).toISOString() : ms < 0 ? '-infinity' : 'infinity';
}

import type { SourceNote } from '../meter/sink.js';
import type { UsageEvent } from '../meter/usage-event.js';
import { Arrivals } from '../usage/arrivals.js';
import { isBookable, verdictsOn } from '../usage/bookable.js';
import { addEvent, addRollup } from '../usage/event-totals.js';
import type { Ledger } from '../usage/ledger.js';
import {
  DAY_MS,
  joinAmount,
  QUARTER_MS,
  ROLLUP_COLUMNS,
  ROLLUP_KEYS,
  RollupChanges,
  rollupKeyOf,
} from '../usage/rollup.js';
import { RollupDifferences } from '../usage/rollup-differences.js';
import { auditOf, completeness, createSourceRecord, enterNote, type SourceRecord } from '../usage/source-book.js';
import { planUsage, type Stretch } from '../usage/usage-plan.js';
import { matches, type ParsedQuery, parseEventFilter, parseUsageQuery } from '../usage/usage-query.js';
import { UsageTotals } from '../usage/usage-totals.js';
import { LEDGER_STEPS, monthStart, partitionName } from './ledger-schema.js';
import { assertMigrated, migrate } from './migrate.js';
import { inTransaction, isPostgresPool, type PostgresConnection, type PostgresPool } from './postgres-pool.js';

/** Rows that are fetched at once while events are streamed. */
const PAGE = 2_000;
/** Cached ids of roll-up keys; beyond, the cache begins anew. */
const MAX_CACHED_KEYS = 100_000;
const ALWAYS: Stretch = { fromMs: Number.NEGATIVE_INFINITY, toMs: Number.POSITIVE_INFINITY };
/** The advisory lock under which partitions are made and dropped: the bytes of `part`. */
const PARTITION_LOCK = 0x70617274;

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
   */
  prune(before: Date): Promise<void>;
}

interface EventRow {
  readonly event: UsageEvent;
  readonly attributed: UsageEvent | undefined;
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
  const keyIds = new Map<string, string>();
  const partitions = new Set<number>();

  /** Makes the ids of the batch's keys known. Keys never change, so they need not be part of the batch's transaction. */
  async function learnKeys(events: readonly UsageEvent[]): Promise<void> {
    const unknown = new Map<string, readonly (string | boolean)[]>();
    if (keyIds.size >= MAX_CACHED_KEYS) keyIds.clear();
    for (const event of events) {
      if (event.corrects !== undefined) continue;
      const { values, billable } = rollupKeyOf(event);
      const key = JSON.stringify([...values, billable]);
      if (!keyIds.has(key)) unknown.set(key, [...values, billable]);
    }
    if (unknown.size === 0) return;
    const rows = [...unknown.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, row]) => row);
    const columns = [...ROLLUP_COLUMNS, 'billable'];
    const arrays = columns.map((_, index) => rows.map((row) => row[index]));
    const unnest = 'unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[])';
    await pool.query(
      `INSERT INTO tollkeeper_usage_keys (${columns.join(', ')}) SELECT * FROM ${unnest} ON CONFLICT DO NOTHING`,
      arrays,
    );
    const found = await pool.query(
      `SELECT key_id, ${columns.map((column) => `k.${column}`).join(', ')}
       FROM tollkeeper_usage_keys k JOIN ${unnest} AS wanted (${columns.join(', ')}) USING (${columns.join(', ')})`,
      arrays,
    );
    for (const row of found.rows) {
      keyIds.set(JSON.stringify(columns.map((column) => row[column])), String(row.key_id));
    }
  }

  function keyIdOf(event: UsageEvent): string {
    const { values, billable } = rollupKeyOf(event);
    return keyIds.get(JSON.stringify([...values, billable])) as string;
  }

  /** Makes the months of the batch, and the ones after, before the transaction that needs them. */
  async function ensurePartitions(events: readonly UsageEvent[]): Promise<void> {
    const needed = new Set<number>();
    for (const { time } of events) {
      const ms = Date.parse(time);
      for (const offset of [0, 1]) needed.add(monthStart(ms, offset));
    }
    const unknown = [...needed].filter((month) => !partitions.has(month)).sort((a, b) => a - b);
    if (unknown.length === 0) return;
    await inTransaction(pool, async (connection) => {
      await connection.query('SELECT pg_advisory_xact_lock($1)', [PARTITION_LOCK]);
      for (const month of unknown) {
        const [from, to] = [new Date(month), new Date(monthStart(month, 1))].map((date) => date.toISOString());
        await connection.query(
          `CREATE TABLE IF NOT EXISTS ${partitionName(month)} PARTITION OF tollkeeper_events
           FOR VALUES FROM ('${from}') TO ('${to}')`,
        );
      }
    });
    for (const month of unknown) partitions.add(month);
  }

  /** The records of these sources, locked until the end of the transaction: one writer at a time per source. */
  async function lockSources(connection: PostgresConnection, names: ReadonlySet<string>): Promise<SourceRecord[]> {
    const sorted = [...names].sort();
    await connection.query('INSERT INTO tollkeeper_sources (source) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING', [
      sorted,
    ]);
    const { rows } = await connection.query(
      'SELECT * FROM tollkeeper_sources WHERE source = ANY($1) ORDER BY source FOR UPDATE',
      [sorted],
    );
    return rows.map(recordOf);
  }

  async function saveSource(connection: PostgresConnection, record: SourceRecord): Promise<void> {
    const { source, last, count, closed, throughMs, arrived, excused } = record;
    await connection.query(
      `UPDATE tollkeeper_sources SET last = $2, count = $3, closed = $4, through_ms = $5, arrived = $6, excused = $7
       WHERE source = $1`,
      [source, last, count, closed, throughMs ?? null, JSON.stringify(arrived.runs()), JSON.stringify(excused.runs())],
    );
  }

  /**
   * Locks are taken in one order by every writer: events by source and sequence number, then sources, then roll-ups, each
   * sorted; what all writers share comes last, and is locked for as short as can be.
   */
  async function enterBatch(connection: PostgresConnection, batch: readonly UsageEvent[]): Promise<void> {
    const fresh = await withoutForgotten(connection, batch);
    const events = new Map(fresh.map((event) => [identify(event.id, event.source, Date.parse(event.time)), event]));
    const inserted = await insertEvents(connection, events);
    if (inserted.length === 0) return;
    const arrivals = new Arrivals(await lockSources(connection, new Set(inserted.map(({ source }) => source))));
    const changes = new RollupChanges<string>();
    for (const event of inserted) {
      arrivals.note(event);
      if (event.corrects === undefined) changes.add(keyIdOf(event), Date.parse(event.time), event, true);
    }
    for (const record of arrivals.changed()) await saveSource(connection, record);
    await bookRollups(connection, changes);
  }

  /** Without the old events whose rows were deleted: their sequence numbers tell that they were here. */
  async function withoutForgotten(connection: PostgresConnection, batch: readonly UsageEvent[]) {
    const pruned = await prunedMs(connection);
    if (!batch.some(({ time }) => Date.parse(time) < pruned)) return batch;
    const arrivals = new Arrivals(await lockSources(connection, new Set(batch.map(({ source }) => source))));
    return batch.filter((event) => Date.parse(event.time) >= pruned || !arrivals.had(event));
  }

  /** @returns the events that were new. */
  async function insertEvents(
    connection: PostgresConnection,
    events: ReadonlyMap<string, UsageEvent>,
  ): Promise<UsageEvent[]> {
    if (events.size === 0) return [];
    const list = [...events.values()];
    // The events travel as one JSON array: escaping each of them as an array's text costs more. Mostly all of them are
    // new, and then nothing needs to travel back.
    const { rows } = await connection.query(
      `WITH entered AS (
         INSERT INTO tollkeeper_events (id, source, time, seq, key_id, corrects, request_id, json)
         SELECT id, source, time, seq, key_id, corrects, request_id, json::text
         FROM ROWS FROM (unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::bigint[], $6::text[], $7::text[]),
           json_array_elements($8::json)) AS given (id, source, time, seq, key_id, corrects, request_id, json)
         ON CONFLICT DO NOTHING
         RETURNING id, source, (extract(epoch FROM time) * 1000)::bigint AS ms
       )
       SELECT count(*) AS count,
         CASE WHEN count(*) < $9 THEN coalesce(json_agg(json_build_array(id, source, ms)), '[]') END AS entered FROM entered`,
      [
        list.map(({ id }) => id),
        list.map(({ source }) => source),
        list.map(({ time }) => time),
        list.map(({ seq }) => seq),
        list.map((event) => (event.corrects === undefined ? keyIdOf(event) : null)),
        list.map(({ corrects }) => corrects ?? null),
        list.map(({ requestId }) => requestId ?? null),
        `[${list.map((event) => JSON.stringify(event)).join(',')}]`,
        list.length,
      ],
    );
    const [row] = rows;
    if (Number(row?.count) === list.length) return list;
    const entered = row?.entered as [id: string, source: string, ms: number][];
    return entered.map(([id, source, ms]) => events.get(identify(id, source, ms)) as UsageEvent);
  }

  /**
   * Books the corrections of this batch whose original is here, and those that waited for an event of this batch. After
   * the batch was committed: of two processes that write a correction and its original at once, the later one then sees
   * both. A process that dies before has not been told that the batch is written, and writes it again.
   */
  async function bookCorrections(batch: readonly UsageEvent[]): Promise<void> {
    const waiting = 'corrects IS NOT NULL AND key_id IS NULL';
    const { rowCount } = await pool.query(`SELECT 1 FROM tollkeeper_events WHERE ${waiting} LIMIT 1`);
    if (rowCount === 0) return;
    await inTransaction(pool, async (connection) => {
      const { rows } = await connection.query(
        `SELECT c.id, c.source, c.time, c.json, o.key_id
         FROM (SELECT * FROM tollkeeper_events WHERE ${waiting} AND corrects = ANY($1)) AS c
         JOIN tollkeeper_events o ON o.id = c.corrects AND o.corrects IS NULL
         ORDER BY c.id, c.source`,
        [batch.map(({ id, corrects }) => corrects ?? id)],
      );
      const changes = new RollupChanges<string>();
      for (const { id, source, time, json, key_id } of rows) {
        const event = JSON.parse(String(json)) as UsageEvent;
        const updated = await connection.query(
          'UPDATE tollkeeper_events SET key_id = $4 WHERE id = $1 AND source = $2 AND time = $3 AND key_id IS NULL',
          [id, source, time, key_id],
        );
        if (updated.rowCount === 1) changes.add(String(key_id), Date.parse(event.time), event, false);
      }
      await bookRollups(connection, changes);
    });
  }

  async function bookRollups(connection: PostgresConnection, changes: RollupChanges<string>): Promise<void> {
    const sorted = changes.sorted();
    if (sorted.length === 0) return;
    await connection.query(
      `INSERT INTO tollkeeper_rollups AS r (tier, bucket, key_id, quantity, amount)
       SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::numeric[])
       ON CONFLICT (tier, bucket, key_id, quantity) DO UPDATE SET amount = r.amount + excluded.amount`,
      [
        sorted.map(({ tier }) => tier),
        sorted.map(({ bucket }) => bucket),
        sorted.map(({ key }) => key),
        sorted.map(({ quantity }) => quantity),
        sorted.map(({ high, low }) => joinAmount(BigInt(high), BigInt(low)).toString()),
      ],
    );
  }

  async function addRollups(
    connection: PostgresConnection,
    totals: UsageTotals,
    query: ParsedQuery,
    tier: number,
    { fromMs, toMs }: Stretch,
  ): Promise<void> {
    const wanted = ROLLUP_KEYS.map((key, index) => ({ key, column: ROLLUP_COLUMNS[index] as string }));
    const grouped = wanted.filter(({ key }) => query.keys.includes(key));
    const filters = wanted.filter(({ key }) => query.filter[key] !== undefined);
    const bucket = query.intervalStart === undefined ? [] : ['bucket'];
    const inner = [...bucket, 'key_id', 'quantity'].join(', ');
    const columns = [...bucket, ...grouped.map(({ column }) => column), 'billable', 'quantity'].join(', ');
    const where = filters.map(({ column }, index) => `${column} = $${index + 4}`).join(' AND ');
    const { rows } = await connection.query(
      `SELECT ${columns}, SUM(amount)::text AS amount
       FROM (SELECT ${inner}, SUM(amount) AS amount FROM tollkeeper_rollups
             WHERE tier = $1 AND bucket >= $2 AND bucket < $3 GROUP BY ${inner}) AS sums
       JOIN tollkeeper_usage_keys USING (key_id)
       ${where === '' ? '' : `WHERE ${where}`}
       GROUP BY ${columns}`,
      [tier, fromMs, toMs, ...filters.map(({ key }) => query.filter[key])],
    );
    for (const row of rows) {
      addRollup(totals, query, {
        bucket: Number(row.bucket),
        values: Object.fromEntries(grouped.map(({ key, column }) => [key, String(row[column])])),
        billable: row.billable === true,
        quantity: String(row.quantity),
        amount: BigInt(String(row.amount)),
      });
    }
  }

  /** The events of a stretch, by time, each with the event whose attribution counts. Inside a transaction. */
  async function* stream(
    connection: PostgresConnection,
    { fromMs, toMs }: Stretch,
    requestId?: string,
  ): AsyncGenerator<EventRow> {
    const cursor = 'tollkeeper_stream';
    await connection.query(
      `DECLARE ${cursor} NO SCROLL CURSOR FOR
       SELECT e.json, e.corrects, o.json AS original
       FROM tollkeeper_events e LEFT JOIN tollkeeper_events o ON o.id = e.corrects AND o.corrects IS NULL
       WHERE e.time >= $1 AND e.time < $2 AND ($3::text IS NULL OR e.request_id = $3)
       ORDER BY e.time, e.source, e.seq`,
      [instantOf(fromMs), instantOf(toMs), requestId ?? null],
    );
    for (;;) {
      const { rows } = await connection.query(`FETCH ${PAGE} FROM ${cursor}`);
      for (const { json, corrects, original } of rows) {
        const event = JSON.parse(String(json)) as UsageEvent;
        const found = original === null ? undefined : (JSON.parse(String(original)) as UsageEvent);
        yield { event, attributed: corrects === null ? event : found };
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
    limits: { maxEvents: 2_000, maxBytes: 4 * 1024 * 1024, concurrency },
    async ready() {
      await assertMigrated(pool, 'ledger', LEDGER_STEPS);
    },
    async migrate() {
      await migrate(pool, 'ledger', LEDGER_STEPS);
    },
    async close() {},
    async write(events) {
      const batch = events
        .filter(isStorable)
        .sort((a, b) => (a.source < b.source ? -1 : a.source > b.source ? 1 : a.seq - b.seq));
      if (batch.length > 0) {
        await ensurePartitions(batch);
        await learnKeys(batch);
        await inTransaction(pool, (connection) => enterBatch(connection, batch));
        await bookCorrections(batch);
      }
      return verdictsOn(events, isStorable);
    },
    async sourceNotes(notes: readonly SourceNote[]) {
      if (notes.length === 0) return;
      await inTransaction(pool, async (connection) => {
        const records = await lockSources(connection, new Set(notes.map(({ source }) => source)));
        const byName = new Map(records.map((record) => [record.source, record]));
        for (const note of notes) enterNote(byName.get(note.source) as SourceRecord, note);
        for (const record of records) await saveSource(connection, record);
      });
    },
    async usage(given) {
      const query = parseUsageQuery(given);
      return onSnapshot(async (connection) => {
        const totals = new UsageTotals();
        const plan = planUsage(query);
        for (const stretch of plan.days) await addRollups(connection, totals, query, DAY_MS, stretch);
        for (const stretch of plan.quarters) await addRollups(connection, totals, query, QUARTER_MS, stretch);
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
        for await (const { event } of stream(connection, { fromMs, toMs }, filter.requestId)) {
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
        const differences = new RollupDifferences(await prunedMs(connection));
        for await (const { event, attributed } of stream(connection, ALWAYS)) differences.add(event, attributed);
        const recorded = await connection.query(
          `SELECT tier, bucket, ${ROLLUP_COLUMNS.join(', ')}, billable, quantity, amount::text AS amount
           FROM tollkeeper_rollups JOIN tollkeeper_usage_keys USING (key_id) ORDER BY tier, bucket`,
        );
        return differences.compare(
          recorded.rows.map((row) => ({
            tier: Number(row.tier),
            bucket: Number(row.bucket),
            key: { values: ROLLUP_COLUMNS.map((column) => String(row[column])), billable: row.billable === true },
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
      partitions.clear();
    },
  };
}

async function prunedMs(connection: Pick<PostgresConnection, 'query'>): Promise<number> {
  const { rows } = await connection.query("SELECT value FROM tollkeeper_ledger_state WHERE name = 'pruned_ms'");
  return rows[0] === undefined ? Number.NEGATIVE_INFINITY : Number(rows[0].value);
}

async function loadSources(connection: Pick<PostgresConnection, 'query'>): Promise<SourceRecord[]> {
  return (await connection.query('SELECT * FROM tollkeeper_sources ORDER BY source COLLATE "C"')).rows.map(recordOf);
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

/** PostgreSQL's text has no NUL: an event that carries one in a column can never be stored. */
function isStorable(event: UsageEvent): boolean {
  const { values } = rollupKeyOf(event);
  const texts = [...values, event.id, event.source, event.corrects, event.requestId, ...Object.keys(event.quantities)];
  return isBookable(event) && !texts.some((text) => text?.includes('\0'));
}

function identify(id: string, source: string, ms: number): string {
  return JSON.stringify([id, source, ms]);
}

function instantOf(ms: number): string {
  return Number.isFinite(ms) ? new Date(ms).toISOString() : ms < 0 ? '-infinity' : 'infinity';
}

import type { SourceNote, Verdict } from '../meter/sink.js';
import type { UsageEvent } from '../meter/usage-event.js';
import { Arrivals } from '../usage/arrivals.js';
import { isBookable, verdictsOn } from '../usage/bookable.js';
import { addEvent, addRollup } from '../usage/event-totals.js';
import type { Ledger } from '../usage/ledger.js';
import {
  DAY_MS,
  joinAmount,
  keyText,
  QUARTER_MS,
  ROLLUP_COLUMNS,
  ROLLUP_KEYS,
  RollupChanges,
  type RollupKey,
  rollupKeyId,
  rollupKeyOf,
} from '../usage/rollup.js';
import { RollupDifferences } from '../usage/rollup-differences.js';
import { auditOf, completeness, createSourceRecord, enterNote, type SourceRecord } from '../usage/source-book.js';
import { isRolledUp, planUsage, type Stretch } from '../usage/usage-plan.js';
import { matches, type ParsedQuery, parseEventFilter, parseUsageQuery } from '../usage/usage-query.js';
import { UsageTotals } from '../usage/usage-totals.js';
import { LEDGER_STEPS } from './ledger-schema.js';
import { assertMigrated, migrate } from './migrate.js';
import { inTransaction, isSqliteDatabase, type SqliteDatabase, type SqliteStatement } from './sqlite-database.js';

/** Rows that are read at once while events are streamed. */
const PAGE = 500;
/** Cached ids of roll-up keys; beyond, the cache begins anew. */
const MAX_CACHED_KEYS = 50_000;
const ALWAYS: Stretch = { fromMs: Number.NEGATIVE_INFINITY, toMs: Number.POSITIVE_INFINITY };

interface EventRow {
  readonly event: UsageEvent;
  readonly attributed: UsageEvent | undefined;
  /** Of the roll-ups that it was booked under. */
  readonly keyId: number | undefined;
}

export interface SqliteLedgerOptions {
  /** The sink's name. Default `ledger`. */
  readonly name?: string;
}

/** A ledger in SQLite, which can also forget the events that are too old to be asked for. */
export interface SqliteLedger extends Ledger {
  /**
   * Deletes the events before `before`; roll-ups and audit keep them. What is asked by subject, resource, plan or dimension
   * is then known only from `before` on, and so are corrections of older events.
   *
   * @returns how many events were deleted.
   */
  prune(before: Date): Promise<number>;
}

/**
 * The embedded ledger: takes `DatabaseSync` of `node:sqlite`, better-sqlite3 or libsql. Call `migrate()` once before use.
 * Totals by tenant, client, authId, issuer and type come from roll-ups; by subject, resource, plan or dimension from the
 * events themselves, which takes time in proportion to their number.
 *
 * The database belongs to the app and is not closed. For durable sums use WAL mode and `synchronous = FULL`.
 *
 * @throws TypeError when `db` is no database.
 */
export function sqliteLedger(db: SqliteDatabase, options: SqliteLedgerOptions = {}): SqliteLedger {
  if (!isSqliteDatabase(db)) throw new TypeError('sqliteLedger: a database with prepare() and exec() is needed');
  const { name = 'ledger' } = options;
  const statements = new Map<string, SqliteStatement>();
  const keyIds = new Map<string, number>();

  function sql(text: string): SqliteStatement {
    let statement = statements.get(text);
    if (statement === undefined) {
      statement = db.prepare(text);
      statements.set(text, statement);
    }
    return statement;
  }

  function keyIdOf(event: UsageEvent): number {
    const cacheKey = rollupKeyId(event);
    const cached = keyIds.get(cacheKey);
    if (cached !== undefined) return cached;
    const { values, billable } = rollupKeyOf(event);
    const columns = [...ROLLUP_COLUMNS, 'billable'];
    const row = [...values, billable ? 1 : 0];
    sql(
      `INSERT INTO tollkeeper_usage_keys (${columns.join(', ')}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
    ).run(...row);
    const found = sql(
      `SELECT key_id FROM tollkeeper_usage_keys WHERE ${columns.map((column) => `${column} = ?`).join(' AND ')}`,
    ).get(...row) as { key_id: number };
    if (keyIds.size >= MAX_CACHED_KEYS) keyIds.clear();
    keyIds.set(cacheKey, found.key_id);
    return found.key_id;
  }

  /** Enters one event; whether it was new. */
  function enter(event: UsageEvent, changes: RollupChanges<number>, prunedMs: number, arrivals: Arrivals): boolean {
    const at = Date.parse(event.time);
    // Its row may have been deleted: then the sequence number tells that it was here.
    if (at < prunedMs && arrivals.had(event)) return false;
    const keyId = event.corrects === undefined ? keyIdOf(event) : undefined;
    const { changes: inserted } = sql(
      `INSERT INTO tollkeeper_events (id, source, time_ms, seq, key_id, corrects, request_id, json)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
    ).run(
      event.id,
      event.source,
      at,
      event.seq,
      keyId ?? null,
      event.corrects ?? null,
      event.requestId ?? null,
      JSON.stringify(event),
    );
    if (Number(inserted) === 0) return false;
    if (keyId !== undefined) changes.add(keyId, at, event, true);
    return true;
  }

  function originalKeyOf(id: string): number | undefined {
    const row = sql(
      'SELECT key_id FROM tollkeeper_events WHERE id = ? AND corrects IS NULL ORDER BY source, time_ms LIMIT 1',
    ).get(id);
    return row == null ? undefined : (row as { key_id: number }).key_id;
  }

  /** Books the corrections of this batch whose original is here, and those that waited for an event of this batch. */
  function bookCorrections(batch: readonly UsageEvent[], changes: RollupChanges<number>): void {
    const waiting = 'FROM tollkeeper_events WHERE corrects IS NOT NULL AND key_id IS NULL';
    if (sql(`SELECT 1 ${waiting} LIMIT 1`).get() == null) return;
    for (const id of new Set(batch.map((event) => event.corrects ?? event.id))) {
      const rows = sql(`SELECT rowid AS row, time_ms, json ${waiting} AND corrects = ?`).all(id) as {
        row: number;
        time_ms: number;
        json: string;
      }[];
      const keyId = rows.length === 0 ? undefined : originalKeyOf(id);
      if (keyId === undefined) continue;
      for (const { row, time_ms, json } of rows) {
        changes.add(keyId, time_ms, JSON.parse(json) as UsageEvent, false);
        sql('UPDATE tollkeeper_events SET key_id = ? WHERE rowid = ?').run(keyId, row);
      }
    }
  }

  function bookRollups(changes: RollupChanges<number>): void {
    const upsert = sql(
      `INSERT INTO tollkeeper_rollups (tier, bucket, key_id, quantity, high, low) VALUES (?, ?, ?, ?, ?, ?)
       ON CONFLICT DO UPDATE SET high = high + excluded.high, low = low + excluded.low`,
    );
    for (const { tier, bucket, key, quantity, high, low } of changes.sorted()) {
      upsert.run(tier, bucket, key, quantity, high, low);
    }
  }

  function loadSource(source: string): SourceRecord {
    const record = createSourceRecord(source);
    const row = sql('SELECT last, count, closed, through_ms FROM tollkeeper_sources WHERE source = ?').get(source);
    if (row != null) {
      const { last, count, closed, through_ms } = row as Record<string, number | null>;
      record.last = Number(last);
      record.count = Number(count);
      record.closed = closed === 1;
      record.throughMs = through_ms ?? undefined;
    }
    const runs = sql('SELECT excused, from_seq, to_seq FROM tollkeeper_source_runs WHERE source = ?').all(source);
    for (const { excused, from_seq, to_seq } of runs as Record<string, number>[]) {
      (excused === 1 ? record.excused : record.arrived).add(from_seq as number, to_seq as number);
    }
    return record;
  }

  function loadSources(): SourceRecord[] {
    const rows = sql('SELECT source FROM tollkeeper_sources ORDER BY source').all() as { source: string }[];
    return rows.map(({ source }) => loadSource(source));
  }

  function saveSource({ source, last, count, closed, throughMs, arrived, excused }: SourceRecord): void {
    sql(
      `INSERT INTO tollkeeper_sources (source, last, count, closed, through_ms) VALUES (?, ?, ?, ?, ?)
       ON CONFLICT DO UPDATE SET last = excluded.last, count = excluded.count, closed = excluded.closed,
         through_ms = excluded.through_ms`,
    ).run(source, last, count, closed ? 1 : 0, throughMs ?? null);
    sql('DELETE FROM tollkeeper_source_runs WHERE source = ?').run(source);
    const insert = sql('INSERT INTO tollkeeper_source_runs (source, excused, from_seq, to_seq) VALUES (?, ?, ?, ?)');
    for (const [from, to] of arrived.runs()) insert.run(source, 0, from, to);
    for (const [from, to] of excused.runs()) insert.run(source, 1, from, to);
  }

  function prunedMs(): number {
    const row = sql("SELECT value FROM tollkeeper_ledger_state WHERE name = 'pruned_ms'").get();
    return row == null ? Number.NEGATIVE_INFINITY : Number((row as { value: number }).value);
  }

  /** The UTC days of a query by intervals that there are roll-ups of: one look into the index for each. */
  function bookedDays(query: ParsedQuery): number[] {
    if (query.intervalStart === undefined || !isRolledUp(query)) return [];
    const rows = sql(
      `WITH RECURSIVE booked (day) AS (
         SELECT min(bucket) FROM tollkeeper_rollups WHERE tier = ?1 AND bucket >= ?2
         UNION ALL
         SELECT (SELECT min(bucket) FROM tollkeeper_rollups WHERE tier = ?1 AND bucket > day) FROM booked WHERE day < ?3
       ) SELECT day FROM booked WHERE day < ?3`,
    ).all(DAY_MS, Math.floor(query.fromMs / DAY_MS) * DAY_MS, query.toMs) as { day: number }[];
    return rows.map(({ day }) => day);
  }

  function addRollups(totals: UsageTotals, query: ParsedQuery, tier: number, stretches: readonly Stretch[]): void {
    if (stretches.length === 0) return;
    const wanted = ROLLUP_KEYS.map((key, index) => ({ key, column: ROLLUP_COLUMNS[index] as string }));
    const grouped = wanted.filter(({ key }) => query.keys.includes(key));
    const filters = wanted.filter(({ key }) => query.filter[key] !== undefined);
    const columns = ['stretch', ...grouped.map(({ column }) => column), 'billable', 'quantity'].join(', ');
    const rows = sql(
      `SELECT ${columns}, CAST(SUM(high) AS TEXT) AS high, CAST(SUM(low) AS TEXT) AS low
       FROM (SELECT s.key AS stretch, key_id, quantity, SUM(high) AS high, SUM(low) AS low
             FROM json_each(?) AS s CROSS JOIN tollkeeper_rollups
             WHERE tier = ? AND bucket >= json_extract(s.value, '$[0]') AND bucket < json_extract(s.value, '$[1]')
             GROUP BY s.key, key_id, quantity)
       JOIN tollkeeper_usage_keys USING (key_id)
       ${filters.length === 0 ? '' : `WHERE ${filters.map(({ column }) => `${column} = ?`).join(' AND ')}`}
       GROUP BY ${columns}`,
    ).all(
      JSON.stringify(stretches.map(({ fromMs, toMs }) => [fromMs, toMs])),
      tier,
      ...filters.map(({ key }) => keyText(query.filter[key] ?? '')),
    ) as Record<string, string | number>[];
    for (const row of rows) {
      addRollup(totals, query, {
        startMs: stretches[Number(row.stretch)]?.startMs,
        values: Object.fromEntries(grouped.map(({ key, column }) => [key, String(row[column])])),
        billable: Number(row.billable) === 1,
        quantity: String(row.quantity),
        amount: joinAmount(BigInt(row.high as string), BigInt(row.low as string)),
      });
    }
  }

  /** The events of a stretch, by time, each with the event whose attribution counts. */
  function* stream({ fromMs, toMs }: Stretch): Generator<EventRow> {
    // No source has an empty name: everything from the first instant on comes after this.
    let after: readonly [number, string, number, number] = [Math.max(fromMs, -8.64e15), '', 0, 0];
    const until = Math.min(toMs, 8.64e15);
    for (;;) {
      const rows = sql(
        `SELECT rowid AS row, time_ms, source, seq, key_id, json,
           (SELECT json FROM tollkeeper_events AS o WHERE o.id = e.corrects AND o.corrects IS NULL
            ORDER BY o.source, o.time_ms LIMIT 1) AS original
         FROM tollkeeper_events AS e
         WHERE (time_ms, source, seq, rowid) > (?, ?, ?, ?) AND time_ms < ?
         ORDER BY time_ms, source, seq, rowid LIMIT ${PAGE}`,
      ).all(...after, until) as {
        row: number;
        time_ms: number;
        source: string;
        seq: number;
        key_id: number | null;
        json: string;
        original: string | null;
      }[];
      for (const { key_id, json, original } of rows) {
        const event = JSON.parse(json) as UsageEvent;
        const found = original === null ? undefined : (JSON.parse(original) as UsageEvent);
        yield { event, attributed: event.corrects === undefined ? event : found, keyId: key_id ?? undefined };
      }
      const last = rows[rows.length - 1];
      if (last === undefined || rows.length < PAGE) return;
      after = [last.time_ms, last.source, last.seq, last.row];
    }
  }

  function loadKeys(): Map<number, RollupKey> {
    const rows = sql('SELECT * FROM tollkeeper_usage_keys').all() as Record<string, string | number>[];
    return new Map(
      rows.map((row) => [
        Number(row.key_id),
        { values: ROLLUP_COLUMNS.map((column) => String(row[column])), billable: Number(row.billable) === 1 },
      ]),
    );
  }

  return {
    name,
    limits: { maxEvents: 2_000, maxBytes: 4 * 1024 * 1024 },
    async ready() {
      assertMigrated(db, 'ledger', LEDGER_STEPS);
    },
    async migrate() {
      migrate(db, 'ledger', LEDGER_STEPS);
    },
    async close() {
      statements.clear();
    },
    async write(events): Promise<readonly Verdict[]> {
      const taken = events.filter(isBookable);
      try {
        inTransaction(db, () => {
          const arrivals = new Arrivals([...new Set(taken.map(({ source }) => source))].map(loadSource));
          const changes = new RollupChanges<number>();
          const pruned = prunedMs();
          for (const event of taken) if (enter(event, changes, pruned, arrivals)) arrivals.note(event);
          bookCorrections(taken, changes);
          bookRollups(changes);
          for (const record of arrivals.changed()) saveSource(record);
        });
      } catch (error) {
        // Ids of keys that the transaction made are gone with it.
        keyIds.clear();
        throw error;
      }
      return verdictsOn(events, taken);
    },
    async sourceNotes(notes: readonly SourceNote[]) {
      inTransaction(db, () => {
        for (const note of notes) {
          const record = loadSource(note.source);
          enterNote(record, note);
          saveSource(record);
        }
      });
    },
    async usage(given) {
      const query = parseUsageQuery(given);
      const totals = new UsageTotals();
      // One snapshot for the report, though another process writes meanwhile.
      db.exec('BEGIN');
      try {
        const plan = planUsage(query, bookedDays(query));
        addRollups(totals, query, DAY_MS, plan.days);
        addRollups(totals, query, QUARTER_MS, plan.quarters);
        for (const stretch of plan.events) {
          for (const { event, attributed } of stream(stretch)) addEvent(totals, query, event, attributed);
        }
        return { rows: totals.rows(), ...completeness(loadSources(), query.toMs) };
      } finally {
        db.exec('COMMIT');
      }
    },
    async audit() {
      return loadSources().map(auditOf);
    },
    async *events(given) {
      const { fromMs, toMs, ...filter } = parseEventFilter(given);
      for (const { event } of stream({ fromMs, toMs })) if (matches(event, filter)) yield event;
    },
    async verify() {
      const differences = new RollupDifferences(prunedMs());
      const keys = loadKeys();
      for (const { event, attributed, keyId } of stream(ALWAYS)) {
        // The original of a correction may have been deleted: then its key tells what it was booked under.
        const booked = event.corrects !== undefined && keyId !== undefined ? keys.get(keyId) : undefined;
        differences.add(event, attributed === undefined ? booked : rollupKeyOf(attributed));
      }
      const recorded = sql(
        `SELECT tier, bucket, key_id, quantity, CAST(high AS TEXT) AS high, CAST(low AS TEXT) AS low
         FROM tollkeeper_rollups ORDER BY tier, bucket, key_id, quantity`,
      ).all() as Record<string, string | number>[];
      return differences.compare(
        recorded.map((row) => ({
          tier: Number(row.tier),
          bucket: Number(row.bucket),
          key: keys.get(Number(row.key_id)) ?? { values: [], billable: false },
          quantity: String(row.quantity),
          amount: joinAmount(BigInt(row.high as string), BigInt(row.low as string)),
        })),
      );
    },
    async prune(before) {
      const beforeMs = before.getTime();
      if (Number.isNaN(beforeMs)) throw new TypeError('prune: before must be a valid Date');
      return inTransaction(db, () => {
        sql(
          `INSERT INTO tollkeeper_ledger_state (name, value) VALUES ('pruned_ms', ?)
           ON CONFLICT DO UPDATE SET value = MAX(value, excluded.value)`,
        ).run(beforeMs);
        return Number(sql('DELETE FROM tollkeeper_events WHERE time_ms < ?').run(beforeMs).changes);
      });
    },
  };
}

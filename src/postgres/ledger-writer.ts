import { createHash } from 'node:crypto';
import { SinkError } from '../errors/sink-error.js';
import type { UsageEvent } from '../meter/usage-event.js';
import { Arrivals } from '../usage/arrivals.js';
import {
  joinAmount,
  keyText,
  ROLLUP_COLUMNS,
  RollupChanges,
  type RollupKey,
  rollupKeyId,
  rollupKeyOf,
} from '../usage/rollup.js';
import { monthStart, PARTITION_LOCK, partitionName } from './ledger-schema.js';
import { loadPrunedMs, lockSources, saveSource } from './ledger-sources.js';
import { onConnection, type PostgresConnection, type PostgresPool, transaction } from './postgres-pool.js';

/** Cached ids of roll-up keys per connection; beyond, the cache begins anew. */
const MAX_CACHED_KEYS = 100_000;

/** An event on its way into the tables. */
interface Entry {
  readonly event: UsageEvent;
  readonly ms: number;
  /** Of its roll-ups; undefined for a correction, which has its original's. */
  readonly keyId: number | undefined;
}

/**
 * What is known to be in the database. It is kept per connection, since it may be wrong on another one: behind a
 * fail-over there may be a server that has not seen the latest commits of the old one.
 */
interface Known {
  readonly keyIds: Map<string, number>;
  readonly months: Set<number>;
}

/** Runs work in a transaction on the batch's connection. */
type Atomically = (work: () => Promise<void>) => Promise<void>;

/** Writes batches of events, exactly once each. */
export class LedgerWriter {
  readonly #pool: PostgresPool;
  readonly #known = new WeakMap<PostgresConnection, Known>();

  constructor(pool: PostgresPool) {
    this.#pool = pool;
  }

  /**
   * Enters events, which must be bookable.
   *
   * @param signal closes the connection when it aborts: one that hangs would block a place of the pool.
   * @throws SinkError to have the batch split when PostgreSQL cannot hold a value in it.
   */
  async write(events: readonly UsageEvent[], signal: AbortSignal | undefined): Promise<void> {
    if (events.length === 0) return;
    const batch = [...events].sort(bySourceAndSeq);
    const enter = (): Promise<void> =>
      onConnection(this.#pool, (connection, spoil) => this.#enter(connection, spoil, batch), signal);
    try {
      // A month that somebody has dropped is made again.
      await enter().catch((error: unknown) => (sqlState(error) === '23514' ? enter() : Promise.reject(error)));
    } catch (error) {
      // Classes 22 (data exception) and 54 (a limit is exceeded): trying again changes nothing.
      if (!/^(22|54)/.test(sqlState(error))) throw error;
      const message = 'the ledger: PostgreSQL cannot hold a value of this batch';
      throw new SinkError(message, { action: 'split', cause: error });
    }
  }

  async #enter(connection: PostgresConnection, spoil: () => void, batch: readonly UsageEvent[]): Promise<void> {
    const atomically: Atomically = (work) => transaction(connection, spoil, work);
    const known = this.#known.get(connection) ?? { keyIds: new Map(), months: new Set() };
    this.#known.set(connection, known);
    try {
      await makeMonths(connection, atomically, known.months, batch);
      const entries = await learnKeys(connection, known.keyIds, batch);
      await atomically(() => enterBatch(connection, entries));
      await bookCorrections(connection, atomically, batch);
    } catch (error) {
      this.#known.delete(connection);
      throw error;
    }
  }
}

/**
 * Makes the months of the batch, and the ones after. A table that is attached holds up nobody who reads, as one that is
 * made in its place would.
 */
async function makeMonths(
  connection: PostgresConnection,
  atomically: Atomically,
  known: Set<number>,
  batch: readonly UsageEvent[],
): Promise<void> {
  const needed = new Set<number>();
  let [first, end] = [0, 0];
  for (const { time } of batch) {
    const ms = Date.parse(time);
    if (ms >= first && ms < end) continue;
    [first, end] = [monthStart(ms), monthStart(ms, 1)];
    needed.add(first).add(end);
  }
  const unknown = [...needed].filter((month) => !known.has(month)).sort((a, b) => a - b);
  if (unknown.length === 0) return;
  await atomically(async () => {
    await connection.query('SELECT pg_advisory_xact_lock($1)', [PARTITION_LOCK]);
    for (const month of unknown) {
      const name = partitionName(month);
      const { rowCount } = await connection.query(
        "SELECT 1 FROM pg_inherits WHERE inhparent = 'tollkeeper_events'::regclass AND inhrelid = to_regclass($1)",
        [name],
      );
      if (rowCount !== 0) continue;
      const [from, to] = [month, monthStart(month, 1)].map((ms) => new Date(ms).toISOString());
      await connection.query(`CREATE TABLE ${name} (LIKE tollkeeper_events INCLUDING ALL)`);
      await connection.query(
        `ALTER TABLE tollkeeper_events ATTACH PARTITION ${name} FOR VALUES FROM ('${from}') TO ('${to}')`,
      );
    }
  });
  for (const month of unknown) known.add(month);
}

/** Makes the ids of the batch's keys known. Keys never change, so they need not be part of the batch's transaction. */
async function learnKeys(
  connection: PostgresConnection,
  known: Map<string, number>,
  batch: readonly UsageEvent[],
): Promise<Entry[]> {
  if (known.size >= MAX_CACHED_KEYS) known.clear();
  const unknown = new Map<string, RollupKey & { readonly id: string }>();
  const drafts = batch.map((event) => {
    const id = event.corrects === undefined ? rollupKeyId(event) : undefined;
    if (id !== undefined && !known.has(id)) unknown.set(id, { ...rollupKeyOf(event), id });
    return { event, ms: Date.parse(event.time), id };
  });
  if (unknown.size > 0) {
    const keys = [...unknown.values()].map((key) => ({ ...key, digest: digest(key.id) }));
    keys.sort((a, b) => (a.digest < b.digest ? -1 : 1));
    const digests = keys.map((key) => key.digest);
    await connection.query(
      `INSERT INTO tollkeeper_usage_keys (digest, ${ROLLUP_COLUMNS.join(', ')}, billable)
       SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::boolean[])
       ON CONFLICT DO NOTHING`,
      [
        digests,
        ...ROLLUP_COLUMNS.map((_, column) => keys.map(({ values }) => values[column])),
        keys.map(({ billable }) => billable),
      ],
    );
    const { rows } = await connection.query('SELECT key_id, digest FROM tollkeeper_usage_keys WHERE digest = ANY($1)', [
      digests,
    ]);
    const ids = new Map(rows.map((row) => [String(row.digest), Number(row.key_id)]));
    for (const { id, digest } of keys) known.set(id, ids.get(digest) as number);
  }
  return drafts.map(({ event, ms, id }) => ({ event, ms, keyId: id === undefined ? undefined : known.get(id) }));
}

/**
 * Locks are taken in one order by every writer: events by source and sequence number, then sources, then roll-ups, each
 * sorted; what all writers share comes last, and is locked for as short as can be.
 */
async function enterBatch(connection: PostgresConnection, entries: readonly Entry[]): Promise<void> {
  const inserted = await insertEvents(connection, entries);
  if (inserted.length === 0) return;
  const arrivals = new Arrivals(await lockSources(connection, new Set(inserted.map(({ event }) => event.source))));
  const prunedMs = await loadPrunedMs(connection);
  const changes = new RollupChanges<number>();
  const forgotten: Entry[] = [];
  for (const entry of inserted) {
    const { event, ms, keyId } = entry;
    // Its row was deleted: the sequence number tells that it was here.
    if (ms < prunedMs && arrivals.had(event)) forgotten.push(entry);
    else {
      arrivals.note(event);
      if (keyId !== undefined) changes.add(keyId, ms, event, true);
    }
  }
  if (forgotten.length > 0) await deleteEvents(connection, forgotten);
  for (const record of arrivals.changed()) await saveSource(connection, record);
  await bookRollups(connection, changes);
}

/**
 * Columns travel as lines or as the text of arrays of numbers: what drivers and the server make of arrays of texts, and
 * what the server makes of JSON, costs more than the rest of the insert.
 *
 * @returns the entries that were new.
 */
async function insertEvents(connection: PostgresConnection, entries: readonly Entry[]): Promise<readonly Entry[]> {
  const sources = [...new Set(entries.map(({ event }) => event.source))];
  const numbers = new Map(sources.map((source, index) => [source, index + 1]));
  const { rows } = await connection.query(
    `WITH entered AS (
       INSERT INTO tollkeeper_events (id, source, time, seq, key_id, corrects, request_id, json)
       SELECT id, ($1::text[])[source], to_timestamp(ms::float8 / 1000), seq, key_id, corrects, request_id, json
       FROM unnest($2::integer[], $3::bigint[], $4::bigint[], $5::bigint[], string_to_array($6, E'\\n'),
         string_to_array($7, E'\\n', ''), string_to_array($8, E'\\n', ''), string_to_array($9, E'\\n'))
         AS given (source, ms, seq, key_id, id, corrects, request_id, json)
       ON CONFLICT DO NOTHING
       RETURNING id, source, (extract(epoch FROM time) * 1000)::bigint AS ms
     )
     SELECT count(*) AS count,
       CASE WHEN count(*) < $10 THEN coalesce(json_agg(json_build_array(id, source, ms)), '[]') END AS entered FROM entered`,
    [
      sources,
      numbersOf(entries, ({ event }) => numbers.get(event.source)),
      numbersOf(entries, ({ ms }) => ms),
      numbersOf(entries, ({ event }) => event.seq),
      numbersOf(entries, ({ keyId }) => keyId),
      linesOf(entries, ({ event }) => event.id),
      linesOf(entries, ({ event }) => event.corrects),
      linesOf(entries, ({ event }) => (event.requestId === undefined ? undefined : requestIdText(event.requestId))),
      // JSON has no raw line breaks.
      linesOf(entries, ({ event }) => JSON.stringify(event)),
      entries.length,
    ],
  );
  const [row] = rows;
  if (Number(row?.count) === entries.length) return entries;
  const byId = new Map(entries.map((entry) => [identify(entry.event.id, entry.event.source, entry.ms), entry]));
  const entered = row?.entered as [id: string, source: string, ms: number][];
  return entered.map(([id, source, ms]) => byId.get(identify(id, source, ms)) as Entry);
}

async function deleteEvents(connection: PostgresConnection, entries: readonly Entry[]): Promise<void> {
  await connection.query(
    `DELETE FROM tollkeeper_events e USING unnest($1::text[], $2::text[], $3::bigint[]) AS gone (id, source, ms)
     WHERE e.id = gone.id AND e.source = gone.source AND e.time = to_timestamp(ms::float8 / 1000)`,
    [entries.map(({ event }) => event.id), entries.map(({ event }) => event.source), entries.map(({ ms }) => ms)],
  );
}

/**
 * Books the corrections of this batch whose original is here, and those that waited for an event of this batch. After
 * the batch was committed: of two processes that write a correction and its original at once, the later one then sees
 * both. A process that dies before has not been told that the batch is written, and writes it again.
 */
async function bookCorrections(
  connection: PostgresConnection,
  atomically: Atomically,
  batch: readonly UsageEvent[],
): Promise<void> {
  const waiting = 'corrects IS NOT NULL AND key_id IS NULL';
  const { rowCount } = await connection.query(`SELECT 1 FROM tollkeeper_events WHERE ${waiting} LIMIT 1`);
  if (rowCount === 0) return;
  await atomically(async () => {
    const { rows } = await connection.query(
      `SELECT c.id, c.source, c.time, c.json, o.key_id
       FROM (SELECT * FROM tollkeeper_events WHERE ${waiting} AND corrects = ANY($1)) AS c
       JOIN tollkeeper_events o ON o.id = c.corrects AND o.corrects IS NULL
       ORDER BY c.id, c.source, o.source, o.time`,
      [batch.map(({ id, corrects }) => corrects ?? id)],
    );
    const changes = new RollupChanges<number>();
    for (const { id, source, time, json, key_id } of rows) {
      const event = JSON.parse(String(json)) as UsageEvent;
      const updated = await connection.query(
        'UPDATE tollkeeper_events SET key_id = $4 WHERE id = $1 AND source = $2 AND time = $3 AND key_id IS NULL',
        [id, source, time, key_id],
      );
      if (updated.rowCount === 1) changes.add(Number(key_id), Date.parse(event.time), event, false);
    }
    await bookRollups(connection, changes);
  });
}

async function bookRollups(connection: PostgresConnection, changes: RollupChanges<number>): Promise<void> {
  const sorted = changes.sorted();
  if (sorted.length === 0) return;
  await connection.query(
    `INSERT INTO tollkeeper_rollups AS r (tier, bucket, key_id, quantity, amount)
     SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], string_to_array($4, E'\\n'), $5::numeric[])
     ON CONFLICT (tier, bucket, key_id, quantity) DO UPDATE SET amount = r.amount + excluded.amount`,
    [
      numbersOf(sorted, ({ tier }) => tier),
      numbersOf(sorted, ({ bucket }) => bucket),
      numbersOf(sorted, ({ key }) => key),
      linesOf(sorted, ({ quantity }) => quantity),
      numbersOf(sorted, ({ high, low }) => (high === 0 ? low : joinAmount(BigInt(high), BigInt(low)))),
    ],
  );
}

/** A request id as its column has it: in one line. */
export function requestIdText(requestId: string): string {
  return keyText(requestId).replaceAll('\n', '\uFFFD');
}

/** The text of an array. */
function numbersOf<T>(items: readonly T[], number: (item: T) => number | bigint | undefined): string {
  return `{${items.map((item) => number(item) ?? 'NULL').join(',')}}`;
}

function linesOf<T>(items: readonly T[], line: (item: T) => string | undefined): string {
  return items.map((item) => line(item) ?? '').join('\n');
}

function bySourceAndSeq(a: UsageEvent, b: UsageEvent): number {
  return a.source < b.source ? -1 : a.source > b.source ? 1 : a.seq - b.seq;
}

function identify(id: string, source: string, ms: number): string {
  return `${ms}\n${source}\n${id}`;
}

/** Keys may be longer than an index can hold. */
function digest(id: string): string {
  return createHash('sha256').update(id).digest('base64url');
}

function sqlState(error: unknown): string {
  return String((error as { code?: unknown } | undefined)?.code ?? '');
}

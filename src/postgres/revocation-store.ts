import { OptionsParser } from '../errors/options-parser.js';
import type { RevocationEntry, RevocationStore } from '../revocation/revocation-store.js';
import { migrate } from './migrate.js';
import { isPostgresPool, onConnection, type PostgresConnection, type PostgresPool } from './postgres-pool.js';

export interface PostgresRevocationStoreOptions {
  /**
   * Whether to keep one connection of the pool to be told of new entries at once (`LISTEN`). Default true. False where the
   * pool has one connection only, or goes through a pooler in transaction mode: entries then arrive by polling.
   */
  readonly listen?: boolean;
}

export interface PostgresRevocationStore extends RevocationStore {
  /** Creates the tables, or brings them to the present version. Call it once before the first use; it may be repeated. */
  migrate(): Promise<void>;
}

/** Entries that one read brings. */
const PAGE = 2_000;
/** Milliseconds until a lost connection is replaced. */
const RECONNECT_MS = 1_000;
const CHANNEL = 'tollkeeper_revocations';

/** The migrations: a step that has been released never changes. */
const STEPS = [
  `CREATE TABLE tollkeeper_revocation_head (
     one boolean PRIMARY KEY DEFAULT true CHECK (one), epoch uuid NOT NULL, version bigint NOT NULL);
   CREATE TABLE tollkeeper_revocations (
     key text PRIMARY KEY, target text NOT NULL, before bigint NOT NULL, expires_at bigint NOT NULL, reason text,
     version bigint NOT NULL);
   CREATE UNIQUE INDEX tollkeeper_revocations_version ON tollkeeper_revocations (version);
   CREATE INDEX tollkeeper_revocations_expires_at ON tollkeeper_revocations (expires_at);
   INSERT INTO tollkeeper_revocation_head (epoch, version) VALUES (gen_random_uuid(), 0)`,
];

/**
 * One statement. The head's row is locked until it commits, so that versions become visible in their order: a reader who
 * sees one has seen all before it. A version is also a time, so that versions grow where a backup was put back.
 */
const APPEND = `
WITH head AS (
  UPDATE tollkeeper_revocation_head
  SET version = greatest(version + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) WHERE one
  RETURNING version
), written AS (
  INSERT INTO tollkeeper_revocations AS kept (key, target, before, expires_at, reason, version)
  SELECT $1, $2, $3, $4, $5, head.version FROM head
  ON CONFLICT (key) DO UPDATE SET
    before = CASE WHEN kept.expires_at > extract(epoch FROM now())::bigint
      THEN greatest(kept.before, excluded.before) ELSE excluded.before END,
    expires_at = greatest(kept.expires_at, excluded.expires_at),
    reason = excluded.reason, version = excluded.version
  RETURNING version
), pruned AS (
  DELETE FROM tollkeeper_revocations WHERE key IN (
    SELECT key FROM tollkeeper_revocations WHERE expires_at <= extract(epoch FROM now())::bigint AND key <> $1
    LIMIT 100 FOR UPDATE SKIP LOCKED)
)
SELECT pg_notify('${CHANNEL}', '') FROM written`;

/** One statement, and so one view of the data, which is not older than the statement's time. */
const READ = `
SELECT head.epoch, head.continued, head.start, head.as_of, entry.*
FROM (
  SELECT epoch::text, epoch::text = $1 AND version >= $2 AS continued,
    CASE WHEN epoch::text = $1 AND version >= $2 THEN $2 ELSE 0 END AS start,
    extract(epoch FROM statement_timestamp()) * 1000 AS as_of
  FROM tollkeeper_revocation_head WHERE one
) head
LEFT JOIN LATERAL (
  SELECT key, target, before, expires_at, reason, version FROM tollkeeper_revocations
  WHERE version > head.start ORDER BY version LIMIT ${PAGE}
) entry ON true
ORDER BY entry.version`;

/**
 * Shares what is denied through PostgreSQL (13 or later). The pool is the app's and stays open. Notifications are hints, on
 * one connection of the pool; polling is the guarantee. `migrate()` is explicit.
 *
 * @throws TypeError that lists every problem.
 */
export function postgresRevocationStore(
  pool: PostgresPool,
  options: PostgresRevocationStoreOptions = {},
): PostgresRevocationStore {
  const parser = new OptionsParser('postgresRevocationStore');
  parser.check(isPostgresPool(pool), 'pool must be a Pool of pg');
  const listen = parser.oneOf('listen', parser.known(options, ['listen']).listen, [true, false], true);
  parser.done();
  return {
    migrate: () => migrate(pool, 'revocations', STEPS),
    async append({ key, target, before, expiresAt, reason }, signal) {
      const { rows } = await onConnection(
        pool,
        (connection) => connection.query(APPEND, [key, target, before, expiresAt, reason ?? null]),
        signal,
      );
      if (rows.length !== 1) throw new Error('the revocation tables are empty: call migrate()');
    },
    async read(cursor, signal) {
      const [epoch = '', version = ''] = cursor?.split(':') ?? [];
      const { rows } = await onConnection(
        pool,
        (connection) => connection.query(READ, [epoch, /^\d+$/.test(version) ? version : '0']),
        signal,
      );
      const [first] = rows;
      if (first === undefined) throw new Error('the revocation tables are empty: call migrate()');
      const entries = rows.filter((row) => row.key !== null);
      return {
        entries: entries.map(entryOf),
        cursor: `${first.epoch}:${entries.at(-1)?.version ?? first.start}`,
        more: entries.length === PAGE,
        continued: first.continued === true,
        asOf: Number(first.as_of),
      };
    },
    ...(listen ? { subscribe: (hint: () => void) => subscribe(pool, hint) } : {}),
  };
}

function entryOf({ key, target, before, expires_at, reason }: Record<string, unknown>): RevocationEntry {
  const entry = { key: String(key), target: String(target), before: Number(before), expiresAt: Number(expires_at) };
  return reason === null ? entry : { ...entry, reason: String(reason) };
}

/** Listens on a connection of the pool, and on another one when it is lost. */
function subscribe(pool: PostgresPool, hint: () => void): () => Promise<void> {
  let closed = false;
  let connection: PostgresConnection | undefined;
  let timer: NodeJS.Timeout | undefined;
  /** Gives up the connection, once, or an attempt to get one. */
  const lost = (broken: PostgresConnection | undefined): void => {
    if (broken !== connection) return;
    connection = undefined;
    broken?.release(true);
    if (closed) return;
    timer = setTimeout(() => void listen(), RECONNECT_MS);
    timer.unref();
  };
  const listen = async (): Promise<void> => {
    let taken: PostgresConnection | undefined;
    try {
      taken = await pool.connect();
      const mine = taken;
      connection = mine;
      mine.on('error', () => lost(mine));
      mine.on('notification', () => {
        if (!closed) hint();
      });
      if (closed) return lost(mine);
      await mine.query(`LISTEN ${CHANNEL}`);
      // Something may have been written before.
      if (!closed) hint();
    } catch {
      lost(taken);
    }
  };
  void listen();
  return async () => {
    closed = true;
    clearTimeout(timer);
    lost(connection);
  };
}

import { OptionsParser } from '../errors/options-parser.js';
import { type ReplayStore, replayEntry } from '../issuer/replay-store.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { migrate } from './migrate.js';
import { isPostgresPool, onConnection, type PostgresPool } from './postgres-pool.js';

export interface PostgresReplayStoreOptions {
  readonly clock?: Clock;
}

export interface PostgresReplayStore extends ReplayStore {
  /** Creates the table, or brings it to the present version. Call it once before the first use; it may be repeated. */
  migrate(): Promise<void>;
}

/** The migrations: a step that has been released never changes. */
const STEPS = [
  `CREATE TABLE tollkeeper_replays (name text PRIMARY KEY, expires_at timestamptz NOT NULL);
   CREATE INDEX tollkeeper_replays_expires_at ON tollkeeper_replays (expires_at)`,
];

/** One statement. A writer of the same name waits for the first to commit, and then finds its row. */
const TAKE = `
WITH taken AS (
  INSERT INTO tollkeeper_replays AS kept (name, expires_at)
  VALUES ($1, clock_timestamp() + $2 * interval '1 second')
  ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at WHERE kept.expires_at <= clock_timestamp()
  RETURNING name
), pruned AS (
  DELETE FROM tollkeeper_replays WHERE name IN (
    SELECT name FROM tollkeeper_replays WHERE expires_at <= now() AND name <> $1 LIMIT 100 FOR UPDATE SKIP LOCKED)
)
SELECT name FROM taken`;

/**
 * Shares the ids of used assertions through PostgreSQL (13 or later). The pool is the app's and stays open. One statement
 * takes an id; it is kept until 60 s after its expiry. `migrate()` is explicit.
 *
 * @throws TypeError that lists every problem.
 */
export function postgresReplayStore(pool: PostgresPool, options: PostgresReplayStoreOptions = {}): PostgresReplayStore {
  const parser = new OptionsParser('postgresReplayStore');
  parser.check(isPostgresPool(pool), 'pool must be a Pool of pg');
  const { clock = systemClock } = parser.known(options, ['clock']);
  parser.done();
  return {
    migrate: () => migrate(pool, 'replays', STEPS),
    async take(id, expiresAt, signal) {
      const { name, keepSeconds } = replayEntry(id, expiresAt, clock);
      const { rows } = await onConnection(
        pool,
        (connection) => connection.query(TAKE, [name, String(keepSeconds)]),
        signal,
      );
      return rows.length === 1;
    },
  };
}

import { OptionsParser } from '../errors/options-parser.js';
import { type ReplayStore, replayEntry } from '../issuer/replay-store.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { migrate } from './migrate.js';
import { inTransaction, isSqliteDatabase, type SqliteDatabase } from './sqlite-database.js';

export interface SqliteReplayStoreOptions {
  readonly clock?: Clock;
}

export interface SqliteReplayStore extends ReplayStore {
  /** Creates the table, or brings it to the present version. Call it once before the first use; it may be repeated. */
  migrate(): Promise<void>;
}

/** The migrations: a step that has been released never changes. */
const STEPS = [
  `CREATE TABLE tollkeeper_replays (name TEXT PRIMARY KEY, expires_at INTEGER NOT NULL) WITHOUT ROWID;
   CREATE INDEX tollkeeper_replays_expires_at ON tollkeeper_replays (expires_at)`,
];

/**
 * Shares the ids of used assertions among the processes that open one SQLite file; each is kept until 60 s after its expiry.
 * The database is the app's: opened with `node:sqlite`, better-sqlite3 or libsql. `migrate()` is explicit.
 *
 * @throws TypeError for what is no database.
 */
export function sqliteReplayStore(db: SqliteDatabase, options: SqliteReplayStoreOptions = {}): SqliteReplayStore {
  const parser = new OptionsParser('sqliteReplayStore');
  parser.check(isSqliteDatabase(db), 'db must be an open SQLite database');
  const { clock = systemClock } = parser.known(options, ['clock']);
  parser.done();
  return {
    async migrate() {
      migrate(db, 'replays', STEPS);
    },
    async take(id, expiresAt) {
      const { name, keepSeconds } = replayEntry(id, expiresAt, clock);
      const now = Math.floor(clock.now() / 1_000);
      return inTransaction(db, () => {
        db.prepare(
          `DELETE FROM tollkeeper_replays WHERE name IN
             (SELECT name FROM tollkeeper_replays WHERE expires_at <= ? ORDER BY expires_at LIMIT 100)`,
        ).run(now);
        const { changes } = db
          .prepare(
            `INSERT INTO tollkeeper_replays (name, expires_at) VALUES (?, ?)
             ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at WHERE expires_at <= ?`,
          )
          .run(name, now + keepSeconds, now);
        return Number(changes) === 1;
      });
    },
  };
}

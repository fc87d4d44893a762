import { OptionsParser } from '../errors/options-parser.js';
import type { RevocationEntry, RevocationStore } from '../revocation/revocation-store.js';
import { migrate } from './migrate.js';
import { inTransaction, isSqliteDatabase, type SqliteDatabase } from './sqlite-database.js';

export interface SqliteRevocationStore extends RevocationStore {
  /** Creates the tables, or brings them to the present version. Call it once before the first use; it may be repeated. */
  migrate(): Promise<void>;
}

/** Entries that one read brings. */
const PAGE = 2_000;
/** Milliseconds since the epoch, by the database. */
const NOW_MS = `CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)`;

/** The migrations: a step that has been released never changes. */
const STEPS = [
  `CREATE TABLE tollkeeper_revocation_head (
     one INTEGER PRIMARY KEY CHECK (one = 1), epoch TEXT NOT NULL, version INTEGER NOT NULL);
   CREATE TABLE tollkeeper_revocations (
     key TEXT PRIMARY KEY, target TEXT NOT NULL, before INTEGER NOT NULL, expires_at INTEGER NOT NULL, reason TEXT,
     version INTEGER NOT NULL) WITHOUT ROWID;
   CREATE UNIQUE INDEX tollkeeper_revocations_version ON tollkeeper_revocations (version);
   CREATE INDEX tollkeeper_revocations_expires_at ON tollkeeper_revocations (expires_at);
   INSERT INTO tollkeeper_revocation_head (one, epoch, version) VALUES (1, lower(hex(randomblob(16))), 0)`,
];

const APPEND = `
INSERT INTO tollkeeper_revocations (key, target, before, expires_at, reason, version)
VALUES (?, ?, ?, ?, ?, (SELECT version FROM tollkeeper_revocation_head))
ON CONFLICT (key) DO UPDATE SET
  before = CASE WHEN expires_at * 1000 > ${NOW_MS} THEN max(before, excluded.before) ELSE excluded.before END,
  expires_at = max(expires_at, excluded.expires_at),
  reason = excluded.reason, version = excluded.version`;

interface Row {
  readonly key: string;
  readonly target: string;
  readonly before: number;
  readonly expires_at: number;
  readonly reason: string | null;
  readonly version: number;
}

/**
 * Shares what is denied among the processes that open one SQLite file, by polling. The database is the app's: opened with
 * `node:sqlite`, better-sqlite3 or libsql. `migrate()` is explicit.
 *
 * @throws TypeError for what is no database.
 */
export function sqliteRevocationStore(db: SqliteDatabase): SqliteRevocationStore {
  const parser = new OptionsParser('sqliteRevocationStore');
  parser.check(isSqliteDatabase(db), 'db must be an open SQLite database');
  parser.done();
  return {
    async migrate() {
      migrate(db, 'revocations', STEPS);
    },
    async append({ key, target, before, expiresAt, reason }) {
      inTransaction(db, () => {
        // Time, so that versions grow also where an older copy of the file was put back.
        db.prepare(
          `UPDATE tollkeeper_revocation_head SET version = max(version + 1, ${NOW_MS} * 1000) WHERE one = 1`,
        ).run();
        db.prepare(APPEND).run(key, target, before, expiresAt, reason ?? null);
        db.prepare(
          `DELETE FROM tollkeeper_revocations WHERE key IN
             (SELECT key FROM tollkeeper_revocations WHERE expires_at * 1000 <= ${NOW_MS} LIMIT 100)`,
        ).run();
      });
    },
    async read(cursor) {
      const [epoch, version] = cursor?.split(':') ?? [];
      const head = db.prepare(`SELECT epoch, version, ${NOW_MS} AS as_of FROM tollkeeper_revocation_head`).get() as
        | { epoch: string; version: number; as_of: number }
        | undefined;
      if (head === undefined || head === null) throw new Error('the revocation tables are empty: call migrate()');
      const continued = epoch === head.epoch && Number(version) <= Number(head.version);
      const from = continued ? Number(version) : 0;
      const rows = db
        .prepare('SELECT * FROM tollkeeper_revocations WHERE version > ? ORDER BY version LIMIT ?')
        .all(from, PAGE) as Row[];
      return {
        entries: rows.map(entryOf),
        cursor: `${head.epoch}:${rows.at(-1)?.version ?? from}`,
        more: rows.length === PAGE,
        continued,
        asOf: Number(head.as_of),
      };
    },
  };
}

function entryOf({ key, target, before, expires_at, reason }: Row): RevocationEntry {
  const entry = { key, target, before: Number(before), expiresAt: Number(expires_at) };
  return reason === null ? entry : { ...entry, reason };
}

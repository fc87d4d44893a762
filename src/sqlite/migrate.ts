import { inTransaction, type SqliteDatabase } from './sqlite-database.js';

/**
 * Brings one part's tables up to date: runs the steps that this database has not seen, in one transaction, and writes
 * down how far it is. Safe to run twice and from two processes at once.
 *
 * @param part the name of the part, e.g. `ledger`; its tables are its own.
 * @param steps what each version does. A step that has been released never changes.
 * @throws Error when the database is newer than this code.
 */
export function migrate(db: SqliteDatabase, part: string, steps: readonly string[]): void {
  inTransaction(db, () => {
    db.exec('CREATE TABLE IF NOT EXISTS tollkeeper_migrations (part TEXT PRIMARY KEY, version INTEGER NOT NULL)');
    const version = migratedVersion(db, part);
    if (version > steps.length) {
      throw new Error(`${part}: the database has version ${version}, newer than the ${steps.length} known here`);
    }
    for (const step of steps.slice(version)) db.exec(step);
    db.prepare(
      'INSERT INTO tollkeeper_migrations (part, version) VALUES (?, ?) ON CONFLICT (part) DO UPDATE SET version = excluded.version',
    ).run(part, steps.length);
  });
}

/** @throws Error that names `migrate()` when the part's tables are not up to date. */
export function assertMigrated(db: SqliteDatabase, part: string, steps: readonly string[]): void {
  const found = db.prepare("SELECT 1 FROM sqlite_master WHERE name = 'tollkeeper_migrations'").get();
  const version = found == null ? 0 : migratedVersion(db, part);
  if (version !== steps.length) {
    throw new Error(`${part}: the tables have version ${version} and ${steps.length} is needed: call migrate() first`);
  }
}

function migratedVersion(db: SqliteDatabase, part: string): number {
  const row = db.prepare('SELECT version FROM tollkeeper_migrations WHERE part = ?').get(part);
  return row == null ? 0 : Number((row as { version: number }).version);
}

/** A prepared statement, as far as the stores use it: values are strings, numbers, bigints, null and byte arrays. */
export interface SqliteStatement {
  run(...values: unknown[]): { readonly changes: number | bigint };
  /** The first row, or undefined (some drivers: null) when there is none. */
  get(...values: unknown[]): unknown;
  all(...values: unknown[]): unknown[];
}

/**
 * What the stores need of a SQLite database: `DatabaseSync` of `node:sqlite`, better-sqlite3 and libsql all have it. It
 * belongs to the app, which also closes it.
 */
export interface SqliteDatabase {
  exec(sql: string): unknown;
  prepare(sql: string): SqliteStatement;
}

/** Whether a value looks like an open database of one of the three drivers. */
export function isSqliteDatabase(value: unknown): value is SqliteDatabase {
  const { exec, prepare } = (value ?? {}) as Partial<SqliteDatabase>;
  return typeof exec === 'function' && typeof prepare === 'function';
}

/**
 * Runs `work` in one write transaction. It takes the lock at once, so that two writers meet here and not at the commit.
 * `work` is synchronous: nothing else of this process gets in between.
 */
export function inTransaction<T>(db: SqliteDatabase, work: () => T): T {
  db.exec('BEGIN IMMEDIATE');
  try {
    const result = work();
    db.exec('COMMIT');
    return result;
  } catch (error) {
    try {
      db.exec('ROLLBACK');
    } catch {
      // SQLite has rolled back by itself: a full disk.
    }
    throw error;
  }
}

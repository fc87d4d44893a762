import { inTransaction, type PostgresPool } from './postgres-pool.js';

/** The advisory lock under which migrations run: the bytes of `toll`. */
const MIGRATION_LOCK = 0x746f6c6c;

/**
 * Brings one part's tables up to date: runs the steps that this database has not seen, in one transaction, and writes
 * down how far it is. Safe to run twice and from two processes at once.
 *
 * @param part the name of the part, e.g. `ledger`; its tables are its own.
 * @param steps what each version does. A step that has been released never changes.
 * @throws Error when the database is newer than this code.
 */
export async function migrate(pool: PostgresPool, part: string, steps: readonly string[]): Promise<void> {
  await inTransaction(pool, async (connection) => {
    await connection.query('SELECT pg_advisory_xact_lock($1)', [MIGRATION_LOCK]);
    await connection.query(
      'CREATE TABLE IF NOT EXISTS tollkeeper_migrations (part text PRIMARY KEY, version integer NOT NULL)',
    );
    const { rows } = await connection.query('SELECT version FROM tollkeeper_migrations WHERE part = $1', [part]);
    const version = Number(rows[0]?.version ?? 0);
    if (version > steps.length) {
      throw new Error(`${part}: the database has version ${version}, newer than the ${steps.length} known here`);
    }
    for (const step of steps.slice(version)) await connection.query(step);
    await connection.query(
      `INSERT INTO tollkeeper_migrations (part, version) VALUES ($1, $2)
       ON CONFLICT (part) DO UPDATE SET version = excluded.version`,
      [part, steps.length],
    );
  });
}

/** @throws Error that names `migrate()` when the part's tables are not up to date. */
export async function assertMigrated(pool: PostgresPool, part: string, steps: readonly string[]): Promise<void> {
  const table = await pool.query("SELECT to_regclass('tollkeeper_migrations') AS found");
  const known = table.rows[0]?.found != null;
  const { rows } = known
    ? await pool.query('SELECT version FROM tollkeeper_migrations WHERE part = $1', [part])
    : { rows: [] };
  const version = Number(rows[0]?.version ?? 0);
  if (version !== steps.length) {
    throw new Error(`${part}: the tables have version ${version} and ${steps.length} is needed: call migrate() first`);
  }
}

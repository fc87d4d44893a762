import type { SqliteDatabase } from 'tollkeeper/sqlite';

/** A SQLite file: with Node's own driver where there is one (from 22.13), else with libsql. */
export async function openDatabase(path: string): Promise<SqliteDatabase & { close(): void }> {
  const builtin = process.getBuiltinModule?.('node:sqlite' as 'node:fs') as unknown as
    | { DatabaseSync: new (path: string) => SqliteDatabase & { close(): void } }
    | undefined;
  if (builtin !== undefined) return new builtin.DatabaseSync(path);
  const { default: Database } = await import('libsql');
  return new Database(path) as never;
}

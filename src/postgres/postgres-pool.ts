/** What a query comes back with, as far as the stores use it. */
export interface PostgresResult {
  readonly rows: readonly Record<string, unknown>[];
  /** How many rows the statement touched. */
  readonly rowCount: number | null;
}

/** What `LISTEN` is told. */
export interface PostgresNotification {
  readonly channel: string;
  readonly payload?: string | undefined;
}

/** One connection, taken out of a pool. */
export interface PostgresConnection {
  query(text: string, values?: unknown[]): Promise<PostgresResult>;
  /** Gives the connection back; with `true` it is closed instead. */
  release(destroy?: boolean): void;
  on(event: 'notification', listener: (message: PostgresNotification) => void): unknown;
  on(event: 'error', listener: (error: Error) => void): unknown;
}

/** What the stores need of a pool: `Pool` of `pg` has it. It belongs to the app, which also ends it. */
export interface PostgresPool {
  query(text: string, values?: unknown[]): Promise<PostgresResult>;
  connect(): Promise<PostgresConnection>;
}

/** Whether a value looks like a pool. */
export function isPostgresPool(value: unknown): value is PostgresPool {
  const { query, connect } = (value ?? {}) as Partial<PostgresPool>;
  return typeof query === 'function' && typeof connect === 'function';
}

/** Runs `work` in a transaction on one connection. A connection whose transaction cannot be rolled back is closed. */
export async function inTransaction<T>(
  pool: PostgresPool,
  work: (connection: PostgresConnection) => Promise<T>,
): Promise<T> {
  const connection = await pool.connect();
  let broken = false;
  try {
    await connection.query('BEGIN');
    const result = await work(connection);
    await connection.query('COMMIT');
    return result;
  } catch (error) {
    await connection.query('ROLLBACK').catch(() => {
      broken = true;
    });
    throw error;
  } finally {
    connection.release(broken);
  }
}

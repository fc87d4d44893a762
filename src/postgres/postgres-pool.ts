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
  removeListener(event: 'error', listener: (error: Error) => void): unknown;
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

/**
 * Runs `work` on one connection. Its loss fails `work`, and only that: a connection that is out of the pool has no
 * listener for errors but this one, and an error that nobody listens to ends the process.
 *
 * @param work may call `spoil` to have the connection closed instead of given back.
 * @param signal closes the connection when it aborts, since one that hangs would block a place of the pool.
 */
export async function onConnection<T>(
  pool: PostgresPool,
  work: (connection: PostgresConnection, spoil: () => void) => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const connection = await pool.connect();
  let broken = false;
  let released = false;
  const spoil = (): void => {
    broken = true;
  };
  const release = (): void => {
    if (released) return;
    released = true;
    signal?.removeEventListener('abort', abort);
    connection.removeListener('error', spoil);
    connection.release(broken);
  };
  const abort = (): void => {
    spoil();
    release();
  };
  connection.on('error', spoil);
  signal?.addEventListener('abort', abort);
  try {
    signal?.throwIfAborted();
    return await work(connection, spoil);
  } finally {
    release();
  }
}

/** Runs `work` in a transaction on one connection. A connection whose transaction cannot be rolled back is closed. */
export function inTransaction<T>(
  pool: PostgresPool,
  work: (connection: PostgresConnection) => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  return onConnection(pool, (connection, spoil) => transaction(connection, spoil, () => work(connection)), signal);
}

/**
 * Runs `work` in a transaction on a connection that was taken out already, whatever isolation the app's pool prefers.
 *
 * @param spoil called when the transaction cannot be rolled back.
 */
export async function transaction<T>(
  connection: PostgresConnection,
  spoil: () => void,
  work: () => Promise<T>,
): Promise<T> {
  try {
    await connection.query('BEGIN ISOLATION LEVEL READ COMMITTED');
    const result = await work();
    await connection.query('COMMIT');
    return result;
  } catch (error) {
    await connection.query('ROLLBACK').catch(spoil);
    throw error;
  }
}

import { OptionsParser } from '../errors/options-parser.js';
import type { StoredToken } from '../tokens/token-record.js';
import {
  CLIENT_COLUMNS,
  clientOfRow,
  clientRow,
  lookupOfRow,
  TOKEN_COLUMNS,
  tokenOfRow,
  tokenRow,
} from '../tokens/token-row.js';
import type { StoredPage, TokenStore } from '../tokens/token-store.js';
import { assertMigrated, migrate } from './migrate.js';
import { inTransaction, isPostgresPool, type PostgresPool } from './postgres-pool.js';

export interface PostgresTokenStore extends TokenStore {
  /** Creates the tables, or brings them to the present version. Explicit; it may be repeated, and by several processes at once. */
  migrate(): Promise<void>;
}

/** The migrations: a step that has been released never changes. */
const STEPS: readonly string[] = [
  `
  CREATE TABLE tollkeeper_clients (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    version integer NOT NULL,
    name text NOT NULL,
    tenant text,
    plan text,
    description text,
    metadata text,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL
  );
  CREATE UNIQUE INDEX tollkeeper_clients_name ON tollkeeper_clients (coalesce(tenant, ''), name);
  CREATE INDEX tollkeeper_clients_tenant ON tollkeeper_clients (tenant, position);
  CREATE TABLE tollkeeper_tokens (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    version integer NOT NULL,
    client_id text NOT NULL,
    pepper_id text NOT NULL,
    mac text NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    expires_at double precision,
    revoked_at bigint,
    last_used_at bigint,
    record text NOT NULL
  );
  CREATE INDEX tollkeeper_tokens_client ON tollkeeper_tokens (client_id, position);
  `,
];

const UNIQUE_VIOLATION = '23505';

const INSERT_CLIENT = `INSERT INTO tollkeeper_clients (${CLIENT_COLUMNS.join(', ')})
VALUES (${CLIENT_COLUMNS.map((_, index) => `$${index + 1}`).join(', ')}) ON CONFLICT DO NOTHING`;

const UPDATE_CLIENT = `UPDATE tollkeeper_clients SET version = version + 1, ${CLIENT_COLUMNS.slice(2)
  .map((column, index) => `${column} = $${index + 3}`)
  .join(', ')} WHERE id = $1 AND version = $2`;

const INSERT_TOKEN = `INSERT INTO tollkeeper_tokens (${TOKEN_COLUMNS.join(', ')})
VALUES (${TOKEN_COLUMNS.map((_, index) => `$${index + 1}`).join(', ')})`;

/** Every column but the last use, which only `touchTokens` writes. */
const UPDATED = TOKEN_COLUMNS.filter((column) => column !== 'last_used_at');
const UPDATE_TOKEN = `UPDATE tollkeeper_tokens SET version = version + 1, ${UPDATED.slice(2)
  .map((column, index) => `${column} = $${index + 3}`)
  .join(', ')} WHERE id = $1 AND version = $2`;

const LOOKUP = `SELECT t.*, c.id AS has_client, c.tenant, c.plan
FROM tollkeeper_tokens t LEFT JOIN tollkeeper_clients c ON c.id = t.client_id WHERE t.id = ANY($1)`;

/** A row that somebody else is writing is left out: a note of a use is not worth a wait, and who never waits cannot deadlock. */
const TOUCH = `UPDATE tollkeeper_tokens t SET last_used_at = u.last_used_at
FROM (
  SELECT k.position, u.last_used_at FROM unnest($1::text[], $2::bigint[]) AS u (id, last_used_at)
  JOIN tollkeeper_tokens k ON k.id = u.id AND (k.last_used_at IS NULL OR k.last_used_at < u.last_used_at)
  FOR NO KEY UPDATE OF k SKIP LOCKED
) u WHERE t.position = u.position`;

/**
 * Keeps clients and tokens in PostgreSQL (13 or later). The pool is the app's and stays open. `migrate()` is explicit.
 *
 * @throws TypeError for what is no pool.
 */
export function postgresTokenStore(pool: PostgresPool): PostgresTokenStore {
  const parser = new OptionsParser('postgresTokenStore');
  parser.check(isPostgresPool(pool), 'pool must be a Pool of pg');
  parser.done();
  return {
    migrate: () => migrate(pool, 'tokens', STEPS),
    ready: () => assertMigrated(pool, 'tokens', STEPS),
    async insertClient(client) {
      return (await pool.query(INSERT_CLIENT, clientRow(client))).rowCount === 1;
    },
    async updateClient(client) {
      try {
        const { rowCount } = await pool.query(UPDATE_CLIENT, clientRow(client));
        return rowCount === 1 ? 'updated' : 'conflict';
      } catch (error) {
        if ((error as { code?: unknown }).code === UNIQUE_VIOLATION) return 'name_taken';
        throw error;
      }
    },
    async deleteClient(id, at) {
      // Two statements: the second one sees the tokens whose insertion the first one had to wait for.
      return inTransaction(pool, async (connection) => {
        const { rowCount } = await connection.query('DELETE FROM tollkeeper_clients WHERE id = $1', [id]);
        if (rowCount !== 1) return false;
        const revoke = `UPDATE tollkeeper_tokens SET revoked_at = $2, version = version + 1
          WHERE client_id = $1 AND revoked_at IS NULL`;
        await connection.query(revoke, [id, at]);
        return true;
      });
    },
    async getClient(id) {
      const { rows } = await pool.query('SELECT * FROM tollkeeper_clients WHERE id = $1', [id]);
      return rows[0] && clientOfRow(rows[0]);
    },
    async listClients({ limit, after = 0, tenant }) {
      const where = tenant === undefined ? '' : 'tenant = $3 AND ';
      const text = `SELECT * FROM tollkeeper_clients WHERE ${where}position > $1 ORDER BY position LIMIT $2`;
      const { rows } = await pool.query(text, [after, limit + 1, ...(tenant === undefined ? [] : [tenant])]);
      return page(rows, limit, clientOfRow);
    },
    async insertToken(token, replaced) {
      return inTransaction(pool, async (connection) => {
        // Locked, so that the client cannot be deleted before this commits.
        const client = 'SELECT 1 FROM tollkeeper_clients WHERE id = $1 FOR KEY SHARE';
        if ((await connection.query(client, [token.clientId])).rowCount !== 1) return 'no_client';
        if (replaced !== undefined && (await connection.query(UPDATE_TOKEN, updated(replaced))).rowCount !== 1) {
          return 'conflict';
        }
        await connection.query(INSERT_TOKEN, tokenRow(token));
        return 'inserted';
      });
    },
    async updateToken(token) {
      return (await pool.query(UPDATE_TOKEN, updated(token))).rowCount === 1;
    },
    async getTokens(ids) {
      return (await pool.query(LOOKUP, [ids])).rows.map(lookupOfRow);
    },
    async listTokens({ limit, after = 0, clientId }) {
      const where = clientId === undefined ? '' : 'client_id = $3 AND ';
      const text = `SELECT * FROM tollkeeper_tokens WHERE ${where}position > $1 ORDER BY position LIMIT $2`;
      const { rows } = await pool.query(text, [after, limit + 1, ...(clientId === undefined ? [] : [clientId])]);
      return page(rows, limit, tokenOfRow);
    },
    async touchTokens(uses) {
      if (uses.length === 0) return;
      await pool.query(TOUCH, [uses.map(({ id }) => id), uses.map(({ lastUsedAt }) => lastUsedAt)]);
    },
    async countByPepper(now) {
      const text = `SELECT pepper_id, count(*) AS count FROM tollkeeper_tokens
        WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1) GROUP BY pepper_id`;
      const { rows } = await pool.query(text, [now]);
      return new Map(rows.map((row) => [String(row.pepper_id), Number(row.count)]));
    },
    async revokeByPepper(pepperId, at) {
      const text = `UPDATE tollkeeper_tokens SET revoked_at = $2, version = version + 1
        WHERE pepper_id = $1 AND revoked_at IS NULL`;
      return Number((await pool.query(text, [pepperId, at])).rowCount);
    },
  };
}

/** The values of `UPDATE_TOKEN`. */
function updated(token: StoredToken): unknown[] {
  return tokenRow(token).filter((_, index) => TOKEN_COLUMNS[index] !== 'last_used_at');
}

function page<T>(
  rows: readonly Record<string, unknown>[],
  limit: number,
  read: (row: Record<string, unknown>) => T,
): StoredPage<T> {
  const shown = rows.slice(0, limit);
  const items = shown.map(read);
  return rows.length > limit ? { items, next: Number(shown.at(-1)?.position) } : { items };
}

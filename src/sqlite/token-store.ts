import { OptionsParser } from '../errors/options-parser.js';
import type { ClientRecord } from '../tokens/client-record.js';
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
import { inTransaction, isSqliteDatabase, type SqliteDatabase, type SqliteStatement } from './sqlite-database.js';

export interface SqliteTokenStore extends TokenStore {
  /** Creates the tables, or brings them to the present version. Explicit; it may be repeated, and by several processes at once. */
  migrate(): Promise<void>;
}

/** The migrations: a step that has been released never changes. Positions are never given twice, so that pages stay in order. */
const STEPS: readonly string[] = [
  `
  CREATE TABLE tollkeeper_clients (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    name TEXT NOT NULL,
    tenant TEXT,
    plan TEXT,
    description TEXT,
    metadata TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
  );
  CREATE UNIQUE INDEX tollkeeper_clients_name ON tollkeeper_clients (coalesce(tenant, ''), name);
  CREATE INDEX tollkeeper_clients_tenant ON tollkeeper_clients (tenant, position);
  CREATE TABLE tollkeeper_tokens (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    client_id TEXT NOT NULL,
    pepper_id TEXT NOT NULL,
    mac TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    expires_at REAL,
    revoked_at INTEGER,
    last_used_at INTEGER,
    record TEXT NOT NULL
  );
  CREATE INDEX tollkeeper_tokens_client ON tollkeeper_tokens (client_id, position);
  `,
];

const LOOKUP = `
SELECT t.*, c.id AS has_client, c.tenant, c.plan
FROM tollkeeper_tokens t LEFT JOIN tollkeeper_clients c ON c.id = t.client_id`;
const LOOKUP_ONE = `${LOOKUP} WHERE t.id = ?`;
const LOOKUP_MANY = `${LOOKUP} WHERE t.id IN (SELECT value FROM json_each(?))`;

type Row = Readonly<Record<string, unknown>>;

/**
 * Keeps clients and tokens in SQLite. The database is the app's: opened with `node:sqlite`, better-sqlite3 or libsql, and
 * closed by the app. Where several processes write, give it a busy timeout and WAL mode. `migrate()` is explicit.
 *
 * @throws TypeError for what is no database.
 */
export function sqliteTokenStore(db: SqliteDatabase): SqliteTokenStore {
  const parser = new OptionsParser('sqliteTokenStore');
  parser.check(isSqliteDatabase(db), 'db must be an open SQLite database');
  parser.done();
  const statements = new Map<string, SqliteStatement>();

  function sql(text: string): SqliteStatement {
    let statement = statements.get(text);
    if (statement === undefined) {
      statement = db.prepare(text);
      statements.set(text, statement);
    }
    return statement;
  }

  function changes(text: string, ...values: unknown[]): number {
    return Number(sql(text).run(...values).changes);
  }

  function exists(text: string, ...values: unknown[]): boolean {
    return sql(text).get(...values) != null;
  }

  function updateToken(token: StoredToken): boolean {
    // Every column but the last use, which only `touchTokens` writes.
    const isWritten = (_: unknown, index: number): boolean => TOKEN_COLUMNS[index] !== 'last_used_at';
    const [, , ...columns] = TOKEN_COLUMNS.filter(isWritten);
    const [id, version, ...values] = tokenRow(token).filter(isWritten);
    const set = columns.map((column) => `${column} = ?`).join(', ');
    const text = `UPDATE tollkeeper_tokens SET version = version + 1, ${set} WHERE id = ? AND version = ?`;
    return changes(text, ...values, id, version) === 1;
  }

  function page<T>(rows: readonly unknown[], limit: number, read: (row: Row) => T): StoredPage<T> {
    const shown = rows.slice(0, limit) as Row[];
    const items = shown.map(read);
    return rows.length > limit ? { items, next: Number(shown.at(-1)?.position) } : { items };
  }

  return {
    async migrate() {
      migrate(db, 'tokens', STEPS);
    },
    async ready() {
      assertMigrated(db, 'tokens', STEPS);
    },
    async insertClient(client) {
      const text = `INSERT INTO tollkeeper_clients (${CLIENT_COLUMNS.join(', ')})
        VALUES (${CLIENT_COLUMNS.map(() => '?').join(', ')}) ON CONFLICT DO NOTHING`;
      return changes(text, ...clientRow(client)) === 1;
    },
    async updateClient(client: ClientRecord) {
      return inTransaction(db, () => {
        const { id, version, tenant = '', name } = client;
        if (!exists('SELECT 1 FROM tollkeeper_clients WHERE id = ? AND version = ?', id, version)) return 'conflict';
        const namesake = "SELECT 1 FROM tollkeeper_clients WHERE coalesce(tenant, '') = ? AND name = ? AND id <> ?";
        if (exists(namesake, tenant, name, id)) return 'name_taken';
        const set = CLIENT_COLUMNS.slice(2).map((column) => `${column} = ?`);
        const text = `UPDATE tollkeeper_clients SET version = version + 1, ${set.join(', ')} WHERE id = ?`;
        sql(text).run(...clientRow(client).slice(2), id);
        return 'updated';
      });
    },
    async deleteClient(id, at) {
      return inTransaction(db, () => {
        if (changes('DELETE FROM tollkeeper_clients WHERE id = ?', id) === 0) return false;
        const text = `UPDATE tollkeeper_tokens SET revoked_at = ?, version = version + 1
          WHERE client_id = ? AND revoked_at IS NULL`;
        sql(text).run(at, id);
        return true;
      });
    },
    async getClient(id) {
      const row = sql('SELECT * FROM tollkeeper_clients WHERE id = ?').get(id);
      return row == null ? undefined : clientOfRow(row as Row);
    },
    async listClients({ limit, after = 0, tenant }) {
      const where = tenant === undefined ? '' : 'tenant = ? AND ';
      const text = `SELECT * FROM tollkeeper_clients WHERE ${where}position > ? ORDER BY position LIMIT ?`;
      const values = tenant === undefined ? [] : [tenant];
      return page(sql(text).all(...values, after, limit + 1), limit, clientOfRow);
    },
    async insertToken(token, replaced) {
      return inTransaction(db, () => {
        if (!exists('SELECT 1 FROM tollkeeper_clients WHERE id = ?', token.clientId)) return 'no_client';
        if (replaced !== undefined && !updateToken(replaced)) return 'conflict';
        const text = `INSERT INTO tollkeeper_tokens (${TOKEN_COLUMNS.join(', ')})
          VALUES (${TOKEN_COLUMNS.map(() => '?').join(', ')})`;
        sql(text).run(...tokenRow(token));
        return 'inserted';
      });
    },
    async updateToken(token) {
      return updateToken(token);
    },
    async getTokens(ids) {
      const rows = ids.length === 1 ? sql(LOOKUP_ONE).all(ids[0]) : sql(LOOKUP_MANY).all(JSON.stringify(ids));
      return (rows as Row[]).map(lookupOfRow);
    },
    async listTokens({ limit, after = 0, clientId }) {
      const where = clientId === undefined ? '' : 'client_id = ? AND ';
      const text = `SELECT * FROM tollkeeper_tokens WHERE ${where}position > ? ORDER BY position LIMIT ?`;
      const values = clientId === undefined ? [] : [clientId];
      return page(sql(text).all(...values, after, limit + 1), limit, tokenOfRow);
    },
    async touchTokens(uses) {
      if (uses.length === 0) return;
      inTransaction(db, () => {
        for (const { id, lastUsedAt } of uses) {
          const text = `UPDATE tollkeeper_tokens SET last_used_at = ?
            WHERE id = ? AND (last_used_at IS NULL OR last_used_at < ?)`;
          sql(text).run(lastUsedAt, id, lastUsedAt);
        }
      });
    },
    async countByPepper(now) {
      const text = `SELECT pepper_id, count(*) AS count FROM tollkeeper_tokens
        WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?) GROUP BY pepper_id`;
      const rows = sql(text).all(now) as Row[];
      return new Map(rows.map((row) => [String(row.pepper_id), Number(row.count)]));
    },
    async revokeByPepper(pepperId, at) {
      const text = `UPDATE tollkeeper_tokens SET revoked_at = ?, version = version + 1
        WHERE pepper_id = ? AND revoked_at IS NULL`;
      return changes(text, at, pepperId);
    },
  };
}

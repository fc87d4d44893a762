import { frozenCopy } from '../identity/frozen-copy.js';
import type { ClientRecord } from './client-record.js';
import { type StoredToken, statusOf } from './token-record.js';
import type { PageQuery, StoredPage, TokenStore } from './token-store.js';

/** A record and its place in the order of creation. */
interface Row<T> {
  readonly position: number;
  record: T;
}

/** Keeps clients and tokens in this process: for tests, demos and whoever registers them at every start. */
export function memoryTokenStore(): TokenStore {
  const clients = new Map<string, Row<ClientRecord>>();
  const tokens = new Map<string, Row<StoredToken>>();
  const tokensOf = new Map<string, Row<StoredToken>[]>();
  const names = new Set<string>();
  let position = 0;

  /** The row that `changed` may replace: it still has the version that was read. */
  function rowFor<T extends { id: string; version: number }>(
    rows: Map<string, Row<T>>,
    changed: T,
  ): Row<T> | undefined {
    const row = rows.get(changed.id);
    return row?.record.version === changed.version ? row : undefined;
  }

  function replaceToken(row: Row<StoredToken>, changed: StoredToken): void {
    const { lastUsedAt } = row.record;
    const { lastUsedAt: _, ...rest } = changed;
    row.record = frozenCopy({
      ...rest,
      ...(lastUsedAt === undefined ? {} : { lastUsedAt }),
      version: changed.version + 1,
    });
  }

  function revoke(rows: Iterable<Row<StoredToken>>, at: number): number {
    let count = 0;
    for (const row of rows) {
      if (row.record.revokedAt !== undefined) continue;
      replaceToken(row, { ...row.record, revokedAt: at });
      count += 1;
    }
    return count;
  }

  return {
    async insertClient(client) {
      if (names.has(nameKey(client))) return false;
      names.add(nameKey(client));
      position += 1;
      clients.set(client.id, { position, record: frozenCopy(client) });
      return true;
    },
    async updateClient(client) {
      const row = rowFor(clients, client);
      if (row === undefined) return 'conflict';
      const before = nameKey(row.record);
      const after = nameKey(client);
      if (after !== before && names.has(after)) return 'name_taken';
      names.delete(before);
      names.add(after);
      row.record = frozenCopy({ ...client, version: client.version + 1 });
      return 'updated';
    },
    async deleteClient(id, at) {
      const row = clients.get(id);
      if (row === undefined) return false;
      clients.delete(id);
      names.delete(nameKey(row.record));
      revoke(tokensOf.get(id) ?? [], at);
      return true;
    },
    async getClient(id) {
      return clients.get(id)?.record;
    },
    async listClients({ tenant, ...query }) {
      return page(clients.values(), query, (client) => tenant === undefined || client.tenant === tenant);
    },
    async insertToken(token, replaced) {
      if (!clients.has(token.clientId)) return 'no_client';
      const old = replaced === undefined ? undefined : rowFor(tokens, replaced);
      if (replaced !== undefined) {
        if (old === undefined) return 'conflict';
        replaceToken(old, replaced);
      }
      position += 1;
      const row = { position, record: frozenCopy(token) };
      tokens.set(token.id, row);
      const siblings = tokensOf.get(token.clientId);
      if (siblings === undefined) tokensOf.set(token.clientId, [row]);
      else siblings.push(row);
      return 'inserted';
    },
    async updateToken(token) {
      const row = rowFor(tokens, token);
      if (row === undefined) return false;
      replaceToken(row, token);
      return true;
    },
    async getTokens(ids) {
      return ids.flatMap((id) => {
        const token = tokens.get(id)?.record;
        if (token === undefined) return [];
        const client = clients.get(token.clientId)?.record;
        return [client === undefined ? { token } : { token, client }];
      });
    },
    async listTokens({ clientId, ...query }) {
      return page(clientId === undefined ? tokens.values() : (tokensOf.get(clientId) ?? []), query);
    },
    async touchTokens(uses) {
      for (const { id, lastUsedAt } of uses) {
        const row = tokens.get(id);
        if (row === undefined || lastUsedAt <= (row.record.lastUsedAt ?? 0)) continue;
        row.record = Object.freeze({ ...row.record, lastUsedAt });
      }
    },
    async countByPepper(now) {
      const counts = new Map<string, number>();
      for (const { record } of tokens.values()) {
        if (statusOf(record, now) === 'active') counts.set(record.pepperId, (counts.get(record.pepperId) ?? 0) + 1);
      }
      return counts;
    },
    async revokeByPepper(pepperId, at) {
      return revoke(
        [...tokens.values()].filter(({ record }) => record.pepperId === pepperId),
        at,
      );
    },
  };
}

function nameKey({ tenant, name }: ClientRecord): string {
  return JSON.stringify([tenant ?? null, name]);
}

function page<T>(
  rows: Iterable<Row<T>>,
  { limit, after = 0 }: PageQuery,
  wanted: (record: T) => boolean = () => true,
): StoredPage<T> {
  const items: T[] = [];
  let last = after;
  for (const { position, record } of rows) {
    if (position <= after || !wanted(record)) continue;
    if (items.length === limit) return { items, next: last };
    items.push(record);
    last = position;
  }
  return { items };
}

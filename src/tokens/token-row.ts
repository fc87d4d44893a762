import type { ClientRecord } from './client-record.js';
import type { StoredToken } from './token-record.js';
import type { TokenLookup } from './token-store.js';

/** The columns of a client in the SQL stores, in the order of `clientRow`. */
export const CLIENT_COLUMNS = [
  'id',
  'version',
  'name',
  'tenant',
  'plan',
  'description',
  'metadata',
  'created_at',
  'updated_at',
] as const;

/** The columns of a token in the SQL stores, in the order of `tokenRow`: what is searched for or changed in bulk, and the rest as JSON. */
export const TOKEN_COLUMNS = [
  'id',
  'version',
  'client_id',
  'pepper_id',
  'mac',
  'created_at',
  'updated_at',
  'expires_at',
  'revoked_at',
  'last_used_at',
  'record',
] as const;

type Value = string | number | null;
type Row = Readonly<Record<string, unknown>>;

/** A client as the values of its columns. */
export function clientRow({ metadata, ...client }: ClientRecord): Value[] {
  return [
    client.id,
    client.version,
    client.name,
    client.tenant ?? null,
    client.plan ?? null,
    client.description ?? null,
    metadata === undefined ? null : JSON.stringify(metadata),
    client.createdAt,
    client.updatedAt,
  ];
}

/** A client from a row; numbers may come as strings. */
export function clientOfRow(row: Row): ClientRecord {
  return {
    id: String(row.id),
    version: Number(row.version),
    name: String(row.name),
    ...text('tenant', row.tenant),
    ...text('plan', row.plan),
    ...text('description', row.description),
    ...(row.metadata == null ? {} : { metadata: JSON.parse(String(row.metadata)) as Record<string, unknown> }),
    createdAt: Number(row.created_at),
    updatedAt: Number(row.updated_at),
  };
}

/** A token as the values of its columns. */
export function tokenRow(token: StoredToken): Value[] {
  const { id, version, clientId, pepperId, mac, createdAt, updatedAt, expiresAt, revokedAt, lastUsedAt, ...rest } =
    token;
  return [
    id,
    version,
    clientId,
    pepperId,
    mac,
    createdAt,
    updatedAt,
    expiresAt ?? null,
    revokedAt ?? null,
    lastUsedAt ?? null,
    JSON.stringify(rest),
  ];
}

/** A token from a row; numbers may come as strings. Read for every unknown token: spreads would cost ten times as much. */
export function tokenOfRow(row: Row): StoredToken {
  const token = JSON.parse(String(row.record)) as { -readonly [K in keyof StoredToken]: StoredToken[K] };
  token.id = String(row.id);
  token.version = Number(row.version);
  token.clientId = String(row.client_id);
  token.pepperId = String(row.pepper_id);
  token.mac = String(row.mac);
  token.createdAt = Number(row.created_at);
  token.updatedAt = Number(row.updated_at);
  if (row.expires_at != null) token.expiresAt = Number(row.expires_at);
  if (row.revoked_at != null) token.revokedAt = Number(row.revoked_at);
  if (row.last_used_at != null) token.lastUsedAt = Number(row.last_used_at);
  return token;
}

/** A token and its client from a row that also has the client's `tenant`, its `plan`, and `has_client`. */
export function lookupOfRow(row: Row): TokenLookup {
  const token = tokenOfRow(row);
  if (row.has_client == null) return { token };
  const client: { tenant?: string; plan?: string } = {};
  if (row.tenant != null) client.tenant = String(row.tenant);
  if (row.plan != null) client.plan = String(row.plan);
  return { token, client: client as NonNullable<TokenLookup['client']> };
}

function text<K extends string>(name: K, value: unknown): { [P in K]?: string } {
  return (value == null ? {} : { [name]: String(value) }) as { [P in K]?: string };
}

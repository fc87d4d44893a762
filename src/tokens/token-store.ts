import type { ClientRecord } from './client-record.js';
import type { StoredToken } from './token-record.js';

/** A part of a list, in the order of creation. */
export interface StoredPage<T> {
  readonly items: readonly T[];
  /** Where the next part begins, a safe integer above 0; absent at the end. */
  readonly next?: number;
}

/** Which part of a list is wanted. */
export interface PageQuery {
  /** At least 1. */
  readonly limit: number;
  /** `next` of the part before; absent for the first. */
  readonly after?: number;
}

/** A token, and what its identity takes from its client. */
export interface TokenLookup {
  readonly token: StoredToken;
  /** Absent when the client was deleted. */
  readonly client?: Pick<ClientRecord, 'tenant' | 'plan'>;
}

/**
 * Where clients and tokens are kept. What must be atomic is one method; writers that meet are told apart by the version
 * that they read. Records are plain data: a store neither hands out what it holds nor keeps what it was handed.
 *
 * Prove an implementation with `tokenStoreContract` of `tollkeeper/testing`.
 */
export interface TokenStore {
  /** Adds a client. False when its tenant has a client of that name. */
  insertClient(client: ClientRecord): Promise<boolean>;
  /** Replaces the client whose version is `client.version`, and counts its version up. */
  updateClient(client: ClientRecord): Promise<'updated' | 'conflict' | 'name_taken'>;
  /**
   * Deletes a client and, in the same step, marks its tokens that are not revoked yet as revoked at `at` (their versions
   * count up). The tokens stay. False when there is no such client.
   */
  deleteClient(id: string, at: number): Promise<boolean>;
  getClient(id: string): Promise<ClientRecord | undefined>;
  listClients(query: PageQuery & { readonly tenant?: string }): Promise<StoredPage<ClientRecord>>;

  /**
   * Adds a token, if its client exists at that moment. With `replaced` that token is updated in the same step, like
   * `updateToken` does: both or neither.
   */
  insertToken(token: StoredToken, replaced?: StoredToken): Promise<'inserted' | 'no_client' | 'conflict'>;
  /** Replaces the token whose version is `token.version`, and counts its version up. `lastUsedAt` stays. False: no such version. */
  updateToken(token: StoredToken): Promise<boolean>;
  /** The tokens with these ids (up to 500, each once), in any order and in one query; what does not exist is left out. */
  getTokens(ids: readonly string[]): Promise<readonly TokenLookup[]>;
  listTokens(query: PageQuery & { readonly clientId?: string }): Promise<StoredPage<StoredToken>>;
  /** Sets `lastUsedAt`, which never goes back. Versions stay. */
  touchTokens(uses: readonly { readonly id: string; readonly lastUsedAt: number }[]): Promise<void>;

  /** How many tokens are neither revoked nor expired at `now`, by pepper. */
  countByPepper(now: number): Promise<ReadonlyMap<string, number>>;
  /** Marks every token of a pepper that is not revoked yet as revoked at `at`, counts their versions up, says how many. */
  revokeByPepper(pepperId: string, at: number): Promise<number>;

  /** Rejects when the store cannot be used, e.g. because `migrate()` was never called. */
  ready?(signal?: AbortSignal): Promise<void>;
}

import type { Resource, Subject } from '../identity/ambient.cjs';
import type { Revocations } from '../revocation/revocations.js';
import type { Lifecycle } from '../runtime/lifecycle.js';
import type { ClientRecord } from './client-record.js';
import type { TokenEnv, TokenKind } from './token-format.js';
import type { TokenRecord } from './token-record.js';
import type { TokenAnswer } from './token-resolver.js';

export interface ClientInput {
  /** 1 to 200 printable characters, unique within the tenant. */
  readonly name: string;
  /** The account or organization that the client belongs to. */
  readonly tenant?: string;
  /** The plan of whoever uses its tokens. */
  readonly plan?: string;
  /** At most 2,000 characters. */
  readonly description?: string;
  /** The app's own data: a JSON object of at most 16 KiB. */
  readonly metadata?: Readonly<Record<string, unknown>>;
}

/** What is absent stays; `null` clears. */
export interface ClientPatch {
  readonly name?: string;
  readonly tenant?: string | null;
  readonly plan?: string | null;
  readonly description?: string | null;
  readonly metadata?: Readonly<Record<string, unknown>> | null;
}

export interface TokenInput {
  readonly clientId: string;
  /** Without wildcards. Empty: the token says who is calling, and permits nothing that needs a scope. */
  readonly scopes: readonly string[];
  /** Ranked, each once: the first wins. Default: none. */
  readonly groups?: readonly string[];
  /** The only resources that the token may touch. Absent: no constraint is stated. Empty: nothing. */
  readonly resources?: readonly Resource[];
  /** Whom it speaks for. Default: the client, as a `service`. */
  readonly subject?: Subject;
  /** Epoch seconds, in the future. Default: never. */
  readonly expiresAt?: number;
  /** At most 2,000 characters. */
  readonly description?: string;
  /** Default `sk`. */
  readonly kind?: TokenKind;
  /** Default `live`. */
  readonly env?: TokenEnv;
}

/** A list that is given replaces the whole list, `[]` clears it, what is absent stays; `null` takes a field away. */
export interface TokenPatch {
  readonly scopes?: readonly string[];
  readonly groups?: readonly string[];
  /** `null`: no constraint is stated any more. */
  readonly resources?: readonly Resource[] | null;
  readonly expiresAt?: number | null;
  readonly description?: string | null;
}

export interface RotateOptions {
  /** Seconds for which the old token keeps working, at most a year. Default 0: it is revoked at once. */
  readonly overlapSeconds?: number;
  /** When the new token expires; `null`: never. Default: when the old one would have. */
  readonly expiresAt?: number | null;
}

/** The raw token, shown this once, and its record. */
export interface IssuedToken {
  readonly token: string;
  readonly record: TokenRecord;
}

export interface ListQuery {
  /** 1 to 1000. Default 100. */
  readonly limit?: number;
  /** `nextCursor` of the part before. */
  readonly cursor?: string;
}

/** A part of a list, in the order of creation. */
export interface Page<T> {
  readonly items: readonly T[];
  /** Absent at the end. */
  readonly nextCursor?: string;
}

/** How many tokens can still be used that are stored with a pepper. */
export interface PepperCount {
  readonly id: string;
  /** `missing`: it is not configured here (any more), so these tokens do not work. */
  readonly state: 'current' | 'previous' | 'missing';
  readonly tokens: number;
}

/**
 * API clients and their opaque tokens. Bad input is a `RegistryError` that names every problem: 400, 404 where something
 * does not exist, 409 where a name is taken, or a token was revoked, rotated or changed meanwhile.
 *
 * Whatever takes something away from a token holds on the next request of this process, for cached identities and
 * verifications in flight too, and in other processes as soon as their `revocations` hear of it. When the revocations
 * cannot be told, the call rejects although the store may have the change: repeat it.
 */
export interface TokenRegistry extends Lifecycle {
  /** How its raw tokens begin. */
  readonly prefix: string;
  /** What it tells about every change; `opaqueTokenVerifier` asks it about every identity. */
  readonly revocations: Revocations;

  createClient(input: ClientInput): Promise<ClientRecord>;
  getClient(id: string): Promise<ClientRecord | undefined>;
  listClients(query?: ListQuery & { readonly tenant?: string }): Promise<Page<ClientRecord>>;
  /** A change of plan or tenant holds for the tokens that were issued before, too. */
  updateClient(id: string, patch: ClientPatch): Promise<ClientRecord>;
  /** Revokes all its tokens, which stay on record. */
  deleteClient(id: string): Promise<void>;

  issueToken(input: TokenInput): Promise<IssuedToken>;
  getToken(id: string): Promise<TokenRecord | undefined>;
  listTokens(query?: ListQuery & { readonly clientId?: string }): Promise<Page<TokenRecord>>;
  updateToken(id: string, patch: TokenPatch): Promise<TokenRecord>;
  /** A new token in the place of an old one: with the same `authId`, rights and client. An old one is rotated once. */
  rotateToken(id: string, options?: RotateOptions): Promise<IssuedToken>;
  /** May be repeated. */
  revokeToken(id: string): Promise<TokenRecord>;

  /**
   * What a raw token is. At once for what has no valid checksum; otherwise after one lookup, shared with whatever else is
   * looked up at the time. Revocations are not asked: whoever calls does that, with the identity.
   */
  resolveToken(token: string): TokenAnswer | Promise<TokenAnswer>;

  /** Tokens that can still be used, by pepper: before a previous one goes, see who has not been here since. */
  pepperReport(): Promise<readonly PepperCount[]>;
  /**
   * For emergencies: everything that is stored with a pepper dies at once, here and in every process that shares the
   * store and the revocations, and stays dead. What had moved to another pepper by then lives on.
   */
  dropPepper(id: string): Promise<{ readonly revoked: number }>;
}

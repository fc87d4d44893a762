import { createIdentity, type IdentityInput } from '../identity/create-identity.js';
import type { Revocations } from '../revocation/revocations.js';
import type { Clock } from '../runtime/clock.js';
import type { LastUsed } from './last-used.js';
import type { PepperRing } from './pepper-ring.js';
import { parseToken, type TokenParts } from './token-format.js';
import { TokenReader } from './token-reader.js';
import { type StoredToken, statusOf } from './token-record.js';
import type { TokenLookup, TokenStore } from './token-store.js';

/** Seconds for which a token that is about to move to the current pepper may be cached under its old one. */
const MOVING_CACHE_SECONDS = 5;

/** What a raw token turned out to be. */
export type TokenAnswer =
  | {
      readonly active: true;
      /** Who it speaks for; the issuer is whoever presents it. */
      readonly identity: IdentityInput;
      /** Absent: as long as the cache likes. */
      readonly cacheSeconds?: number;
    }
  | {
      readonly active: false;
      /** For operators; it holds nothing out of the token. */
      readonly reason: string;
    };

const MALFORMED = inactive('the token is malformed, or its checksum is wrong');
const UNKNOWN = inactive('the token is unknown');

/** Finds out about raw tokens: at most one lookup and one HMAC each. */
export class TokenResolver {
  readonly #prefix: string;
  readonly #store: TokenStore;
  readonly #peppers: PepperRing;
  readonly #lastUsed: LastUsed;
  readonly #revocations: Revocations;
  readonly #clock: Clock;
  readonly #reader: TokenReader;
  /** Tokens that are being moved to the current pepper. */
  readonly #moving = new Set<string>();

  constructor(
    prefix: string,
    store: TokenStore,
    peppers: PepperRing,
    lastUsed: LastUsed,
    revocations: Revocations,
    clock: Clock,
  ) {
    this.#prefix = prefix;
    this.#store = store;
    this.#peppers = peppers;
    this.#lastUsed = lastUsed;
    this.#revocations = revocations;
    this.#clock = clock;
    this.#reader = new TokenReader(store);
  }

  /** Answers at once, without a lookup, what is no token of this registry at all. */
  resolve(token: string): TokenAnswer | Promise<TokenAnswer> {
    const parts = parseToken(this.#prefix, token);
    if (parts === undefined) return MALFORMED;
    return this.#reader.get(parts.id, (found) => this.#answer(parts, found));
  }

  #answer(parts: TokenParts, found: TokenLookup | undefined): TokenAnswer {
    // Before anything is said about the record: who does not hold the secret learns nothing of it.
    if (!this.#peppers.verifies(parts, found?.token) || found === undefined) return UNKNOWN;
    const { token, client } = found;
    const now = this.#clock.now() / 1_000;
    const status = statusOf(token, now);
    if (status !== 'active') return inactive(status === 'revoked' ? 'the token is revoked' : 'the token has expired');
    if (client === undefined) return inactive("the token's client was deleted");
    this.#lastUsed.note(token.id, token.lastUsedAt, Math.floor(now));
    const identity = identityOf(token, client);
    if (token.pepperId === this.#peppers.currentId) return { active: true, identity };
    // What is denied stays where it is: under another pepper it would outlive the denial of its own.
    if (this.#revocations.check(createIdentity(identity, 'opaque')) === 'live') void this.#move(parts, token);
    return { active: true, identity, cacheSeconds: MOVING_CACHE_SECONDS };
  }

  /**
   * Stores a token under the current pepper, off the request's path. Whoever changed the record meanwhile wins, above all
   * whoever revoked it; the next use tries again.
   */
  async #move(parts: TokenParts, token: StoredToken): Promise<void> {
    const mac = this.#peppers.mac(parts);
    if (mac === undefined || this.#moving.has(token.id)) return;
    this.#moving.add(token.id);
    try {
      await this.#store.updateToken({ ...token, mac, pepperId: this.#peppers.currentId });
    } catch {
      // The old pepper still verifies it.
    } finally {
      this.#moving.delete(token.id);
    }
  }
}

function identityOf(token: StoredToken, { tenant, plan }: NonNullable<TokenLookup['client']>): IdentityInput {
  return {
    subject: token.subject,
    authId: token.authId,
    clientId: token.clientId,
    tokenId: token.id,
    keyId: token.pepperId,
    scopes: token.scopes,
    groups: token.groups,
    issuedAt: token.createdAt,
    ...(tenant === undefined ? {} : { tenant }),
    ...(plan === undefined ? {} : { plan }),
    ...(token.resources === undefined ? {} : { resources: token.resources }),
    ...(token.expiresAt === undefined ? {} : { expiresAt: token.expiresAt }),
  };
}

function inactive(reason: string): TokenAnswer {
  return Object.freeze({ active: false, reason });
}

import type { Resource, Subject } from '../identity/ambient.cjs';
import { displayOf, type TokenEnv, type TokenKind } from './token-format.js';

/** A token as a store keeps it: plain data, without any secret. Instants are whole epoch seconds. */
export interface StoredToken {
  /** The public part of the token, 16 characters: what it is looked up by. */
  readonly id: string;
  /** Counted up with every change, from 1: whoever writes names the version that was read. */
  readonly version: number;
  readonly clientId: string;
  /** The key that usage is attributed to, kept through rotation. */
  readonly authId: string;
  readonly prefix: string;
  readonly kind: TokenKind;
  readonly env: TokenEnv;
  /** The pepper that `mac` was made with. */
  readonly pepperId: string;
  /** HMAC-SHA-256 of the token, base64url, 43 characters. */
  readonly mac: string;
  readonly subject: Subject;
  readonly scopes: readonly string[];
  /** Ranked: the first wins. */
  readonly groups: readonly string[];
  /** Absent: no constraint is stated. Empty: nothing. */
  readonly resources?: readonly Resource[];
  readonly description?: string;
  readonly createdAt: number;
  readonly updatedAt: number;
  readonly expiresAt?: number;
  readonly revokedAt?: number;
  readonly lastUsedAt?: number;
  /** The token that this one replaced. */
  readonly rotatedFrom?: string;
  /** The token that replaced this one. */
  readonly rotatedTo?: string;
}

/** A token as it may be shown: nothing in it helps to use or to forge one. */
export interface TokenRecord extends Omit<StoredToken, 'mac' | 'prefix'> {
  /** How the token begins, e.g. `acme_sk_live_4fKq0Z…`. */
  readonly display: string;
  readonly status: 'active' | 'expired' | 'revoked';
}

/** The part of a stored token that may be shown, at an instant in epoch seconds. */
export function tokenRecord({ mac: _, prefix, ...shown }: StoredToken, now: number): TokenRecord {
  const { kind, env, id } = shown;
  return Object.freeze({
    ...shown,
    display: displayOf({ prefix, kind, env, id }),
    status: statusOf(shown, now),
  });
}

/** Whether a token can be used, at an instant in epoch seconds. */
export function statusOf(
  { revokedAt, expiresAt }: Pick<StoredToken, 'revokedAt' | 'expiresAt'>,
  now: number,
): TokenRecord['status'] {
  if (revokedAt !== undefined) return 'revoked';
  return expiresAt !== undefined && expiresAt <= now ? 'expired' : 'active';
}

import type { Identity } from '../identity/ambient.cjs';
import type { Lifecycle } from '../runtime/lifecycle.js';

/** What is denied: one token, or everything issued before an instant to a client, tenant, subject, issuer, key, or all. */
export type RevocationTarget =
  | { readonly tokenId: string; readonly issuer?: string }
  | { readonly clientId: string; readonly issuer?: string }
  | { readonly tenant: string }
  | { readonly subject: string; readonly issuer: string }
  | { readonly issuer: string }
  | { readonly keyId: string }
  | { readonly all: true };

/** What changed without being denied: identities decided before are verified anew. */
export type ChangeTarget = { readonly tokenId: string } | { readonly clientId: string } | { readonly keyId: string };

export interface RevokeOptions {
  /** Epoch seconds: nothing issued up to then holds. Default: now. */
  readonly before?: number;
  /** Epoch seconds after which the entry may be forgotten, because whatever it denies has expired. */
  readonly expiresAt?: number;
  /** For the operators' own records. */
  readonly reason?: string;
}

/** `unknown`: the view is older than `maxStalenessSeconds`. */
export type RevocationAnswer = 'live' | 'revoked' | 'changed' | 'unknown';

/** What is denied at this moment, as this process knows it. */
export interface Revocations extends Lifecycle {
  /** Resolves when the store has it; it holds in this process at once. */
  revoke(target: RevocationTarget, options?: RevokeOptions): Promise<void>;
  /** Scopes, groups, plan… changed: identities decided before are verified anew. */
  changed(target: ChangeTarget): Promise<void>;
  /**
   * Synchronous, constant time.
   *
   * @param decidedAtVersion `version` when the decision about the identity began; without it nothing is `changed`.
   */
  check(identity: Identity, decidedAtVersion?: number): RevocationAnswer;
  /** Grows with everything that becomes known. */
  readonly version: number;
  /** The instant (`clock.monotonic()`, milliseconds) from which `check` answers `unknown`. */
  readonly staleAt: number;
}

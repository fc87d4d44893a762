import type { Identity } from '../identity/ambient.cjs';
import type { Lifecycle } from '../runtime/lifecycle.js';

/**
 * What is denied: one token, or whatever was issued up to an instant to a client, a tenant, a subject, by an issuer,
 * under a key, or at all. Token and client ids are unique per issuer: with `issuer` only that issuer's is meant, without
 * it everybody's of that id.
 */
export type RevocationTarget =
  | { readonly tokenId: string; readonly issuer?: string }
  | { readonly clientId: string; readonly issuer?: string }
  | { readonly tenant: string }
  | { readonly subject: string; readonly issuer: string }
  | { readonly issuer: string }
  | { readonly keyId: string }
  | { readonly all: true };

/** What changed without being denied: identities decided before are verified anew. */
export type ChangeTarget =
  | { readonly tokenId: string; readonly issuer?: string }
  | { readonly clientId: string; readonly issuer?: string }
  | { readonly keyId: string };

export interface RevokeOptions {
  /**
   * Epoch seconds: nothing issued up to and including that second holds, nor what does not say when it was issued.
   * `Infinity`: nothing at all. Default: now; for a key `Infinity`, since whoever holds a leaked one states any `iat`.
   * A token is denied as such, whatever stands here.
   */
  readonly before?: number;
  /**
   * Epoch seconds at which whatever it denies has expired. The entry is kept for 60 s more, because verifiers tolerate
   * clocks that differ, and may then be forgotten. Default: kept for ever.
   */
  readonly expiresAt?: number;
  /** For the operators' own records, at most 500 characters. */
  readonly reason?: string;
}

/** `unknown`: there is no view yet, or it is older than `maxStalenessSeconds`. */
export type RevocationAnswer = 'live' | 'revoked' | 'changed' | 'unknown';

/** What is denied at this moment, as this process knows it. */
export interface Revocations extends Lifecycle {
  /**
   * Denies the target. It holds in this process at once, even if the promise rejects because the store does not take it:
   * try again then. Resolves when the store has it.
   *
   * @throws TypeError (as a rejection) for a target or options that mean nothing.
   */
  revoke(target: RevocationTarget, options?: RevokeOptions): Promise<void>;
  /** Scopes, groups, plan… changed: identities decided before are verified anew. Resolves and rejects like `revoke`. */
  changed(target: ChangeTarget): Promise<void>;
  /**
   * Synchronous, constant time, nothing allocated.
   *
   * @param decidedAtVersion `version` when the decision about the identity began; without it nothing is `changed`.
   */
  check(identity: Identity, decidedAtVersion?: number): RevocationAnswer;
  /** Grows with everything that becomes known. */
  readonly version: number;
  /** The instant (`clock.monotonic()`, milliseconds) from which `check` answers `unknown`. */
  readonly staleAt: number;
}

import type { Lifecycle } from '../runtime/lifecycle.js';
import type { JwtAlgorithm } from './jwt-algorithm.js';
import type { VerificationKey } from './verification-key.js';

/** Where the keys of one issuer come from. */
export interface KeySource extends Lifecycle {
  /**
   * The key of an algorithm and a `kid`: at once where it is known.
   *
   * @returns undefined when the issuer has no such key.
   * @throws AccessError `verifier_unavailable` when that cannot be told at the moment.
   */
  find(
    algorithm: JwtAlgorithm,
    kid: string | undefined,
  ): VerificationKey | undefined | Promise<VerificationKey | undefined>;
  /** For how many seconds from now a decision by the present keys may be reused; undefined where withdrawals are pushed. */
  cacheSeconds(): number | undefined;
}

/** What a key source needs of whoever uses it. */
export interface KeySourceHooks {
  /** Keys that are no longer trusted: what was decided by them must be decided anew. */
  readonly onWithdrawn: (keyIds: readonly string[]) => void;
  /** The keys could not be had. `reason` holds no secret. */
  readonly onOutage: (reason: string) => void;
}

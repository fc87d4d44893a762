import type { IncomingMessage } from 'node:http';
import type { Identity } from '../identity/ambient.cjs';
import type { IdentityInput } from '../identity/create-identity.js';
import type { Attribution } from '../request/request-state.js';
import type { Revocations } from '../revocation/revocations.js';

/** The kinds of `Authorization` scheme that verifiers are asked about; `none` when no credential stands there. */
export type Scheme = 'bearer' | 'dpop' | 'custom' | 'none';

/** What a request shows. */
export interface Presented {
  readonly req: IncomingMessage;
  readonly scheme: Scheme;
  /** The credential, without its scheme. Absent with `none`. */
  readonly token?: string;
}

/** What a verifier made of a credential. An identity may be handed in as plain data: it is copied and completed. */
export type Verified = Identity | IdentityInput | VerifiedResult | IncompleteResult;

export interface VerifiedResult {
  readonly identity: Identity | IdentityInput;
  /** How long the decision may be cached, in seconds; 0 is never. Default: the cache's own life and `expiresAt`. */
  readonly cacheSeconds?: number;
  /** Seconds past `expiresAt` that the verifier tolerated. Default 5. */
  readonly clockToleranceSeconds?: number;
  /** Asked for every request, cache hits too: is this credential good for this very request (a proof of possession)? */
  readonly checkRequest?: (presented: Presented) => void | Promise<void>;
  /** What a trusted edge said beside the identity. */
  readonly attribution?: Attribution;
}

/** A trusted edge vouches for the request, but its headers name no caller: what can be attributed is stated. */
export interface IncompleteResult {
  readonly identity?: undefined;
  readonly attribution: Attribution;
}

/** Turns one kind of credential into an identity, or refuses it. */
export interface Verifier {
  readonly name: string;
  /** Is this credential mine? Synchronous, without I/O. */
  accepts(presented: Presented): boolean;
  /**
   * The identity behind a credential that it accepts.
   *
   * @throws AccessError when the credential is bad. Anything else that it throws is answered with 503.
   */
  verify(presented: Presented, signal: AbortSignal): Verified | Promise<Verified>;
  /**
   * `verify` has no use for the signal, and is given one that never aborts: making one costs more than many a verification.
   * It has the same time as any other.
   */
  readonly ignoresSignal?: true;
  /** Takes whatever nobody else does; it must be the last of the chain. */
  readonly catchAll?: true;
  /** `accepts` looks at more than the credential (the peer, other headers): it is asked even for known credentials. */
  readonly dependsOnRequest?: true;
  /** Asked beside `authenticate`'s own. */
  readonly revocations?: Revocations;
  /** The issuers whose JWTs it takes, so that two verifiers with one issuer are noticed at construction. */
  readonly issuers?: readonly string[];
  ready?(signal?: AbortSignal): Promise<void>;
  close?(signal?: AbortSignal): Promise<void>;
}

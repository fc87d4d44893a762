import { channel } from 'node:diagnostics_channel';
import { AccessError, isAccessError } from '../errors/access-error.js';
import type { Identity } from '../identity/ambient.cjs';
import { createIdentity, type IdentityInput } from '../identity/create-identity.js';
import type { Attribution } from '../request/request-state.js';
import type { Revocations } from '../revocation/revocations.js';
import type { Clock } from '../runtime/clock.js';
import { DeadlineError, settledWithin, withDeadline } from '../runtime/deadline.js';
import { isPromise } from '../runtime/is-promise.js';
import { READY_WAIT_MS } from '../runtime/lifecycle.js';
import type { Presented, Verified, VerifiedResult, Verifier } from './verifier.js';

/** Milliseconds that one verification may take, whatever its verifier waits for. */
export const VERIFY_TIMEOUT_MS = 15_000;
/** How often a credential is verified anew because something changed meanwhile, before it counts as an outage. */
const MAX_ATTEMPTS = 4;
/** Seconds past `expiresAt` that a verifier may tolerate unless it states its own tolerance. */
const DEFAULT_TOLERANCE_SECONDS = 5;

const outages = channel('tollkeeper:verifier');

/** What the chain decided about a credential. */
export interface Decision {
  /** Absent when a trusted edge named no caller. */
  readonly identity: Identity | undefined;
  readonly attribution: Attribution | undefined;
  readonly checkRequest: ((presented: Presented) => void | Promise<void>) | undefined;
  readonly verifier: Verifier;
  /** The verifiers before the one that decided whose acceptance depends on the request. */
  readonly precedents: readonly Verifier[];
  readonly sources: readonly Revocations[];
  /** The version of each source that the decision is known to hold at. Moved on whenever a check says `live`. */
  readonly versions: number[];
  /** Milliseconds that the verifier lets it be cached: 0 is never, and then it is not shared between requests either. */
  readonly cacheMs: number;
  /** Milliseconds since the epoch. */
  readonly expiresAtMs: number;
}

/** Picks the verifier of a credential and asks it; asks the revocations before the answer counts. */
export class VerifierChain {
  readonly #verifiers: readonly Verifier[];
  readonly #sources: ReadonlyMap<Verifier, readonly Revocations[]>;
  readonly #precedents: ReadonlyMap<Verifier, readonly Verifier[]>;
  readonly #clock: Clock;
  readonly #neverAborts = new AbortController().signal;

  constructor(verifiers: readonly Verifier[], revocations: Revocations | undefined, clock: Clock) {
    this.#verifiers = verifiers;
    this.#clock = clock;
    this.#precedents = new Map(
      verifiers.map((verifier, index) => [
        verifier,
        verifiers.slice(0, index).filter((earlier) => earlier.dependsOnRequest === true),
      ]),
    );
    this.#sources = new Map(
      verifiers.map((verifier) => {
        const sources = [revocations, verifier.revocations].filter((source) => source !== undefined);
        return [verifier, [...new Set(sources)]];
      }),
    );
  }

  /** Whether the verifier that decided is still the one that is asked about this request. */
  isStillAsked({ verifier, precedents }: Decision, presented: Presented): boolean {
    if (precedents.some((earlier) => this.#accepts(earlier, presented))) return false;
    return verifier.dependsOnRequest !== true || this.#accepts(verifier, presented);
  }

  /** The first verifier that takes the credential. Asks no further. */
  verifierOf(presented: Presented): Verifier | undefined {
    return this.#verifiers.find((verifier) => this.#accepts(verifier, presented));
  }

  #accepts(verifier: Verifier, presented: Presented): boolean {
    try {
      return verifier.accepts(presented) === true;
    } catch (cause) {
      throw this.#outage(verifier, cause);
    }
  }

  /**
   * The decision about a credential: at once where the verifier answers at once.
   *
   * @throws AccessError when the credential is refused, revoked or cannot be decided; a promise rejects with the same.
   */
  decide(verifier: Verifier, presented: Presented): Decision | Promise<Decision> {
    return this.#attempt(verifier, presented, 1);
  }

  #attempt(verifier: Verifier, presented: Presented, attempt: number): Decision | Promise<Decision> {
    const sources = this.#sources.get(verifier) as readonly Revocations[];
    // Read before the verifier begins: what is revoked while it works is then seen as newer than the decision.
    const versions = sources.map((source) => source.version);
    const controller = verifier.ignoresSignal === true ? undefined : new AbortController();
    let verified: Verified | Promise<Verified>;
    try {
      verified = verifier.verify(presented, controller?.signal ?? this.#neverAborts);
    } catch (cause) {
      throw this.#refusal(verifier, cause);
    }
    if (!isPromise(verified)) return this.#settle(verifier, presented, verified, sources, versions, attempt);
    return settledWithin(
      VERIFY_TIMEOUT_MS,
      verified,
      (value) => this.#settle(verifier, presented, value, sources, versions, attempt),
      (cause) => {
        if (cause instanceof DeadlineError) controller?.abort(cause);
        return this.#refusal(verifier, cause);
      },
    );
  }

  #settle(
    verifier: Verifier,
    presented: Presented,
    verified: Verified,
    sources: readonly Revocations[],
    versions: number[],
    attempt: number,
  ): Decision | Promise<Decision> {
    const decision = this.#decision(verifier, verified, sources, versions);
    if (decision.identity === undefined) return decision;
    const rule = (unknown: () => Decision | Promise<Decision>): Decision | Promise<Decision> => {
      const answer = checkRevocations(decision);
      if (answer === 'live') return decision;
      if (answer === 'revoked') throw revoked();
      return answer === 'changed' ? this.#again(verifier, presented, attempt) : unknown();
    };
    return rule(() =>
      this.#whenReady(sources).then(() =>
        rule(() => {
          throw stale();
        }),
      ),
    );
  }

  #again(verifier: Verifier, presented: Presented, attempt: number): Decision | Promise<Decision> {
    if (attempt < MAX_ATTEMPTS) return this.#attempt(verifier, presented, attempt + 1);
    throw new AccessError('verifier_unavailable', {
      reason: `what the verifier "${verifier.name}" decides from keeps changing`,
      retryAfterSeconds: 1,
    });
  }

  /** Waits until the sources have their first view, as long as a request may wait. */
  async #whenReady(sources: readonly Revocations[]): Promise<void> {
    try {
      await withDeadline(READY_WAIT_MS, (signal) => Promise.all(sources.map((source) => source.ready(signal))));
    } catch {
      // The check that follows answers `unknown`, and so 503.
    }
  }

  #decision(verifier: Verifier, verified: Verified, sources: readonly Revocations[], versions: number[]): Decision {
    const result: Partial<VerifiedResult> =
      verified !== null && typeof verified === 'object' && ('identity' in verified || 'attribution' in verified)
        ? (verified as Partial<VerifiedResult>)
        : { identity: verified as Identity | IdentityInput };
    let identity: Identity | undefined;
    if (result.identity !== undefined || result.attribution === undefined) {
      try {
        identity = createIdentity(result.identity as IdentityInput, verifier.name);
      } catch (cause) {
        // The message names fields, never values.
        throw this.#outage(verifier, cause, (cause as Error).message);
      }
    }
    const expiresAt = identity?.expiresAt;
    const tolerance = result.clockToleranceSeconds ?? DEFAULT_TOLERANCE_SECONDS;
    if (expiresAt !== undefined && !(this.#clock.now() < (expiresAt + tolerance) * 1_000)) {
      throw new AccessError('invalid_token', { reason: 'the credential has expired' });
    }
    const { cacheSeconds } = result;
    return {
      identity,
      attribution: result.attribution,
      checkRequest: result.checkRequest,
      verifier,
      precedents: this.#precedents.get(verifier) as readonly Verifier[],
      sources,
      versions,
      cacheMs: identity === undefined ? 0 : cacheMsOf(cacheSeconds),
      expiresAtMs: expiresAt === undefined ? Number.POSITIVE_INFINITY : expiresAt * 1_000,
    };
  }

  #refusal(verifier: Verifier, cause: unknown): AccessError {
    return isAccessError(cause) ? cause : this.#outage(verifier, cause);
  }

  #outage(verifier: Verifier, cause: unknown, detail = describe(cause)): AccessError {
    if (outages.hasSubscribers) outages.publish({ type: 'outage', verifier: verifier.name, detail });
    return new AccessError('verifier_unavailable', { reason: `the verifier "${verifier.name}" failed: ${detail}` });
  }
}

/** What the sources say about a decision now. Nothing is asked of a source that is fresh and has nothing new. */
export function checkRevocations(decision: Decision, monotonicMs?: number): 'live' | 'revoked' | 'changed' | 'unknown' {
  const { sources, versions } = decision;
  for (let index = 0; index < sources.length; index++) {
    const source = sources[index] as Revocations;
    const { version } = source;
    if (monotonicMs !== undefined && version === versions[index] && monotonicMs < source.staleAt) continue;
    const answer = source.check(decision.identity as Identity, versions[index]);
    if (answer !== 'live') return answer;
    versions[index] = version;
  }
  return 'live';
}

/** What is no number is no permission to cache. */
function cacheMsOf(cacheSeconds: number | undefined): number {
  if (cacheSeconds === undefined) return Number.POSITIVE_INFINITY;
  return cacheSeconds > 0 ? cacheSeconds * 1_000 : 0;
}

export function revoked(): AccessError {
  return new AccessError('invalid_token', { reason: 'the credential is revoked' });
}

export function stale(): AccessError {
  return new AccessError('revocation_stale', { reason: 'the view of what is revoked is too old' });
}

/** What may be told about an error of somebody else's: its kind. Its message may quote the credential. */
function describe(cause: unknown): string {
  if (cause instanceof DeadlineError) return `no answer within ${VERIFY_TIMEOUT_MS / 1_000} s`;
  if (!(cause instanceof Error)) return 'it threw something that is no error';
  const { code } = cause as { code?: unknown };
  const kind = /^[A-Za-z]{1,40}$/.test(cause.name) ? cause.name : 'Error';
  return typeof code === 'string' && /^[A-Z][A-Z0-9_]{1,39}$/.test(code) ? `${kind} ${code}` : kind;
}

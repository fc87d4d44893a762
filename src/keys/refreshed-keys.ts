import { AccessError } from '../errors/access-error.js';
import type { Clock } from '../runtime/clock.js';
import { withDeadline } from '../runtime/deadline.js';
import { describeFailure, FetchError } from './fetch-json.js';
import type { JwtAlgorithm } from './jwt-algorithm.js';
import { type KeySet, readKeySet } from './key-set.js';
import type { KeySource, KeySourceHooks } from './key-source.js';
import type { VerificationKey } from './verification-key.js';

/** How keys that live elsewhere are fetched and how long they are trusted. */
export interface RefreshSettings {
  /**
   * Seconds between two fetches at least, whether the first succeeded or failed, and whatever is asked for. Default 30. Only
   * the end of `maxAgeSeconds` comes sooner, where that is shorter and the last fetch succeeded.
   */
  readonly cooldownSeconds: number;
  /** Seconds that one refresh may take, discovery included. Default 5. */
  readonly timeoutSeconds: number;
  /** Seconds after which the keys are fetched anew; a withdrawn key works no longer than this. Default 600. */
  readonly maxAgeSeconds: number;
  /** Seconds after which keys that could not be fetched anew are not trusted any more. Default 86400. */
  readonly maxStaleSeconds: number;
}

/** Fetches a JWK set. */
export type LoadKeys = (signal: AbortSignal) => Promise<unknown>;

/**
 * Keys that are fetched and kept: a JWKS endpoint, discovery, a file.
 *
 * - One fetch at a time, whoever waits for it, and one per cooldown: that bound is also what a `kid` that nobody has costs.
 * - A fetched set replaces the former one: a key that is missing from it, or has other key material, is withdrawn.
 * - While fetches fail the former set stays in use up to its maximum age. What it does not answer is an outage, no refusal.
 */
export class RefreshedKeys implements KeySource {
  readonly #load: LoadKeys;
  readonly #algorithms: readonly JwtAlgorithm[];
  readonly #settings: RefreshSettings;
  readonly #hooks: KeySourceHooks;
  readonly #clock: Clock;
  readonly #closing = new AbortController();
  #set: KeySet | undefined;
  /** When the held set was asked for, on the monotonic clock: its age counts from there. */
  #fetchedMs = Number.NEGATIVE_INFINITY;
  #attemptedMs = Number.NEGATIVE_INFINITY;
  /** Why the last attempt failed. */
  #failure: string | undefined;
  #flight: Promise<void> | undefined;

  constructor(
    load: LoadKeys,
    algorithms: readonly JwtAlgorithm[],
    settings: RefreshSettings,
    hooks: KeySourceHooks,
    clock: Clock,
  ) {
    this.#load = load;
    this.#algorithms = algorithms;
    this.#settings = settings;
    this.#hooks = hooks;
    this.#clock = clock;
  }

  find(
    algorithm: JwtAlgorithm,
    kid: string | undefined,
  ): VerificationKey | undefined | Promise<VerificationKey | undefined> {
    const now = this.#clock.monotonic();
    const key = this.#held(now)?.find(algorithm, kid);
    if (key !== undefined && this.#isFresh(now)) return key;
    if (this.#mayAttempt(now)) {
      const refreshed = this.#refresh();
      // In an outage nobody waits for the next attempt as long as there is a key.
      if (key !== undefined && this.#failure !== undefined) return key;
      return refreshed.then(() => this.#answer(algorithm, kid));
    }
    return this.#answer(algorithm, kid);
  }

  cacheSeconds(): number {
    const now = this.#clock.monotonic();
    const { maxAgeSeconds, maxStaleSeconds, cooldownSeconds } = this.#settings;
    const untilMs = this.#isFresh(now)
      ? this.#fetchedMs + maxAgeSeconds * 1_000
      : Math.min(this.#attemptedMs + cooldownSeconds * 1_000, this.#fetchedMs + maxStaleSeconds * 1_000);
    return Math.max(0, untilMs - now) / 1_000;
  }

  async ready(signal?: AbortSignal): Promise<void> {
    if (this.#held(this.#clock.monotonic()) !== undefined) return;
    if (this.#mayAttempt(this.#clock.monotonic())) {
      await withDeadline(this.#settings.timeoutSeconds * 1_000 + 1_000, () => this.#refresh(), signal);
    }
    if (this.#held(this.#clock.monotonic()) === undefined) throw this.#outage();
  }

  async close(): Promise<void> {
    this.#closing.abort();
  }

  /** The answer that the held set gives, now that no fetch is possible. */
  #answer(algorithm: JwtAlgorithm, kid: string | undefined): VerificationKey | undefined {
    const held = this.#held(this.#clock.monotonic());
    const key = held?.find(algorithm, kid);
    if (key === undefined && (held === undefined || this.#failure !== undefined)) throw this.#outage();
    return key;
  }

  #held(now: number): KeySet | undefined {
    if (now < this.#fetchedMs + this.#settings.maxStaleSeconds * 1_000) return this.#set;
    return undefined;
  }

  #isFresh(now: number): boolean {
    return now < this.#fetchedMs + this.#settings.maxAgeSeconds * 1_000;
  }

  #mayAttempt(now: number): boolean {
    if (this.#flight !== undefined || now >= this.#attemptedMs + this.#settings.cooldownSeconds * 1_000) return true;
    // A lifetime that is shorter than the cooldown is kept all the same, as long as fetches succeed.
    return this.#failure === undefined && this.#set !== undefined && !this.#isFresh(now);
  }

  /** Fetches the keys, or joins whoever does. Never rejects. */
  #refresh(): Promise<void> {
    this.#flight ??= this.#attempt().finally(() => {
      this.#flight = undefined;
    });
    return this.#flight;
  }

  async #attempt(): Promise<void> {
    const startedMs = this.#clock.monotonic();
    try {
      const jwks = await withDeadline(this.#settings.timeoutSeconds * 1_000, this.#load, this.#closing.signal);
      const read = readKeySet(jwks, this.#algorithms);
      if (read === undefined) throw new FetchError('its answer is no JWK set');
      // An issuer without keys verifies nothing: that is a fault of the source, no withdrawal of everything.
      if (read.set.keys.length === 0) throw new FetchError('its JWK set has no key that can be used');
      const former = this.#set;
      this.#set = read.set;
      this.#fetchedMs = startedMs;
      this.#failure = undefined;
      const withdrawn = former?.withdrawnIn(read.set) ?? [];
      if (withdrawn.length > 0) this.#hooks.onWithdrawn(withdrawn);
    } catch (error) {
      this.#failure = describeFailure(error);
      this.#hooks.onOutage(this.#failure);
    } finally {
      this.#attemptedMs = this.#clock.monotonic();
    }
  }

  #outage(): AccessError {
    const waitMs = this.#attemptedMs + this.#settings.cooldownSeconds * 1_000 - this.#clock.monotonic();
    return new AccessError('verifier_unavailable', {
      reason: `the keys cannot be fetched: ${this.#failure ?? 'they are too old'}`,
      retryAfterSeconds: Math.max(1, waitMs / 1_000),
    });
  }
}

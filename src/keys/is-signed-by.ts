import type { VerificationKey } from './verification-key.js';

/** Milliseconds of one turn of the event loop in which signatures are verified in place. One more may begin in the last. */
const IN_PLACE_MS = 1;
/** Verifications that are handed over at once, many times what the thread pool works on: handing one over takes time, too. */
const MAX_AT_ONCE = 32;

/** Lets so many in at the same time; the others wait, first come first served. */
class Turns {
  #taken = 0;
  readonly #waiting: (() => void)[] = [];

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#taken < MAX_AT_ONCE) this.#taken += 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#taken -= 1;
      else next();
    }
  }
}

/** What was spent in place in this turn of the event loop. */
class InPlace {
  #spentMs = 0;
  readonly #begin = (): void => {
    this.#spentMs = 0;
  };

  get isUsedUp(): boolean {
    return this.#spentMs >= IN_PLACE_MS;
  }

  run(work: () => boolean): boolean {
    if (this.#spentMs === 0) setImmediate(this.#begin);
    const startedMs = performance.now();
    const answer = work();
    this.#spentMs += performance.now() - startedMs;
    return answer;
  }
}

/** Of the whole process, as the thread pool and the event loop are. */
const turns = new Turns();
const inPlace = new InPlace();

/**
 * Whether a JWS signature is by this key (RFC 7515 §5.2). To hand one over to the thread pool takes as long as to verify it, so
 * the few of an ordinary turn are verified in place. The others of a burst go to the pool, and wait for their turn, so that
 * many at once do not hold up the event loop.
 */
export function isSignedBy(key: VerificationKey, input: string, signature: string): boolean | Promise<boolean> {
  const signed = Buffer.from(input, 'latin1');
  const bytes = Buffer.from(signature, 'base64url');
  if (key.signatureBytes && bytes.length !== key.signatureBytes) return false;
  const { verifyInPool } = key;
  if (verifyInPool !== undefined && inPlace.isUsedUp) return turns.run(() => verifyInPool(signed, bytes));
  return inPlace.run(() => key.verify(signed, bytes));
}

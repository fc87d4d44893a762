import { AccessError } from '../errors/access-error.js';
import type { JWK } from './jwk.js';
import type { JwtAlgorithm } from './jwt-algorithm.js';
import { type KeySet, readKeySet } from './key-set.js';
import type { KeySource, KeySourceHooks } from './key-source.js';

/** What a verifier needs of a key ring in the same process. */
export interface PublishedKeys {
  /** The public keys that verify at this moment. */
  jwks(): { readonly keys: readonly JWK[] };
  /** Grows with every change. */
  readonly version: number;
  /** Calls back after every change, with the ids of keys that are not trusted any more. Returns how to stop it. */
  onChange(listener: (withdrawnKids: readonly string[]) => void): () => void;
}

/** The keys of a ring in the same process: every change holds at once, and withdrawals are pushed. */
export function keyRingKeys(
  ring: PublishedKeys,
  algorithms: readonly JwtAlgorithm[],
  hooks: KeySourceHooks,
): KeySource {
  let held: { readonly version: number; readonly set: KeySet } | undefined;
  const stop = ring.onChange((withdrawn) => {
    if (withdrawn.length > 0) hooks.onWithdrawn(withdrawn);
  });

  function current(): KeySet {
    const { version } = ring;
    if (held?.version !== version) {
      const read = readKeySet(ring.jwks(), algorithms);
      if (read === undefined || read.set.keys.length === 0) {
        throw new AccessError('verifier_unavailable', { reason: 'the key ring has no key that the verifier may use' });
      }
      held = { version, set: read.set };
    }
    return held.set;
  }

  return {
    find: (algorithm, kid) => current().find(algorithm, kid),
    cacheSeconds: () => undefined,
    async ready() {
      current();
    },
    async close() {
      stop();
    },
  };
}

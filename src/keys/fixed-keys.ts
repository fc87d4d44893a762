import { AccessError } from '../errors/access-error.js';
import type { KeySet } from './key-set.js';
import type { KeySource } from './key-source.js';

/** Keys that were given once and for all: an inline JWK set, a shared secret. */
export function fixedKeys(set: KeySet): KeySource {
  return {
    find(algorithm, kid) {
      if (set.keys.length === 0) throw new AccessError('verifier_unavailable', { reason: 'the key set is empty' });
      return set.find(algorithm, kid);
    },
    cacheSeconds: () => undefined,
    async ready() {
      if (set.keys.length === 0) throw new AccessError('verifier_unavailable', { reason: 'the key set is empty' });
    },
    async close() {},
  };
}

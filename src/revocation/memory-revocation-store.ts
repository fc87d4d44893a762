import { systemRandom } from '../runtime/random.js';
import { RevocationView } from './revocation-view.js';

/** A store within one process: there is no source beside the view itself, so it is never stale. */
export interface LocalRevocationStore {
  readonly view: RevocationView;
}

/**
 * Keeps what is denied in this process alone: ready at once, never stale, gone with the process. For one replica whose
 * credentials are short-lived, and for tests. Whatever is created on the same store shares it.
 */
export function memoryRevocationStore(): LocalRevocationStore {
  return { view: new RevocationView(systemRandom) };
}

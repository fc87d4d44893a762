import { channel } from 'node:diagnostics_channel';
import type { Fetch } from '../keys/fetch-json.js';
import { createRevocations } from '../revocation/create-revocations.js';
import { memoryRevocationStore } from '../revocation/memory-revocation-store.js';
import type { Revocations } from '../revocation/revocations.js';
import type { Clock } from '../runtime/clock.js';

/** What the key sources of a directory are made with. */
export interface DirectoryContext {
  readonly clock: Clock;
  readonly fetch: Fetch;
  readonly onWithdrawn: (keyIds: readonly string[]) => void;
  readonly onOutage: (issuer: string, reason: string) => void;
}

const diagnostics = channel('tollkeeper:verifier');

/**
 * The context of a verifier's keys, and revocations through which a withdrawn key makes identities stale.
 *
 * @param verifier its name, for the diagnostics channel.
 */
export function createDirectoryContext(
  verifier: string,
  clock: Clock,
  fetch: Fetch,
): DirectoryContext & { readonly revocations: Revocations } {
  const revocations = createRevocations({ store: memoryRevocationStore(), clock });
  return {
    clock,
    fetch,
    revocations,
    onWithdrawn(keyIds) {
      // In memory: it holds before the call returns.
      for (const keyId of keyIds) void revocations.changed({ keyId });
      if (diagnostics.hasSubscribers) diagnostics.publish({ type: 'keys_withdrawn', verifier, keyIds });
    },
    onOutage(issuer, reason) {
      if (diagnostics.hasSubscribers) diagnostics.publish({ type: 'keys_unavailable', verifier, issuer, reason });
    },
  };
}

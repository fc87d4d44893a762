import { RegistryError } from '../errors/registry-error.js';
import { createIdentity, type IdentityInput } from '../identity/create-identity.js';
import type { Revocations } from '../revocation/revocations.js';
import type { Clock } from '../runtime/clock.js';

/** Milliseconds between two looks at the clock. */
const LOOK_MS = 50;
/** Looks until it is clear that time does not help: somewhat more than a second. */
const MAX_LOOKS = 30;

/**
 * "Nothing issued up to T holds" refuses what is issued in the second of T, too: whoever revokes a tenant and issues a new
 * token at once would hold a dead one. So this waits until the clock is past T. A later instant is not stamped on the
 * token instead: it would survive a second revocation in the same second.
 *
 * @returns the second in which the token may be issued.
 * @throws RegistryError `conflict` when what it is issued to is revoked for longer than that.
 */
export async function pastWatermarks(revocations: Revocations, clock: Clock, holder: IdentityInput): Promise<number> {
  for (let look = 0; look < MAX_LOOKS; look++) {
    const issuedAt = Math.floor(clock.now() / 1_000);
    if (revocations.check(createIdentity({ ...holder, issuedAt }, 'opaque')) !== 'revoked') return issuedAt;
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
  throw new RegistryError('conflict', ['the client, its tenant, its subject or the current pepper is revoked']);
}

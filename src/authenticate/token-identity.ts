import { AccessError, isAccessError } from '../errors/access-error.js';
import type { Identity } from '../identity/ambient.cjs';
import { createIdentity, type IdentityInput } from '../identity/create-identity.js';
import { invalidToken } from './compact-jwt.js';

/**
 * The last word about an identity: what it returns replaces fields. Synchronous. It cannot prolong the token. What it throws
 * refuses the token if it is an AccessError, and is an outage otherwise.
 */
export type Identify = (
  claims: Readonly<Record<string, unknown>>,
  identity: Identity,
  // biome-ignore lint/suspicious/noConfusingVoidType: a function that returns nothing is meant.
) => Partial<IdentityInput> | undefined | void;

/**
 * The identity that a token's claims make.
 *
 * @throws AccessError `invalid_token` when they make none: what a token says is the caller's fault, never an outage.
 */
export function tokenIdentity(input: IdentityInput, verifier: string): Identity {
  try {
    return createIdentity(input, verifier);
  } catch (error) {
    // Its message names fields, never values.
    throw invalidToken((error as Error).message);
  }
}

/** The identity after `identify`. @throws AccessError what `identify` throws, or `verifier_unavailable` when it is at fault. */
export function identified(
  identity: Identity,
  claims: Readonly<Record<string, unknown>>,
  identify: Identify | undefined,
  verifier: string,
): Identity {
  if (identify === undefined) return identity;
  let changes: unknown;
  try {
    changes = identify(claims, identity);
  } catch (error) {
    throw isAccessError(error) ? error : unavailable('identify threw');
  }
  if (changes === undefined || changes === null) return identity;
  if (typeof changes !== 'object' || typeof (changes as { then?: unknown }).then === 'function') {
    throw unavailable('identify must return an object, synchronously');
  }
  try {
    const changed = createIdentity({ ...identity, ...changes, verifier }, verifier);
    const end = identity.expiresAt;
    if (end === undefined || (changed.expiresAt !== undefined && changed.expiresAt <= end)) return changed;
    return createIdentity({ ...changed, expiresAt: end }, verifier);
  } catch (error) {
    throw unavailable(`identify: ${(error as Error).message}`);
  }
}

function unavailable(reason: string): AccessError {
  return new AccessError('verifier_unavailable', { reason });
}

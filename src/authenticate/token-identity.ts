import type { Identity } from '../identity/ambient.cjs';
import { createIdentity, type IdentityInput } from '../identity/create-identity.js';
import { invalidToken } from './compact-jwt.js';

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

import type { IncomingMessage } from 'node:http';
import { AccessError } from '../errors/access-error.js';
import type { Identity } from '../identity/ambient.cjs';
import { knownRequestState, requestState } from './request-state.js';

/**
 * Who is calling.
 *
 * @throws AccessError `missing_credentials` when there is no identity: `authenticate()` did not run, or the caller is
 *   anonymous under `optional: true`.
 */
export function identityOf(req: IncomingMessage): Identity {
  const identity = knownRequestState(req)?.identity;
  if (identity === undefined) throw new AccessError('missing_credentials', { reason: 'the request has no identity' });
  return identity;
}

/** A second credential's identity, attached by `authenticate({ as })`; undefined when none was shown. */
export function identitiesOf(req: IncomingMessage, as: string): Identity | undefined {
  return knownRequestState(req)?.others?.get(as);
}

/** Attaches the identity to the request: `req.identity`, and the state that the middlewares read. */
export function attachIdentity(req: IncomingMessage, identity: Identity): void {
  requestState(req).identity = identity;
  req.identity = identity;
}

import { channel } from 'node:diagnostics_channel';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { AccessError, type AccessErrorCode, isAccessError } from '../errors/access-error.js';
import { challengeFor } from '../http/challenge.js';
import type { Next } from '../http/middleware.js';
import { answerJson, problemDetails } from '../http/problem.js';
import { type AnswerSettings, knownRequestState } from './request-state.js';

const refused = channel('tollkeeper:refused');

/** How many times an `onReject` threw, in this copy of the package; on the channel as `onRejectFailures`. */
const failures = { onReject: 0 };

function countOnReject(): void {
  failures.onReject += 1;
}

/**
 * Refuses a request: settles what is held for it, tells `onReject` and the diagnostics channel, then answers or hands
 * the error to the app. Never `next()` without an error.
 *
 * @param cause what was thrown. Anything but an `AccessError` becomes `fallback`.
 */
export function refuse(
  req: IncomingMessage,
  res: ServerResponse,
  next: Next,
  cause: unknown,
  fallback: AccessErrorCode,
  settings?: AnswerSettings,
): void {
  const state = knownRequestState(req);
  const { errors, onReject, realm, resourceMetadata } = settings ?? state?.settings ?? { errors: 'respond' };
  const error = dress(cause, fallback, { realm, resourceMetadata });
  if (state !== undefined && !state.admitted) {
    const observers = state.observers;
    state.observers = undefined;
    if (observers !== undefined) for (const observer of observers) observer.refused?.(state, error);
  }
  if (onReject !== undefined) {
    try {
      // An async function fits the type: what it rejects with must not end the process.
      const told: unknown = onReject(error, req);
      if (typeof (told as PromiseLike<unknown> | undefined)?.then === 'function') {
        (told as PromiseLike<unknown>).then(undefined, countOnReject);
      }
    } catch {
      countOnReject();
    }
  }
  if (refused.hasSubscribers) refused.publish({ error, req, onRejectFailures: failures.onReject });
  if (res.writableEnded || res.destroyed) return;
  if (errors === 'next') {
    next(error);
    return;
  }
  answerJson(res, error.status, error.headers, problemDetails(error), 'application/problem+json');
}

/** The refusal as it is answered: a new error, since a verifier may throw one and the same object for ever. */
function dress(
  cause: unknown,
  fallback: AccessErrorCode,
  challenge: Pick<AnswerSettings, 'realm' | 'resourceMetadata'>,
) {
  const known = isAccessError(cause) ? cause : undefined;
  const retryAfter = Number(known?.headers?.['retry-after'] ?? Number.NaN);
  const error = new AccessError(known?.code ?? fallback, {
    reason: known === undefined ? 'something threw that is no AccessError' : known.reason,
    // Somebody else's error may quote the credential: only an AccessError's own cause is kept.
    cause: known?.cause,
    retryAfterSeconds: Number.isFinite(retryAfter) ? retryAfter : undefined,
    missing: known?.missing,
    scopes: known?.scopes,
    violatedPolicies: known?.violatedPolicies,
  });
  const header = challengeFor(error, challenge);
  if (header !== undefined) (error.headers as Record<string, string>)['www-authenticate'] = header;
  return error;
}

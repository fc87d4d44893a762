import type { IncomingMessage, ServerResponse } from 'node:http';
import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import { isRepeated, parseAuthorization, repeatsAuthorization } from '../http/authorization.js';
import { isChallengeText } from '../http/challenge.js';
import type { Middleware, Next } from '../http/middleware.js';
import { orderError } from '../request/gate.js';
import { attachIdentity } from '../request/identity-of.js';
import { refuse } from '../request/refuse.js';
import { type AnswerSettings, requestState, tellAuthenticated } from '../request/request-state.js';
import type { Revocations } from '../revocation/revocations.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { withDeadline } from '../runtime/deadline.js';
import { isPromise } from '../runtime/is-promise.js';
import { type CacheOptions, CredentialCache } from './credential-cache.js';
import type { Presented, Verifier } from './verifier.js';
import { checkRevocations, type Decision, revoked, stale, VERIFY_TIMEOUT_MS, VerifierChain } from './verifier-chain.js';

export interface AuthenticateOptions {
  /** Asked in order: the first that accepts a credential decides about it. At least one. */
  readonly verifiers: readonly Verifier[];
  /** Asked about every identity, on cache hits too. */
  readonly revocations?: Revocations;
  /** Lets a request without any credential through, without an identity. A bad credential is refused all the same. Default false. */
  readonly optional?: boolean;
  /** Attaches a second credential beside the caller's, for `identitiesOf(req, as)`. `req.identity` is left alone. */
  readonly as?: string;
  /** Bounds of the cache of decisions; `false` verifies every request anew. */
  readonly cache?: CacheOptions | false;
  /**
   * Where the credential stands, if not in `Authorization`: `(req) => req.headers['x-api-key']`. Synchronous; undefined
   * when none was shown. Another kind of value is answered with 400, and so is a header that is there twice; a throw with 503.
   */
  readonly extractToken?: (req: IncomingMessage) => string | undefined;
  /** Longest credential that is looked at, in bytes. Default 16384. Node itself answers 431 unless `maxHeaderSize` is raised. */
  readonly maxTokenBytes?: number;
  /** `realm` of the challenges: printable ASCII without `"` and `\`. */
  readonly realm?: string;
  /** URL of the protected-resource metadata (RFC 9728 §5.1), named in the challenges. */
  readonly resourceMetadata?: string;
  /** `respond` (default): answers itself with problem details. `next`: hands the error to the app's error handler. */
  readonly errors?: 'respond' | 'next';
  /** Told of every refusal of this request, by this and the later middlewares, with the precise `error.reason`. */
  readonly onReject?: (error: AccessError, req: IncomingMessage) => void;
  readonly clock?: Clock;
}

const OPTIONS: readonly (keyof AuthenticateOptions)[] = [
  'verifiers',
  'revocations',
  'optional',
  'as',
  'cache',
  'extractToken',
  'maxTokenBytes',
  'realm',
  'resourceMetadata',
  'errors',
  'onReject',
  'clock',
];

/**
 * Middleware that attaches one identity to `req.identity`, whatever the credential was, or refuses the request.
 *
 * A known credential costs one map lookup and the expiry and revocation checks; `next()` is called in the same tick.
 * Unknown ones are verified once however many requests show them at the same time.
 *
 * Answers: 401 `missing_credentials`, 401 `invalid_token`, 400 `invalid_request`, 503 `verifier_unavailable`,
 * 503 `revocation_stale`, 500 `middleware_order` behind `meter`.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function authenticate(options: AuthenticateOptions): Middleware {
  const { verifiers, revocations, optional, as, cache, extractToken, maxTokenBytes, clock, settings } =
    parseOptions(options);
  const chain = new VerifierChain(verifiers, revocations, clock);
  const decisions = cache === false ? undefined : new CredentialCache(cache);
  const flights = new Map<string, { readonly verifier: Verifier; readonly decision: Promise<Decision> }>();

  function authenticateRequest(req: IncomingMessage, res: ServerResponse, next: Next): void {
    const state = requestState(req);
    if (as === undefined) state.settings = settings;
    if (state.admitted) return refuse(req, res, next, orderError('authenticate'), 'middleware_order', settings);
    let decision: Decision | Promise<Decision> | undefined;
    let credential: string | undefined;
    try {
      credential = readCredential(req);
      decision = (credential === undefined ? undefined : known(req, credential)) ?? decide(req, credential);
    } catch (error) {
      return refuse(req, res, next, error, 'verifier_unavailable', settings);
    }
    if (decision === undefined) {
      tellAuthenticated(state);
      return next();
    }
    if (isPromise(decision)) {
      decision.then(
        (decided) => admit(decided, credential, req, res, next),
        (error) => refuse(req, res, next, error, 'verifier_unavailable', settings),
      );
      return;
    }
    admit(decision, credential, req, res, next);
  }

  /** The credential as it stands in the request: the whole header, or what `extractToken` found. */
  function readCredential(req: IncomingMessage): string | undefined {
    if (extractToken === undefined) {
      const header = req.headers.authorization;
      if (header !== undefined && repeatsAuthorization(req.rawHeaders)) {
        throw new AccessError('invalid_request', { reason: 'more than one Authorization header' });
      }
      return header;
    }
    let extracted: unknown;
    try {
      extracted = extractToken(req);
    } catch {
      throw new AccessError('verifier_unavailable', { reason: 'extractToken threw' });
    }
    if (extracted !== undefined && (typeof extracted !== 'string' || extracted === '')) {
      throw new AccessError('invalid_request', { reason: 'extractToken found something that is no credential' });
    }
    if (extracted !== undefined && isRepeated(extracted, req)) {
      throw new AccessError('invalid_request', { reason: 'the header of the credential is there more than once' });
    }
    return extracted;
  }

  /** The cached decision, if it still holds. */
  function known(req: IncomingMessage, credential: string): Decision | undefined {
    if (decisions === undefined) return undefined;
    const monotonic = clock.monotonic();
    const decision = decisions.get(credential, clock.now(), monotonic);
    if (decision === undefined) return undefined;
    // A verifier that looks at the request is asked, whatever is known about the credential.
    const depends = decision.precedents.length > 0 || decision.verifier.dependsOnRequest === true;
    if (depends && !chain.isStillAsked(decision, present(req, credential))) return undefined;
    if (decision.sources.length === 0) return decision;
    const answer = checkRevocations(decision, monotonic);
    if (answer === 'live') return decision;
    if (answer === 'unknown') throw stale();
    decisions.delete(credential);
    if (answer === 'revoked') throw revoked();
    return undefined;
  }

  /** Verifies the credential; undefined when none was shown and none is needed. */
  function decide(req: IncomingMessage, credential: string | undefined): Decision | Promise<Decision> | undefined {
    const presented = present(req, credential);
    if (presented.token !== undefined && presented.token.length > maxTokenBytes) {
      throw new AccessError('invalid_token', { reason: `the credential is longer than ${maxTokenBytes} bytes` });
    }
    const verifier = chain.verifierOf(presented);
    if (verifier === undefined) {
      if (presented.scheme === 'bearer' || presented.scheme === 'custom') {
        throw new AccessError('invalid_token', { reason: 'no verifier takes this credential' });
      }
      if (optional) return undefined;
      throw new AccessError('missing_credentials', { reason: 'no credential was shown' });
    }
    if (credential === undefined || presented.scheme === 'none') return chain.decide(verifier, presented);
    const flight = flights.get(credential);
    // What may not be cached may not be shared either: the verifier may look at the request.
    if (flight?.verifier === verifier) {
      return flight.decision.then((decision) => (decision.cacheMs > 0 ? decision : chain.decide(verifier, presented)));
    }
    const decision = chain.decide(verifier, presented);
    if (!isPromise(decision)) {
      remember(credential, decision);
      return decision;
    }
    // One that another verifier is at, for another request, keeps its place: nobody else is to join this one then.
    const alone = flight !== undefined;
    const shared = decision.then(
      (decided) => {
        if (!alone) flights.delete(credential);
        remember(credential, decided);
        return decided;
      },
      (error) => {
        if (!alone) flights.delete(credential);
        throw error;
      },
    );
    if (!alone) flights.set(credential, { verifier, decision: shared });
    return shared;
  }

  function present(req: IncomingMessage, credential: string | undefined): Presented {
    if (credential === undefined) return { req, scheme: 'none' };
    if (extractToken !== undefined) return { req, scheme: 'custom', token: credential };
    const authorization = parseAuthorization(credential);
    if (authorization === undefined) {
      throw new AccessError('invalid_request', { reason: 'the Authorization header has no scheme' });
    }
    const { scheme, token } = authorization;
    if (scheme !== 'bearer' && scheme !== 'dpop') return { req, scheme: 'none' };
    if (token !== undefined) return { req, scheme, token };
    // Under a scheme that nobody takes, a malformed header counts as nothing shown, like a well-formed one.
    if (scheme === 'dpop' && chain.verifierOf({ req, scheme }) === undefined) return { req, scheme: 'none' };
    throw new AccessError('invalid_request', {
      reason: 'the Authorization header is no scheme, one space and a token',
    });
  }

  function remember(credential: string, decision: Decision): void {
    decisions?.set(credential, decision, clock.now(), clock.monotonic());
  }

  function admit(
    decision: Decision,
    credential: string | undefined,
    req: IncomingMessage,
    res: ServerResponse,
    next: Next,
  ): void {
    if (decision.checkRequest !== undefined) {
      let checked: void | Promise<void>;
      try {
        checked = decision.checkRequest(present(req, credential));
      } catch (error) {
        return refuse(req, res, next, error, 'verifier_unavailable', settings);
      }
      if (isPromise(checked)) {
        const checking = checked;
        withDeadline(VERIFY_TIMEOUT_MS, () => checking).then(
          () => {
            const refusal = refusalSince(decision);
            if (refusal === undefined) attach(decision, req, res, next);
            else refuse(req, res, next, refusal, 'verifier_unavailable', settings);
          },
          (error) => refuse(req, res, next, error, 'verifier_unavailable', settings),
        );
        return;
      }
    }
    attach(decision, req, res, next);
  }

  /**
   * What was revoked or changed while the request was being checked holds. A change is not verified anew: what was
   * checked, a proof that is good once perhaps, cannot be shown again.
   */
  function refusalSince(decision: Decision): AccessError | undefined {
    if (decision.identity === undefined) return undefined;
    const answer = checkRevocations(decision);
    if (answer === 'live') return undefined;
    if (answer === 'revoked') return revoked();
    if (answer === 'unknown') return stale();
    const reason = 'what the decision was made from changed while the request was being checked';
    return new AccessError('verifier_unavailable', { reason, retryAfterSeconds: 1 });
  }

  function attach({ identity, attribution }: Decision, req: IncomingMessage, res: ServerResponse, next: Next): void {
    // Somebody answered, or the client left, while the credential was being verified.
    if (res.writableEnded || res.destroyed) return;
    const state = requestState(req);
    if (attribution !== undefined && as === undefined) state.attribution = attribution;
    if (identity !== undefined) {
      if (as === undefined) attachIdentity(req, identity);
      else {
        state.others ??= new Map();
        state.others.set(as, identity);
      }
    }
    tellAuthenticated(state);
    next();
  }

  return authenticateRequest;
}

function parseOptions(given: AuthenticateOptions) {
  const parser = new OptionsParser('authenticate');
  const options = parser.known(given, OPTIONS);
  const verifiers = Array.isArray(options.verifiers) ? [...options.verifiers] : [];
  if (verifiers.length === 0) parser.problem('verifiers must be an array with at least one verifier');
  const names = new Set<string>();
  const issuers = new Set<string>();
  for (const [index, verifier] of verifiers.entries()) {
    if (typeof verifier?.accepts !== 'function' || typeof verifier.verify !== 'function') {
      parser.problem(`verifiers[${index}] is no verifier (did you call its factory?)`);
      continue;
    }
    if (typeof verifier.name !== 'string' || verifier.name === '') parser.problem(`verifiers[${index}] needs a name`);
    // A name stands in for the issuer where the verifier has none of its own; where it has, both may be called "jwt".
    else if (names.has(verifier.name) && verifier.issuers === undefined) {
      parser.problem(`two verifiers are named "${verifier.name}"`);
    }
    names.add(verifier.name);
    if (verifier.catchAll === true && index !== verifiers.length - 1) {
      parser.problem(`the verifier "${verifier.name}" takes whatever nobody else does: it must be the last`);
    }
    for (const issuer of verifier.issuers ?? []) {
      if (issuers.has(issuer)) parser.problem(`two verifiers take the issuer "${issuer}"`);
      issuers.add(issuer);
    }
  }
  const { revocations, optional, as, extractToken, realm, resourceMetadata, errors, onReject, clock } = options;
  if (revocations !== undefined && typeof revocations?.check !== 'function') {
    parser.problem('revocations must come from createRevocations');
  }
  parser.oneOf('optional', optional, [true, false], false);
  if (as !== undefined) parser.string('as', as);
  parser.optionalFunction('extractToken', extractToken);
  parser.optionalFunction('onReject', onReject);
  parser.oneOf('errors', errors, ['respond', 'next'], 'respond');
  for (const [name, text] of Object.entries({ realm, resourceMetadata })) {
    if (text !== undefined)
      parser.check(isChallengeText(text), `${name} must be printable ASCII without quotes and backslashes`);
  }
  const maxTokenBytes = parser.number('maxTokenBytes', options.maxTokenBytes, 16_384, { min: 1, integer: true });
  let cache = false as CacheOptions | false;
  if (options.cache !== false) {
    cache = parser.known(options.cache ?? {}, ['maxEntries', 'maxBytes', 'ttlSeconds'], 'cache');
    parser.number('cache.maxEntries', cache.maxEntries, 1, { min: 1, max: 2 ** 24, integer: true });
    parser.number('cache.maxBytes', cache.maxBytes, 1, { min: 1, integer: true });
    parser.number('cache.ttlSeconds', cache.ttlSeconds, 1, { min: 0 });
  }
  parser.done();
  const settings: AnswerSettings = Object.freeze({ errors: errors ?? 'respond', onReject, realm, resourceMetadata });
  return {
    verifiers,
    revocations,
    optional: optional === true,
    as,
    cache,
    extractToken,
    maxTokenBytes,
    clock: clock ?? systemClock,
    settings,
  };
}

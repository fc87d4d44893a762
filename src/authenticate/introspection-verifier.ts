import { createHash } from 'node:crypto';
import { channel } from 'node:diagnostics_channel';
import { setMaxListeners } from 'node:events';
import { LRUCache } from 'lru-cache';
import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import { describeFailure, type Fetch, fetchJson, systemFetch } from '../keys/fetch-json.js';
import { isFetchable } from '../keys/key-options.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { withDeadline } from '../runtime/deadline.js';
import { type ClaimMap, type MappedClaims, parseClaimMap } from './claim-map.js';
import { invalidToken } from './compact-jwt.js';
import { checkAudience, instantOf } from './jwt-claims.js';
import { parseAudience } from './jwt-issuer.js';
import { type Identify, identified, tokenIdentity } from './token-identity.js';
import type { VerifiedResult, Verifier } from './verifier.js';

/** How this API proves to the authorization server who is asking (RFC 7662 §2.1). */
export type IntrospectionCredentials =
  | {
      readonly clientId: string;
      readonly clientSecret: string;
      /** `basic` (default): in the `Authorization` header. `post`: in the body. */
      readonly method?: 'basic' | 'post';
      readonly bearerToken?: never;
    }
  | { readonly bearerToken: string; readonly clientId?: never; readonly clientSecret?: never; readonly method?: never };

export interface IntrospectionVerifierOptions {
  /** The introspection endpoint: https, or http on this machine. */
  readonly endpoint: string;
  readonly credentials: IntrospectionCredentials;
  /** Who vouches. An answer with another `iss` refuses the token. Default: the `iss` of the answer, else the verifier's name. */
  readonly issuer?: string;
  /** One of these must stand in the answer's `aud`. Default: the server is trusted to answer for this API only. */
  readonly audience?: string | readonly string[] | null;
  /** Seconds that an active answer may be reused at most; `exp` ends it sooner. 0 is never. Default 60. */
  readonly ttlSeconds?: number;
  /** Seconds for which a token stays refused without asking again. Default 10. */
  readonly negativeTtlSeconds?: number;
  /** Seconds that an answer may take. Default 5. */
  readonly timeoutSeconds?: number;
  /** Bytes of an answer at most. Default 65536. */
  readonly maxBytes?: number;
  /** Which members of the answer the identity's fields come from. Default subject: `sub`, else `client_id`. */
  readonly map?: ClaimMap;
  /** The last word about an identity, as with `jwtVerifier`. */
  readonly identify?: Identify;
  /** Lets the server be asked over plain HTTP elsewhere: whoever is on the path then sees the tokens and decides who gets in. */
  readonly dangerouslyAllowHttp?: true;
  /** Default `introspection`. */
  readonly name?: string;
  readonly clock?: Clock;
  readonly fetch?: Fetch;
}

const OPTIONS: readonly (keyof IntrospectionVerifierOptions)[] = [
  'endpoint',
  'credentials',
  'issuer',
  'audience',
  'ttlSeconds',
  'negativeTtlSeconds',
  'timeoutSeconds',
  'maxBytes',
  'map',
  'identify',
  'dangerouslyAllowHttp',
  'name',
  'clock',
  'fetch',
];

/** Refused tokens that are remembered, as hashes. */
const MAX_REFUSED = 10_000;
/** Questions at the same time: beyond, more sockets would only make the server slower. */
const MAX_IN_FLIGHT = 128;
const TOLERANCE_SECONDS = 5;
/** `token_type` of what may be an access token shown as a bearer token. */
const BEARER_TYPES: readonly unknown[] = [undefined, null, 'bearer', 'access_token'];
/** `typ` by which some servers mark what is no access token, though it is active. */
const OTHER_TYPES = /^(?:refresh|offline|id|logout)(?:[_+-]?(?:token|jwt))?$/i;

const diagnostics = channel('tollkeeper:verifier');

/**
 * Asks an authorization server about tokens (RFC 7662). It takes whatever no other verifier does, so it stands last.
 *
 * Only `active: true` lets a token in; a refusal is remembered for `negativeTtlSeconds`. A server that does not answer, answers
 * with another status than 200 or with no JSON object is an outage: 503. One question at a time is asked about one token.
 *
 * `authId` is `auth_id` where the server states one, else `client_id`, else `sub`.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function introspectionVerifier(options: IntrospectionVerifierOptions): Verifier & { close(): Promise<void> } {
  const settings = parseOptions(options);
  const { name, endpoint, clock, fetch, timeoutMs, maxBytes, ttlSeconds, negativeTtlMs } = settings;
  const refused = new LRUCache<string, number>({ max: MAX_REFUSED });
  const flights = new Map<string, Promise<Answer>>();
  const closing = new AbortController();
  // Every question listens for the end.
  setMaxListeners(0, closing.signal);

  async function ask(token: string): Promise<Answer> {
    const body = new URLSearchParams({ token, token_type_hint: 'access_token', ...settings.form }).toString();
    const headers = { 'content-type': 'application/x-www-form-urlencoded', ...settings.headers };
    try {
      const answer = await withDeadline(
        timeoutMs,
        (signal) => fetchJson(endpoint, { method: 'POST', headers, body }, { fetch, maxBytes, signal }),
        closing.signal,
      );
      if (typeof answer === 'object' && answer !== null && !Array.isArray(answer)) return answer as Answer;
    } catch (error) {
      throw outage(describeFailure(error));
    }
    throw outage('its answer is no JSON object');
  }

  function outage(reason: string): AccessError {
    if (diagnostics.hasSubscribers) diagnostics.publish({ type: 'introspection_failed', verifier: name, reason });
    return new AccessError('verifier_unavailable', { reason: `introspection: ${reason}` });
  }

  function answerFor(id: string, token: string): Promise<Answer> {
    const known = flights.get(id);
    if (known !== undefined) return known;
    if (flights.size >= MAX_IN_FLIGHT) throw outage('too many questions are waiting for an answer');
    const flight = ask(token).finally(() => flights.delete(id));
    flights.set(id, flight);
    return flight;
  }

  return {
    name,
    ignoresSignal: true,
    catchAll: true,
    accepts: ({ scheme, token }) => (scheme === 'bearer' || scheme === 'custom') && token !== undefined,
    async verify({ token = '' }): Promise<VerifiedResult> {
      const id = createHash('sha256').update(token).digest('base64url');
      if (clock.monotonic() < (refused.get(id) ?? Number.NEGATIVE_INFINITY)) throw inactive();
      const answer = await answerFor(id, token);
      if (answer.active !== true) {
        // Anything else than `false` is no answer to rely on for longer than this request.
        if (answer.active === false) refused.set(id, clock.monotonic() + negativeTtlMs);
        throw inactive();
      }
      const input = readAnswer(answer, settings, clock.now() / 1_000);
      const identity = identified(tokenIdentity(input, name), answer, settings.identify, name);
      return { identity, cacheSeconds: ttlSeconds, clockToleranceSeconds: TOLERANCE_SECONDS };
    },
    async close() {
      closing.abort();
    },
  };
}

type Answer = Readonly<Record<string, unknown>>;

function inactive(): AccessError {
  return invalidToken('the token is not active');
}

/** The identity that an active answer states. @throws AccessError `invalid_token`. */
function readAnswer(answer: Answer, settings: ReturnType<typeof parseOptions>, now: number): MappedClaims {
  const { token_type: tokenType, typ, iss, cnf } = answer;
  const type = typeof tokenType === 'string' ? tokenType.toLowerCase() : tokenType;
  if (!BEARER_TYPES.includes(type) || (typeof typ === 'string' && OTHER_TYPES.test(typ))) {
    throw invalidToken('the token is active, but no bearer access token');
  }
  if (cnf !== undefined && cnf !== null)
    throw invalidToken('the token is bound to a key, and nothing here checks that');
  if (iss !== undefined && iss !== null && (typeof iss !== 'string' || iss === '')) {
    throw invalidToken('the answer has a bad issuer');
  }
  if (settings.issuer !== undefined && typeof iss === 'string' && iss !== settings.issuer) {
    throw invalidToken('the token is of another issuer');
  }
  const times = { exp: answer.exp ?? undefined, nbf: answer.nbf ?? undefined, iat: answer.iat ?? undefined };
  const expiresAt = instantOf(times, 'exp');
  const notBefore = instantOf(times, 'nbf');
  const issuedAt = instantOf(times, 'iat');
  if (expiresAt !== undefined && !(now < expiresAt + TOLERANCE_SECONDS)) throw invalidToken('the token has expired');
  if (notBefore !== undefined && notBefore > now + TOLERANCE_SECONDS) throw invalidToken('the token is not valid yet');
  if (settings.audience !== null) checkAudience(answer.aud ?? undefined, settings.audience);
  const input = settings.mapClaims(answer);
  input.issuer = settings.issuer ?? (iss as string | null | undefined) ?? undefined;
  input.claims = answer;
  input.issuedAt = issuedAt;
  input.expiresAt = expiresAt;
  return input;
}

function parseOptions(given: IntrospectionVerifierOptions) {
  const parser = new OptionsParser('introspectionVerifier');
  const options = parser.known(given, OPTIONS);
  const allowHttp = parser.oneOf('dangerouslyAllowHttp', options.dangerouslyAllowHttp, [true], undefined) === true;
  const usable = isFetchable(String(options.endpoint), allowHttp);
  parser.check(usable, 'endpoint must be an https URL (http on this machine)');
  parser.optionalFunction('identify', options.identify);
  parser.optionalFunction('fetch', options.fetch);
  const seconds = (option: 'ttlSeconds' | 'negativeTtlSeconds' | 'timeoutSeconds', fallback: number, min = 0): number =>
    parser.number(option, options[option], fallback, { min, max: 86_400 });
  const { audience, map = {} } = options;
  // RFC 7662 §2.2: `sub` is optional, and absent where a client acts for itself.
  const defaults: ClaimMap = { subject: ['sub', 'client_id'], authId: ['auth_id', 'client_id', 'sub'] };
  const stated = typeof map === 'object' ? Object.entries(map ?? {}).filter(([, source]) => source !== undefined) : [];
  const settings = {
    name: options.name === undefined ? 'introspection' : parser.string('name', options.name),
    endpoint: options.endpoint,
    issuer: options.issuer === undefined ? undefined : parser.string('issuer', options.issuer),
    audience: audience === undefined ? null : parseAudience(parser, 'audience', audience),
    ttlSeconds: seconds('ttlSeconds', 60),
    negativeTtlMs: seconds('negativeTtlSeconds', 10) * 1_000,
    timeoutMs: seconds('timeoutSeconds', 5, 0.001) * 1_000,
    maxBytes: parser.number('maxBytes', options.maxBytes, 65_536, { min: 1, integer: true }),
    mapClaims: parseClaimMap(parser, 'map', { ...defaults, ...Object.fromEntries(stated) }),
    identify: options.identify,
    clock: options.clock ?? systemClock,
    fetch: options.fetch ?? systemFetch,
    ...parseCredentials(parser, options.credentials),
  };
  parser.done();
  return settings;
}

/** What goes along with every question. */
interface Proof {
  readonly headers: Readonly<Record<string, string>>;
  readonly form: Readonly<Record<string, string>>;
}

function parseCredentials(parser: OptionsParser, given: IntrospectionCredentials): Proof {
  const keys = ['clientId', 'clientSecret', 'method', 'bearerToken'];
  const { clientId, clientSecret, method, bearerToken } = parser.known(given, keys, 'credentials');
  if (bearerToken !== undefined) {
    const alone = clientId === undefined && clientSecret === undefined && method === undefined;
    parser.check(alone, 'credentials must have either bearerToken or clientId and clientSecret');
    // RFC 6750 §2.1: anything else would not arrive as it is, or would add a header.
    const usable = typeof bearerToken === 'string' && /^[A-Za-z0-9._~+/-]+=*$/.test(bearerToken);
    parser.check(usable, 'credentials.bearerToken must be a bearer token');
    return { headers: { authorization: `Bearer ${bearerToken}` }, form: {} };
  }
  const id = parser.string('credentials.clientId', clientId);
  const secret = parser.string('credentials.clientSecret', clientSecret);
  if (parser.oneOf('credentials.method', method, ['basic', 'post'], 'basic') === 'post') {
    return { headers: {}, form: { client_id: id, client_secret: secret } };
  }
  const basic = Buffer.from(`${formEncoded(id)}:${formEncoded(secret)}`).toString('base64');
  return { headers: { authorization: `Basic ${basic}` }, form: {} };
}

/** RFC 6749 §2.3.1: id and secret are form-encoded before they are joined. */
function formEncoded(text: string): string {
  return new URLSearchParams({ x: text }).toString().slice(2);
}

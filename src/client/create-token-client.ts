import { OptionsParser } from '../errors/options-parser.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { type Random, systemRandom } from '../runtime/random.js';
import { type ClientCredentials, parseCredentials } from './client-credentials.js';
import { requestToken } from './token-request.js';

export interface TokenClientOptions {
  /** The server's token endpoint: https, or http on this machine. */
  readonly tokenEndpoint: string;
  /** The server's issuer identifier, the `aud` of assertions. Default: `tokenEndpoint` without `/oauth/token`. */
  readonly issuer?: string;
  readonly credentials: ClientCredentials;
  /** Default: whatever the server grants. */
  readonly scopes?: readonly string[];
  /** What the token is for (RFC 8707): absolute URIs. */
  readonly resources?: readonly string[];
  /** With `subjectTokenFile`: the policy that is to decide. */
  readonly policy?: string;
  /** Seconds before its end at which a token is replaced, in the background. Default 60, and at most half of its life. */
  readonly refreshBeforeSeconds?: number;
  /** Seconds that a request may take. Default 10. */
  readonly timeoutSeconds?: number;
  /** Sends credentials over plain HTTP to other machines: whoever is on the path then has them. */
  readonly dangerouslyAllowHttp?: true;
  readonly clock?: Clock;
  readonly fetch?: typeof fetch;
  readonly random?: Random;
}

/** Keeps one access token fresh. */
export interface TokenClient {
  /**
   * A token that has not expired, from the cache where possible. However many ask at once, one request is sent.
   *
   * @throws OAuthError: `code` is the server's `error` (`invalid_client`, `invalid_scope`…), `temporarily_unavailable` when it
   *   cannot be reached, or `invalid_response`.
   */
  getToken(): Promise<string>;
  /** Forgets the token, e.g. after a 401: the next `getToken()` fetches another one. */
  forget(): void;
}

const OPTIONS: readonly (keyof TokenClientOptions)[] = [
  'tokenEndpoint',
  'issuer',
  'credentials',
  'scopes',
  'resources',
  'policy',
  'refreshBeforeSeconds',
  'timeoutSeconds',
  'dangerouslyAllowHttp',
  'clock',
  'fetch',
  'random',
];
const TOKEN_PATH = '/oauth/token';
/** Seconds that pass after a failed refresh in the background until the next. */
const RETRY_SECONDS = 5;

interface Held {
  readonly token: string;
  /** Milliseconds of the monotonic clock. */
  readonly refreshAt: number;
  readonly endsAt: number;
}

/**
 * Fetches access tokens by a client secret, a private key or a platform's token, keeps one until shortly before it ends, and
 * replaces it in time. It needs nothing but `fetch`.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function createTokenClient(options: TokenClientOptions): TokenClient {
  const { show, params, refreshBeforeMs, clock, ...request } = parseOptions(options);
  let held: Held | undefined;
  /** Grows when a token is forgotten: what was asked for before that may be the very token that was refused. */
  let generation = 0;
  let flight: Promise<string> | undefined;
  let retryAt = Number.NEGATIVE_INFINITY;

  async function fetchToken(): Promise<string> {
    // The life of a token is counted from before the request: the answer may take its time.
    const startedAt = clock.monotonic();
    const asked = generation;
    const shown = await show();
    const form = new URLSearchParams([...Object.entries(shown.params), ...params]);
    const { token, expiresInSeconds } = await requestToken({ ...request, headers: shown.headers, form });
    const lifeMs = expiresInSeconds * 1_000;
    const endsAt = startedAt + lifeMs;
    if (asked === generation) held = { token, endsAt, refreshAt: endsAt - Math.min(refreshBeforeMs, lifeMs / 2) };
    return token;
  }

  function start(): Promise<string> {
    if (flight !== undefined) return flight;
    const current = fetchToken();
    flight = current;
    const landed = (): void => {
      if (flight === current) flight = undefined;
    };
    current.then(landed, () => {
      retryAt = clock.monotonic() + RETRY_SECONDS * 1_000;
      landed();
    });
    return current;
  }

  return {
    async getToken() {
      const now = clock.monotonic();
      if (held === undefined || now >= held.endsAt) return start();
      // The old one serves until the new one is there; a failure is met when it has ended.
      if (now >= held.refreshAt && now >= retryAt) start().catch(() => undefined);
      return held.token;
    },
    forget() {
      held = undefined;
      flight = undefined;
      generation += 1;
    },
  };
}

function parseOptions(given: TokenClientOptions) {
  const parser = new OptionsParser('createTokenClient');
  const options = parser.known(given, OPTIONS);
  const { clock = systemClock, random = systemRandom, fetch = globalThis.fetch } = options;
  parser.oneOf('dangerouslyAllowHttp', options.dangerouslyAllowHttp, [true], undefined);
  const endpoint = parser.string('tokenEndpoint', options.tokenEndpoint);
  if (!isSecure(endpoint, options.dangerouslyAllowHttp === true)) {
    parser.problem('tokenEndpoint must be an https URL (http on this machine) without credentials and fragment');
  }
  const derived = endpoint.endsWith(TOKEN_PATH) ? endpoint.slice(0, -TOKEN_PATH.length) : undefined;
  const issuer = options.issuer ?? derived;
  if (options.issuer !== undefined) parser.string('issuer', options.issuer);
  if (issuer === undefined && (options.credentials as { privateKey?: unknown } | undefined)?.privateKey !== undefined) {
    parser.problem(`issuer is needed where tokenEndpoint does not end with ${TOKEN_PATH}`);
  }
  const show = parseCredentials(parser, options.credentials, { issuer: issuer ?? '', clock, random });
  const params: [string, string][] = [];
  for (const name of ['scopes', 'resources'] as const) {
    const list = options[name] ?? [];
    const valid = Array.isArray(list) && list.every((item) => typeof item === 'string' && item !== '');
    if (!parser.check(valid, `${name} must be an array of strings`)) continue;
    if (name === 'resources') for (const resource of list) params.push(['resource', resource]);
    else if (list.length > 0) params.push(['scope', list.join(' ')]);
  }
  if (options.policy !== undefined) params.push(['policy', parser.string('policy', options.policy)]);
  const refreshBeforeMs = parser.number('refreshBeforeSeconds', options.refreshBeforeSeconds, 60) * 1_000;
  const timeoutSeconds = parser.number('timeoutSeconds', options.timeoutSeconds, 10, { min: 0.001, max: 600 });
  parser.optionalFunction('fetch', options.fetch);
  parser.done();
  return { endpoint, show, params, refreshBeforeMs, timeoutSeconds, clock, fetch };
}

function isSecure(text: string, allowHttp: boolean): boolean {
  if (!URL.canParse(text)) return false;
  const { protocol, hostname, username, password, hash } = new URL(text);
  const isLocal = /^(?:localhost|.+\.localhost|127(?:\.\d{1,3}){3}|\[::1\])$/.test(hostname);
  const isTransport = protocol === 'https:' || (protocol === 'http:' && (allowHttp || isLocal));
  return isTransport && username === '' && password === '' && hash === '';
}

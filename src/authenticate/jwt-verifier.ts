import type { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Identity } from '../identity/ambient.cjs';
import { type Fetch, systemFetch } from '../keys/fetch-json.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { isPromise } from '../runtime/is-promise.js';
import { type CompactJwt, invalidToken, peekJwt } from './compact-jwt.js';
import { createDirectoryContext } from './directory-context.js';
import {
  fixedDirectory,
  type IssuerDirectory,
  type IssuerResolver,
  type ListedIssuer,
  resolvedDirectory,
} from './issuer-directory.js';
import {
  ISSUER_DEFAULTS,
  ISSUER_OPTIONS,
  type JwtIssuerDefaults,
  type JwtIssuerOptions,
  type ParsedIssuer,
  parseIssuer,
} from './jwt-issuer.js';
import { identified, tokenIdentity } from './token-identity.js';
import type { VerifiedJwt } from './trusted-issuer.js';
import type { Presented, VerifiedResult, Verifier } from './verifier.js';

interface JwtVerifierSettings {
  /** The verifier's name in identities, usage events and reasons. Default `jwt`. */
  readonly name?: string;
  readonly clock?: Clock;
  /** What keys and metadata are fetched with. Default: the platform's `fetch`. */
  readonly fetch?: Fetch;
}

/** One issuer, or several: a list, or a function that answers for each `iss`. */
export type JwtVerifierOptions =
  | (JwtVerifierSettings & JwtIssuerOptions & { readonly issuers?: never })
  | (JwtVerifierSettings &
      JwtIssuerDefaults & {
        readonly issuers: readonly JwtIssuerOptions[] | IssuerResolver;
        readonly issuer?: never;
        readonly audience?: never;
        readonly algorithms?: never;
        readonly keys?: never;
      });

const SETTINGS = ['name', 'clock', 'fetch'] as const;

/**
 * Verifies JWTs (RFC 7519, RFC 8725, RFC 9068). It takes bearer and custom credentials of three segments whose `iss` is listed.
 *
 * Keys are fetched when they are first needed, or by `ready()`. They hold for `maxAgeSeconds` (600), and cached identities no
 * longer than they; a key that is withdrawn or replaced makes identities stale at once, through `revocations`. While keys cannot
 * be fetched the known ones hold up to `maxStaleSeconds` (86400); a token that they cannot verify is answered with 503.
 *
 * Published on `tollkeeper:verifier`: `{ type: 'keys_unavailable', verifier, issuer, reason }`,
 * `{ type: 'keys_withdrawn', verifier, keyIds }`.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function jwtVerifier(
  options: JwtVerifierOptions,
): Verifier & Required<Pick<Verifier, 'revocations' | 'ready' | 'close'>> {
  const { name, clock, fetch, issuers } = parseOptions(options);
  const context = createDirectoryContext(name, clock, fetch);
  const { revocations } = context;
  const directory =
    'resolve' in issuers
      ? resolvedDirectory(issuers.resolve, issuers.withDefaults, context)
      : fixedDirectory(issuers.listed, context);
  const listed = 'listed' in issuers ? issuers.listed.map(({ rules }) => rules.issuer) : undefined;
  // The chain asks `accepts` and then, in the same tick, `verify`: the token is taken apart once.
  let peeked: Peeked | undefined;

  return {
    name,
    ignoresSignal: true,
    revocations,
    ...(listed === undefined ? {} : { issuers: Object.freeze(listed) }),
    accepts({ scheme, token }) {
      if ((scheme !== 'bearer' && scheme !== 'custom') || token === undefined) return false;
      peeked = peek(token, directory);
      return peeked !== undefined;
    },
    verify({ token = '' }: Presented): VerifiedResult | Promise<VerifiedResult> {
      const seen = peeked?.jwt.token === token ? peeked : peek(token, directory);
      peeked = undefined;
      if (seen === undefined) throw invalidToken('the token is no JWT of a listed issuer');
      if (seen.issuer instanceof Error) throw seen.issuer;
      const { jwt, issuer } = seen;
      const verified = issuer.trusted.verify(jwt);
      if (isPromise(verified)) return verified.then((value) => resultOf(value, issuer, name));
      return resultOf(verified, issuer, name);
    },
    ready: (signal) => directory.ready(signal),
    async close(signal) {
      await directory.close(signal);
      await revocations.close(signal);
    },
  };
}

interface Peeked {
  readonly jwt: CompactJwt;
  /** The error when it cannot be told whether the issuer is listed. */
  readonly issuer: ListedIssuer | AccessError;
}

/** The token and its issuer, if that is listed: the only thing about a token that is believed before it is verified. */
function peek(token: string, directory: IssuerDirectory): Peeked | undefined {
  const jwt = peekJwt(token);
  const iss = jwt?.claims.iss;
  if (jwt === undefined || typeof iss !== 'string') return undefined;
  try {
    const issuer = directory.find(iss);
    return issuer === undefined ? undefined : { jwt, issuer };
  } catch (error) {
    return { jwt, issuer: error as AccessError };
  }
}

function resultOf(verified: VerifiedJwt, issuer: ListedIssuer, name: string): VerifiedResult {
  const { cacheSeconds } = verified;
  return {
    identity: identityFrom(verified, issuer, name),
    clockToleranceSeconds: issuer.trusted.rules.clockToleranceSeconds,
    ...(cacheSeconds === undefined ? {} : { cacheSeconds }),
  };
}

function identityFrom(verified: VerifiedJwt, issuer: ListedIssuer, name: string): Identity {
  const { claims, keyId, issuedAt, expiresAt } = verified;
  const input = issuer.mapClaims(claims);
  input.issuer = issuer.trusted.rules.issuer;
  input.claims = claims;
  input.keyId = keyId;
  input.issuedAt = issuedAt;
  input.expiresAt = expiresAt;
  const identity = tokenIdentity(input, name);
  return identified(identity, claims, issuer.identify, name);
}

const ANY_ISSUER: JwtIssuerOptions = {
  issuer: 'any',
  audience: null,
  algorithms: ['ES256'],
  keys: { jwks: { keys: [] } },
};

type ParsedIssuers =
  | { readonly listed: readonly ParsedIssuer[] }
  | { readonly resolve: IssuerResolver; readonly withDefaults: (options: JwtIssuerOptions) => JwtIssuerOptions };

function parseOptions(given: JwtVerifierOptions) {
  const parser = new OptionsParser('jwtVerifier');
  const options = parser.known(given, [...SETTINGS, 'issuers', ...ISSUER_OPTIONS]);
  const name = options.name === undefined ? 'jwt' : parser.string('name', options.name);
  parser.optionalFunction('fetch', options.fetch);
  const defaults = Object.fromEntries(
    ISSUER_DEFAULTS.map((option) => [option, options[option]]).filter(([, value]) => value !== undefined),
  ) as JwtIssuerDefaults;
  const issuers = parseIssuers(parser, options, (one) => ({ ...defaults, ...one }));
  parser.done();
  return { name, clock: options.clock ?? systemClock, fetch: options.fetch ?? systemFetch, issuers };
}

function parseIssuers(
  parser: OptionsParser,
  options: JwtVerifierOptions,
  withDefaults: (options: JwtIssuerOptions) => JwtIssuerOptions,
): ParsedIssuers {
  if (options.issuers === undefined) {
    return { listed: [parseIssuer(parser, '', options as JwtIssuerOptions)] };
  }
  for (const option of ['issuer', 'audience', 'algorithms', 'keys'] as const) {
    if (options[option] !== undefined) parser.problem(`${option} belongs into each of the issuers`);
  }
  if (typeof options.issuers === 'function') {
    // What the function returns is read when it is asked; the defaults can be read now.
    parseIssuer(parser, '', withDefaults(ANY_ISSUER));
    return { resolve: options.issuers, withDefaults };
  }
  if (!Array.isArray(options.issuers) || options.issuers.length === 0) {
    parser.problem('issuers must be an array with at least one issuer, or a function');
    return { listed: [] };
  }
  const listed = options.issuers.map((one: JwtIssuerOptions, index) => {
    const where = `issuers[${index}]`;
    return parseIssuer(parser, `${where}.`, withDefaults(parser.known(one, ISSUER_OPTIONS, where)));
  });
  const seen = new Set<string>();
  for (const { rules } of listed) {
    if (seen.has(rules.issuer)) parser.problem(`two of the issuers are "${rules.issuer}"`);
    seen.add(rules.issuer);
  }
  return { listed };
}

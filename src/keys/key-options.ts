import { readFile } from 'node:fs/promises';
import type { OptionsParser } from '../errors/options-parser.js';
import type { Clock } from '../runtime/clock.js';
import { discoverJwksUri } from './discovery.js';
import { type Fetch, FetchError, fetchJson } from './fetch-json.js';
import { fixedKeys } from './fixed-keys.js';
import type { JWK } from './jwk.js';
import { algorithmRule, canonicalAlgorithm, isHmac, type JwtAlgorithm } from './jwt-algorithm.js';
import { keyRingKeys, type PublishedKeys } from './key-ring-keys.js';
import { KeySet, readKeySet } from './key-set.js';
import type { KeySource, KeySourceHooks } from './key-source.js';
import { type LoadKeys, RefreshedKeys, type RefreshSettings } from './refreshed-keys.js';
import { secretKey, type VerificationKey } from './verification-key.js';

/** Bounds of keys that are fetched: they hold for `jwksUri`, `discover` and `jwksFile`. */
export interface RemoteKeyOptions extends Partial<RefreshSettings> {
  /** Bytes of an answer at most, after decompression. Default 1 MiB. */
  readonly maxBytes?: number;
  /** Lets keys come over plain HTTP from hosts that are not this machine: whoever is on the path then decides who gets in. */
  readonly dangerouslyAllowHttp?: true;
}

/** A JWK set (RFC 7517 §5). */
export interface JwkSet {
  readonly keys: readonly JWK[];
}

interface KeyKinds {
  /** URL of a JWK set. */
  readonly jwksUri: string;
  /** A JWK set, pinned. An empty one is answered with 503. */
  readonly jwks: JwkSet;
  /** Finds the JWK set by the issuer's metadata (OpenID Connect Discovery 1.0, RFC 8414). */
  readonly discover: true;
  /** Path of a file that holds a JWK set; it is read anew like a remote one. */
  readonly jwksFile: string;
  /** A key ring in this process: its changes hold at once. */
  readonly keyRing: PublishedKeys;
  /** A shared secret of at least 32 bytes (48 with HS384, 64 with HS512), for the HS algorithms alone. */
  readonly secret: string | Uint8Array;
}

type Only<K extends keyof KeyKinds> = Pick<KeyKinds, K> & { readonly [P in Exclude<keyof KeyKinds, K>]?: never };

/** Where an issuer's keys come from: exactly one kind. */
export type KeyOptions =
  | (Only<'jwksUri'> & RemoteKeyOptions)
  | (Only<'discover'> & RemoteKeyOptions)
  | (Only<'jwksFile'> & RemoteKeyOptions)
  | Only<'jwks'>
  | Only<'keyRing'>
  | Only<'secret'>;

const KINDS = ['jwksUri', 'jwks', 'discover', 'jwksFile', 'keyRing', 'secret'] as const;
const SETTINGS = [
  'cooldownSeconds',
  'timeoutSeconds',
  'maxAgeSeconds',
  'maxStaleSeconds',
  'maxBytes',
  'dangerouslyAllowHttp',
] as const;

/** What a key source is made with. */
export interface KeySourceContext {
  readonly fetch: Fetch;
  readonly clock: Clock;
  readonly hooks: KeySourceHooks;
}

/** Makes the key source, once everything else is known to be right. */
export type KeySourceFactory = (context: KeySourceContext) => KeySource;

/**
 * Reads the `keys` option of one issuer.
 *
 * @param where the option's name in messages.
 * @returns a factory that may be used only when the parser has no problem.
 */
export function parseKeyOptions(
  parser: OptionsParser,
  where: string,
  given: KeyOptions,
  issuer: string,
  algorithms: readonly JwtAlgorithm[],
): KeySourceFactory {
  const options = parser.known(given, [...KINDS, ...SETTINGS], where) as Readonly<Record<string, unknown>>;
  const stated = KINDS.filter((kind) => options[kind] !== undefined);
  const kind = stated[0];
  if (kind === undefined || stated.length > 1) {
    parser.problem(`${where} must state exactly one of ${KINDS.join(', ')}`);
    return unusable;
  }
  if (algorithms.some(isHmac) && kind !== 'secret' && kind !== 'jwks') {
    parser.problem(`${where}.${kind} holds public keys, which the HS algorithms must never use (RFC 8725 §3.1)`);
  }
  switch (kind) {
    case 'secret':
      return parseSecret(parser, where, options.secret, algorithms);
    case 'jwks':
      return parseInline(parser, where, options.jwks, algorithms);
    case 'keyRing': {
      const ring = options.keyRing as PublishedKeys | null;
      if (typeof ring?.jwks !== 'function' || typeof ring.onChange !== 'function') {
        parser.problem(`${where}.keyRing must be a key ring (createKeyRing is asynchronous: await it)`);
      }
      return ({ hooks }) => keyRingKeys(ring as PublishedKeys, algorithms, hooks);
    }
    default:
      return parseRemote(parser, where, options, kind, issuer, algorithms);
  }
}

const unusable: KeySourceFactory = () => fixedKeys(new KeySet([]));

function parseSecret(
  parser: OptionsParser,
  where: string,
  secret: unknown,
  algorithms: readonly JwtAlgorithm[],
): KeySourceFactory {
  if (algorithms.some((name) => !isHmac(name))) {
    parser.problem(`${where}.secret serves the HS algorithms alone, and they never stand beside others`);
  }
  if (typeof secret !== 'string' && !(secret instanceof Uint8Array)) {
    parser.problem(`${where}.secret must be a string or a Uint8Array`);
    return unusable;
  }
  const bytes = typeof secret === 'string' ? Buffer.from(secret, 'utf8') : Buffer.from(secret);
  const text = bytes.toString('latin1').trim();
  // The classic key confusion: a public key, which everybody has, used as the secret.
  if (/-----BEGIN |^ssh-|^ecdsa-/.test(text) || isJsonObject(text)) {
    parser.problem(`${where}.secret is a PEM or JWK key, no secret`);
  }
  return hmacKeys(parser, `${where}.secret`, [{ bytes }], algorithms);
}

function hmacKeys(
  parser: OptionsParser,
  name: string,
  secrets: readonly { bytes: Uint8Array; kid?: string; alg?: string }[],
  algorithms: readonly JwtAlgorithm[],
): KeySourceFactory {
  const keys: VerificationKey[] = [];
  for (const { bytes, kid, alg } of secrets) {
    for (const algorithm of algorithms.filter((listed) => alg === undefined || alg === listed)) {
      const least = algorithmRule(algorithm)?.minSecretBytes ?? 0;
      if (bytes.length < least)
        parser.problem(`${name} must have at least ${least} bytes for ${algorithm} (RFC 7518 §3.2)`);
      else keys.push(secretKey(bytes, algorithm, kid));
    }
    if (bytes.length > 0 && bytes.every((byte) => byte === bytes[0])) parser.problem(`${name} repeats one byte`);
  }
  return () => fixedKeys(new KeySet(keys));
}

function parseInline(
  parser: OptionsParser,
  where: string,
  jwks: unknown,
  algorithms: readonly JwtAlgorithm[],
): KeySourceFactory {
  const listed = (jwks as Partial<JwkSet> | null)?.keys;
  if (algorithms.some(isHmac) && Array.isArray(listed)) return parseInlineSecrets(parser, where, listed, algorithms);
  const read = readKeySet(jwks, algorithms);
  if (read === undefined) {
    parser.problem(`${where}.jwks must be a JWK set: { keys: [...] }`);
    return unusable;
  }
  for (const problem of read.problems) parser.problem(`${where}.jwks.${problem}`);
  return () => fixedKeys(read.set);
}

/** An inline set of shared secrets (`kty: 'oct'`), nothing else beside them. */
function parseInlineSecrets(
  parser: OptionsParser,
  where: string,
  listed: readonly unknown[],
  algorithms: readonly JwtAlgorithm[],
): KeySourceFactory {
  const secrets: { bytes: Uint8Array; kid?: string; alg?: string }[] = [];
  for (const [index, jwk] of listed.entries()) {
    const { kty, k, kid, use, alg } = (jwk ?? {}) as Record<string, unknown>;
    const usable =
      kty === 'oct' &&
      typeof k === 'string' &&
      (kid === undefined || typeof kid === 'string') &&
      (use === undefined || use === 'sig') &&
      (alg === undefined || algorithms.includes(alg as JwtAlgorithm));
    if (!parser.check(usable, `${where}.jwks.keys[${index}] is no shared secret for the HS algorithms`)) continue;
    secrets.push({
      bytes: Buffer.from(k as string, 'base64url'),
      kid: kid as string | undefined,
      alg: alg as string | undefined,
    });
  }
  return hmacKeys(parser, `${where}.jwks.keys[].k`, secrets, algorithms);
}

function parseRemote(
  parser: OptionsParser,
  where: string,
  options: Readonly<Record<string, unknown>>,
  kind: 'jwksUri' | 'discover' | 'jwksFile',
  issuer: string,
  algorithms: readonly JwtAlgorithm[],
): KeySourceFactory {
  const seconds = (name: keyof RefreshSettings, fallback: number, max: number, min = 0): number =>
    parser.number(`${where}.${name}`, options[name], fallback, { min, max });
  const settings: RefreshSettings = {
    cooldownSeconds: seconds('cooldownSeconds', 30, 86_400),
    timeoutSeconds: seconds('timeoutSeconds', 5, 300, 0.001),
    maxAgeSeconds: seconds('maxAgeSeconds', 600, 86_400, 0.001),
    maxStaleSeconds: seconds('maxStaleSeconds', 86_400, 31_536_000),
  };
  const maxBytes = parser.number(`${where}.maxBytes`, options.maxBytes, 1_048_576, { min: 1, integer: true });
  const allowHttp = parser.oneOf(`${where}.dangerouslyAllowHttp`, options.dangerouslyAllowHttp, [true], undefined);
  parser.check(
    settings.maxStaleSeconds >= settings.maxAgeSeconds,
    `${where}.maxStaleSeconds must be at least maxAgeSeconds`,
  );
  const isAllowed = (url: string): boolean => isFetchable(url, allowHttp === true);

  const load = (fetch: Fetch): LoadKeys => {
    const get = (url: string, signal: AbortSignal) => fetchJson(url, {}, { fetch, maxBytes, signal });
    if (kind === 'jwksUri') return (signal) => get(String(options.jwksUri), signal);
    if (kind === 'jwksFile') return () => readJsonFile(String(options.jwksFile), maxBytes);
    return async (signal) => get(await discoverJwksUri(issuer, (url) => get(url, signal), isAllowed), signal);
  };
  if (kind === 'jwksFile') parser.string(`${where}.jwksFile`, options.jwksFile);
  else if (kind === 'jwksUri') {
    parser.check(isAllowed(String(options.jwksUri)), `${where}.jwksUri must be an https URL (http on this machine)`);
  } else {
    parser.check(options.discover === true, `${where}.discover must be true`);
    // RFC 8414 §2: an issuer with a query or a fragment has no metadata location.
    const found = isAllowed(issuer) && !/[?#]/.test(issuer);
    parser.check(found, `${where}.discover needs an issuer that is an https URL without query and fragment`);
  }
  return ({ fetch, clock, hooks }) =>
    new RefreshedKeys(load(fetch), algorithms.map(canonicalAlgorithm), settings, hooks, clock);
}

async function readJsonFile(path: string, maxBytes: number): Promise<unknown> {
  const bytes = await readFile(path);
  if (bytes.length > maxBytes) throw new FetchError(`the file is longer than ${maxBytes} bytes`);
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch {
    throw new FetchError('the file is no JSON');
  }
}

/** Whether keys may be fetched from there: over TLS, or from this machine. No credentials stand in the URL. */
export function isFetchable(text: string, allowHttp: boolean): boolean {
  if (!URL.canParse(text)) return false;
  const { protocol, hostname, username, password } = new URL(text);
  if (username !== '' || password !== '') return false;
  const isLocal = /^(?:localhost|.+\.localhost|127(?:\.\d{1,3}){3}|\[::1\])$/.test(hostname);
  return protocol === 'https:' || (protocol === 'http:' && (allowHttp || isLocal));
}

function isJsonObject(text: string): boolean {
  if (!text.startsWith('{')) return false;
  try {
    return typeof JSON.parse(text) === 'object';
  } catch {
    return false;
  }
}

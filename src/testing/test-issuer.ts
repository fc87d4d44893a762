import { constants, generateKeyPairSync, type KeyObject, randomUUID, sign } from 'node:crypto';
import type { JwtIssuerOptions } from '../authenticate/jwt-issuer.js';
import { jwtVerifier } from '../authenticate/jwt-verifier.js';
import type { Verifier } from '../authenticate/verifier.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { JWK } from '../keys/jwk.js';
import { isHmac, JWT_ALGORITHMS, type JwtAlgorithm } from '../keys/jwt-algorithm.js';
import { thumbprint } from '../keys/thumbprint.js';
import { type Clock, systemClock } from '../runtime/clock.js';

/** What a test issuer signs with. */
export type TestAlgorithm = Exclude<JwtAlgorithm, 'HS256' | 'HS384' | 'HS512'>;

export interface TestIssuerOptions {
  /** Default `https://issuer.test`. */
  readonly issuer?: string;
  /** Default `https://api.test`. */
  readonly audience?: string;
  /** Default `ES256`. */
  readonly algorithm?: TestAlgorithm;
  readonly clock?: Clock;
}

/** An issuer of JWTs for tests: a fresh key that lives in memory, and tokens with whatever claims a test needs. */
export interface TestIssuer {
  readonly issuer: string;
  readonly audience: string;
  readonly algorithm: TestAlgorithm;
  /** The public key. */
  readonly jwks: { readonly keys: readonly JWK[] };
  /**
   * A signed access token (RFC 9068) of the user `user-1` for the client `client-1`, valid for 300 seconds.
   *
   * @param claims added to the claims or replacing them; undefined leaves one out.
   */
  token(claims?: Readonly<Record<string, unknown>>, options?: { readonly expiresInSeconds?: number }): string;
  /** A `jwtVerifier` that takes these tokens. */
  verifier(options?: Partial<JwtIssuerOptions> & { readonly name?: string; readonly clock?: Clock }): Verifier;
}

const ALGORITHMS = JWT_ALGORITHMS.filter((name): name is TestAlgorithm => !isHmac(name));

/** Makes a test issuer with a fresh key. Nothing listens anywhere: the verifier gets the key inline. */
export async function testIssuer(given: TestIssuerOptions = {}): Promise<TestIssuer> {
  const parser = new OptionsParser('testIssuer');
  const options = parser.known(given, ['issuer', 'audience', 'algorithm', 'clock']);
  const algorithm = parser.oneOf('algorithm', options.algorithm, ALGORITHMS, 'ES256');
  parser.done();
  const { issuer = 'https://issuer.test', audience = 'https://api.test', clock = systemClock } = options;
  const { publicKey, privateKey } = generate(algorithm);
  const publicJwk = publicKey.export({ format: 'jwk' }) as JWK;
  const kid = thumbprint(publicJwk);
  const jwks = { keys: [{ ...publicJwk, kid, alg: algorithm, use: 'sig' }] };
  const header = encode({ alg: algorithm, typ: 'at+jwt', kid });
  return {
    issuer,
    audience,
    algorithm,
    jwks,
    token(claims = {}, { expiresInSeconds = 300 } = {}) {
      const iat = Math.floor(clock.now() / 1_000);
      const payload = encode({
        iss: issuer,
        aud: audience,
        sub: 'user-1',
        client_id: 'client-1',
        jti: randomUUID(),
        iat,
        exp: iat + expiresInSeconds,
        ...claims,
      });
      const input = `${header}.${payload}`;
      return `${input}.${signatureOf(input, algorithm, privateKey).toString('base64url')}`;
    },
    verifier(overrides = {}) {
      return jwtVerifier({ issuer, audience, algorithms: [algorithm], keys: { jwks }, clock, ...overrides });
    },
  };
}

function generate(algorithm: TestAlgorithm): { publicKey: KeyObject; privateKey: KeyObject } {
  switch (algorithm) {
    case 'ES256':
      return generateKeyPairSync('ec', { namedCurve: 'P-256' });
    case 'ES384':
      return generateKeyPairSync('ec', { namedCurve: 'P-384' });
    case 'ES512':
      return generateKeyPairSync('ec', { namedCurve: 'P-521' });
    case 'Ed25519':
    case 'EdDSA':
      return generateKeyPairSync('ed25519');
    default:
      return generateKeyPairSync('rsa', { modulusLength: 2_048 });
  }
}

/** RFC 7518 §3.3 to §3.5, RFC 8037 §3.1. */
function signatureOf(input: string, algorithm: TestAlgorithm, key: KeyObject): Buffer {
  const hash = algorithm.startsWith('Ed') ? null : `sha${algorithm.slice(2)}`;
  return sign(hash, Buffer.from(input), {
    key,
    dsaEncoding: 'ieee-p1363',
    ...(algorithm.startsWith('PS')
      ? { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_DIGEST }
      : {}),
  });
}

function encode(value: unknown): string {
  return Buffer.from(JSON.stringify(value)).toString('base64url');
}

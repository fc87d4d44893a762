import { constants, createHmac, createPublicKey, type KeyObject, timingSafeEqual, verify } from 'node:crypto';
import { promisify } from 'node:util';
import type { JWK } from './jwk.js';
import { algorithmRule, canonicalAlgorithm, type JwtAlgorithm } from './jwt-algorithm.js';
import { thumbprint } from './thumbprint.js';

/** One key with its one algorithm (RFC 8725 §3.1). */
export interface VerificationKey {
  /** Its `kid`, else its thumbprint (RFC 7638). Absent for a shared secret without a `kid`. */
  readonly keyId: string | undefined;
  readonly algorithm: JwtAlgorithm;
  /** The same for the same key material and algorithm only. It tells nothing of a secret. */
  readonly fingerprint: string;
  /** Bytes of every signature by an RSA key (RFC 8017 §8.1.2): OpenSSL takes a PSS signature without its leading zeros, too. */
  readonly signatureBytes?: number | undefined;
  /** Whether a signature is by this key (RFC 7515 §5.2). */
  verify(input: Buffer, signature: Buffer): boolean;
  /** The same in the thread pool. Absent where it is not worth the way. */
  readonly verifyInPool?: (input: Buffer, signature: Buffer) => Promise<boolean>;
}

const MIN_RSA_BITS = 2_048;
/** An RSA key beyond this only serves to make a verification expensive. */
const MAX_RSA_BITS = 16_384;

/**
 * Reads a public JWK (RFC 7517) for verifying.
 *
 * @param algorithms the algorithms that the verifier takes. A key without `alg` serves the first of them that it fits.
 * @returns what is wrong with the key, in words that hold nothing of it, when it must not be used.
 */
export function readPublicKey(jwk: unknown, algorithms: readonly JwtAlgorithm[]): VerificationKey | string {
  if (typeof jwk !== 'object' || jwk === null) return 'is no object';
  const { kty, kid, use, key_ops: operations, alg } = jwk as Record<string, unknown>;
  if (kty === 'oct') return 'is a shared secret, which never stands beside or instead of public keys';
  if (kid !== undefined && (typeof kid !== 'string' || kid === '')) return 'has a "kid" that is no string';
  if (use !== undefined && use !== 'sig') return 'has a "use" other than "sig"';
  if (operations !== undefined && !(Array.isArray(operations) && operations.includes('verify'))) {
    return 'has "key_ops" without "verify"';
  }
  for (const member of ['d', 'p', 'q', 'k', 'priv']) {
    if (Object.hasOwn(jwk, member)) return 'holds private key material';
  }
  const algorithm = algorithmOf(jwk as Record<string, unknown>, algorithms);
  if (algorithm === undefined) {
    return alg === undefined
      ? 'fits none of the algorithms by its type and curve'
      : 'has an "alg" that it may not serve';
  }
  const members = publicMembers(jwk as Record<string, unknown>);
  if (members === undefined) return 'lacks a member, or one is not canonical base64url';
  const weakness = members.kty === 'RSA' ? rsaWeakness(members.n as string, members.e as string) : undefined;
  if (weakness !== undefined) return weakness;
  let key: KeyObject;
  try {
    // Also checks that a point is on its curve.
    key = createPublicKey({ key: members, format: 'jwk' });
  } catch {
    return 'is no valid key';
  }
  const print = thumbprint(members);
  const modulusLength = key.asymmetricKeyDetails?.modulusLength;
  return {
    keyId: (kid as string | undefined) ?? print,
    algorithm,
    fingerprint: `${algorithm}.${print}`,
    signatureBytes: modulusLength && Math.ceil(modulusLength / 8),
    ...verification(key, algorithm),
  };
}

/**
 * A shared secret for verifying HMACs.
 *
 * @param keyId its `kid`, if it has one.
 */
export function secretKey(secret: Uint8Array, algorithm: JwtAlgorithm, keyId?: string): VerificationKey {
  const bytes = Uint8Array.from(secret);
  const hash = hashOf(algorithm);
  return {
    keyId,
    algorithm,
    fingerprint: `${algorithm}.secret`,
    verify(input, signature) {
      const mac = createHmac(hash, bytes).update(input).digest();
      return mac.length === signature.length && timingSafeEqual(mac, signature);
    },
  };
}

const verifyInPool = promisify(verify);

/** Both ways ask the same function the same (RFC 7518 §3, RFC 8037 §3.1). A PSS salt is as long as the hash. */
function verification(
  key: KeyObject,
  algorithm: JwtAlgorithm,
): Required<Pick<VerificationKey, 'verify' | 'verifyInPool'>> {
  const hash = algorithm === 'Ed25519' ? null : hashOf(algorithm);
  const padding = algorithm.startsWith('PS') ? constants.RSA_PKCS1_PSS_PADDING : undefined;
  const saltLength = constants.RSA_PSS_SALTLEN_DIGEST;
  const options = { key, dsaEncoding: 'ieee-p1363', padding, saltLength } as const;
  return {
    verify: (input, signature) => verify(hash, input, options, signature),
    verifyInPool: (input, signature) => verifyInPool(hash, input, options, signature),
  };
}

/** The hash of every algorithm but Ed25519, as OpenSSL calls it. */
function hashOf(algorithm: JwtAlgorithm): string {
  return `sha${algorithm.slice(2)}`;
}

function algorithmOf(jwk: Record<string, unknown>, algorithms: readonly JwtAlgorithm[]): JwtAlgorithm | undefined {
  const fitting = algorithms.find((name) => {
    const rule = algorithmRule(name);
    if (rule === undefined || rule.kty !== jwk.kty || (rule.crv !== undefined && rule.crv !== jwk.crv)) return false;
    if (jwk.alg === undefined) return true;
    return typeof jwk.alg === 'string' && canonicalAlgorithm(jwk.alg) === canonicalAlgorithm(name);
  });
  return fitting === undefined ? undefined : canonicalAlgorithm(fitting);
}

/** Only what the key is made of: nothing else of a JWK reaches the import. */
function publicMembers({ kty, crv, x, y, n, e }: Record<string, unknown>): (JWK & { kty: string }) | undefined {
  if (kty === 'RSA') return isBase64url(n) && isBase64url(e) ? { kty, n, e } : undefined;
  if (kty === 'EC') return isBase64url(x) && isBase64url(y) ? { kty, crv: String(crv), x, y } : undefined;
  return isBase64url(x) ? { kty: 'OKP', crv: String(crv), x } : undefined;
}

function isBase64url(value: unknown): value is string {
  return typeof value === 'string' && value !== '' && Buffer.from(value, 'base64url').toString('base64url') === value;
}

function rsaWeakness(n: string, e: string): string | undefined {
  const modulus = Buffer.from(n, 'base64url');
  const first = modulus.findIndex((byte) => byte !== 0);
  const bits = first === -1 ? 0 : (modulus.length - first) * 8 - (Math.clz32(modulus[first] as number) - 24);
  if (bits < MIN_RSA_BITS) return `is an RSA key of fewer than ${MIN_RSA_BITS} bits`;
  if (bits > MAX_RSA_BITS) return `is an RSA key of more than ${MAX_RSA_BITS} bits`;
  const exponent = BigInt(`0x${Buffer.from(e, 'base64url').toString('hex')}`);
  // With the exponent 1 every message is its own signature.
  if (exponent < 3n || exponent % 2n === 0n || exponent >= 2n ** 64n) return 'is an RSA key with a bad exponent';
  return undefined;
}

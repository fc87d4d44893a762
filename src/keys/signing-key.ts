import {
  createPrivateKey,
  createPublicKey,
  generateKeyPair,
  type KeyObject,
  sign as signData,
  verify,
} from 'node:crypto';
import { promisify } from 'node:util';
import { withDeadline } from '../runtime/deadline.js';
import type { JWK } from './jwk.js';
import { thumbprint } from './thumbprint.js';

/** What a key ring signs with: RFC 7518 §3.3 and §3.4, and RFC 9864 for the name `Ed25519`. */
export type SigningAlgorithm = 'ES256' | 'Ed25519' | 'RS256';

export const SIGNING_ALGORITHMS: readonly SigningAlgorithm[] = ['ES256', 'Ed25519', 'RS256'];

/** One immutable snapshot per signature: the header's `kid` and `alg` always belong to the key that signs. */
export interface Signer {
  readonly kid: string;
  readonly alg: SigningAlgorithm;
  /** The raw JWS signature (RFC 7515 §5.1 step 5) over the signing input. */
  readonly sign: (input: Uint8Array) => Uint8Array | Promise<Uint8Array>;
}

/** A key that lives elsewhere, in a KMS or an HSM, and signs when asked. */
export interface ExternalKey {
  /** A public P-256, Ed25519 or RSA key of at least 2048 bits. */
  readonly publicKey: JWK;
  /**
   * Signs the input: ECDSA with SHA-256 (raw or DER), Ed25519, or RSASSA-PKCS1-v1_5 with SHA-256. It has 5 seconds.
   */
  readonly sign: (
    input: Uint8Array,
    key: { readonly kid: string; readonly alg: SigningAlgorithm },
  ) => Uint8Array | Promise<Uint8Array>;
}

/** A key that is ready to sign, and its public half as it is published. */
export interface SigningKey {
  readonly signer: Signer;
  readonly publicJwk: JWK;
  /** Absent for an external key. */
  readonly privateJwk?: JWK;
}

/** Milliseconds that an external key has for one signature. */
const EXTERNAL_SIGN_MS = 5_000;
/** Bytes of a raw ES256 signature (RFC 7518 §3.4). */
const ES256_BYTES = 64;

/** What a key signs once, to show that its two halves belong together. */
const PROBE = Buffer.from('tollkeeper: is this the right key?');

const generate = promisify(generateKeyPair);

/** A fresh key. */
export async function generateSigningKey(algorithm: SigningAlgorithm): Promise<SigningKey> {
  const { privateKey } =
    algorithm === 'ES256'
      ? await generate('ec', { namedCurve: 'P-256' })
      : algorithm === 'Ed25519'
        ? await generate('ed25519')
        : await generate('rsa', { modulusLength: 2048 });
  return fromPrivateKey(privateKey);
}

/**
 * A private key as a JWK (RFC 7517) or as PEM in PKCS#8.
 *
 * @throws TypeError with fixed text, and without a cause: an error of the parser may quote what it read.
 */
export function importSigningKey(material: string | JWK): SigningKey {
  if (typeof material === 'string') return fromPrivateKey(parsePrivate({ key: material, format: 'pem' }));
  if (typeof material !== 'object' || material === null)
    throw new TypeError('a key must be PKCS#8 PEM or a private JWK');
  if (typeof material.d !== 'string') throw new TypeError('a JWK has no private part');
  if (material.use !== undefined && material.use !== 'sig') throw new TypeError('a JWK is not for signatures ("use")');
  if (material.key_ops !== undefined && !(Array.isArray(material.key_ops) && material.key_ops.includes('sign'))) {
    throw new TypeError('a JWK is not for signing ("key_ops")');
  }
  const key = fromPrivateKey(parsePrivate({ key: { ...material }, format: 'jwk' }));
  checkAlg(material, key.signer.alg);
  return key;
}

/**
 * A key that lives elsewhere.
 *
 * @throws TypeError when the public key is unusable; an Error when the probe signature does not verify with it.
 */
export async function importExternalKey(external: ExternalKey): Promise<SigningKey> {
  if (typeof external?.sign !== 'function') throw new TypeError('an external key needs a sign function');
  const { publicKey, sign } = external;
  if (typeof publicKey !== 'object' || publicKey === null)
    throw new TypeError('an external key needs its publicKey, a JWK');
  if (publicKey.d !== undefined) throw new TypeError('the publicKey of an external key has a private part');
  let key: KeyObject;
  try {
    key = createPublicKey({ key: { ...publicKey }, format: 'jwk' });
  } catch {
    throw new TypeError('the publicKey of an external key is no usable JWK');
  }
  const alg = algorithmOf(key);
  checkAlg(publicKey, alg);
  const jwk = published(key, alg);
  const names = Object.freeze({ kid: jwk.kid as string, alg });
  const signer: Signer = Object.freeze({
    ...names,
    async sign(input: Uint8Array) {
      const signature = await withDeadline(EXTERNAL_SIGN_MS, async () => sign(input, names));
      if (!(signature instanceof Uint8Array)) throw new TypeError('the sign function must resolve to bytes');
      return alg === 'ES256' ? rawSignature(signature) : signature;
    },
  });
  if (!verifies(key, alg, await signer.sign(PROBE))) {
    throw new Error('the sign function does not sign with the key that publicKey names');
  }
  return { signer, publicJwk: jwk };
}

function fromPrivateKey(privateKey: KeyObject): SigningKey {
  const publicKey = createPublicKey(privateKey);
  const alg = algorithmOf(publicKey);
  const publicJwk = published(publicKey, alg);
  // Built once: node:crypto reads the same object for every signature. Ed25519 hashes by itself.
  const digest = digestOf(alg);
  const key = Object.freeze({ key: privateKey, dsaEncoding: 'ieee-p1363' as const });
  const sign = (input: Uint8Array): Uint8Array => signData(digest, input, key);
  // OpenSSL takes a JWK whose public and private parts are of two keys: nobody could verify what it signs.
  if (!verifies(publicKey, alg, sign(PROBE))) throw new TypeError('the parts of a private key do not belong together');
  return {
    signer: Object.freeze({ kid: publicJwk.kid as string, alg, sign }),
    publicJwk,
    privateJwk: Object.freeze({ ...privateKey.export({ format: 'jwk' }), alg }) as JWK,
  };
}

function parsePrivate(input: Parameters<typeof createPrivateKey>[0]): KeyObject {
  try {
    return createPrivateKey(input);
  } catch {
    throw new TypeError('a private key cannot be read: it must be PKCS#8 PEM without a passphrase, or a JWK');
  }
}

function verifies(publicKey: KeyObject, alg: SigningAlgorithm, signature: Uint8Array): boolean {
  return verify(digestOf(alg), PROBE, { key: publicKey, dsaEncoding: 'ieee-p1363' }, signature);
}

function digestOf(alg: SigningAlgorithm): 'sha256' | null {
  return alg === 'Ed25519' ? null : 'sha256';
}

/** One algorithm per key (RFC 8725 §3.1): it follows from the key alone. */
function algorithmOf(key: KeyObject): SigningAlgorithm {
  const { namedCurve, modulusLength = 0, publicExponent = 0n } = key.asymmetricKeyDetails ?? {};
  if (key.asymmetricKeyType === 'ed25519') return 'Ed25519';
  if (key.asymmetricKeyType === 'ec' && namedCurve === 'prime256v1') return 'ES256';
  if (key.asymmetricKeyType !== 'rsa') throw new TypeError('a signing key must be P-256, Ed25519 or RSA');
  // RFC 7518 §3.3; with an exponent of 1, anybody can sign.
  if (modulusLength < 2048 || publicExponent < 3n) {
    throw new TypeError('an RSA key must have at least 2048 bits and an exponent of at least 3');
  }
  return 'RS256';
}

function checkAlg(jwk: JWK, alg: SigningAlgorithm): void {
  if (jwk.alg === undefined || jwk.alg === alg || (alg === 'Ed25519' && jwk.alg === 'EdDSA')) return;
  throw new TypeError(`a JWK states another algorithm than ${alg}`);
}

function published(publicKey: KeyObject, alg: SigningAlgorithm): JWK {
  const jwk = publicKey.export({ format: 'jwk' }) as JWK;
  return Object.freeze({ ...jwk, kid: thumbprint(jwk), alg, use: 'sig' });
}

/** ECDSA signatures of most KMS are DER: SEQUENCE { INTEGER r, INTEGER s }. JWS wants r and s, 32 bytes each. */
function rawSignature(signature: Uint8Array): Uint8Array {
  if (signature.length === ES256_BYTES) return signature;
  const raw = new Uint8Array(ES256_BYTES);
  let offset = 2;
  for (const end of [32, 64]) {
    const length = signature[offset + 1] ?? 0;
    const integer = signature.subarray(offset + 2, offset + 2 + length);
    const digits = integer[0] === 0 ? integer.subarray(1) : integer;
    if (signature[0] !== 0x30 || signature[offset] !== 0x02 || digits.length === 0 || digits.length > 32) {
      throw new TypeError('the sign function gave no ECDSA signature of P-256');
    }
    raw.set(digits, end - digits.length);
    offset += 2 + length;
  }
  return raw;
}

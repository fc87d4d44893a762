/** A JWS algorithm that a verifier can be told to take (RFC 7518 §3.1, RFC 8037, RFC 9864). `none` cannot be expressed. */
export type JwtAlgorithm =
  | 'ES256'
  | 'ES384'
  | 'ES512'
  | 'Ed25519'
  /** The older name of `Ed25519` (RFC 9864): each of the two stands for both. */
  | 'EdDSA'
  | 'RS256'
  | 'RS384'
  | 'RS512'
  | 'PS256'
  | 'PS384'
  | 'PS512'
  | 'HS256'
  | 'HS384'
  | 'HS512';

interface AlgorithmRule {
  readonly kty: 'EC' | 'OKP' | 'RSA' | 'oct';
  readonly crv?: string;
  /** RFC 7518 §3.2: an HMAC key is at least as long as the hash. */
  readonly minSecretBytes?: number;
}

const RULES: Readonly<Record<JwtAlgorithm, AlgorithmRule>> = {
  ES256: { kty: 'EC', crv: 'P-256' },
  ES384: { kty: 'EC', crv: 'P-384' },
  ES512: { kty: 'EC', crv: 'P-521' },
  Ed25519: { kty: 'OKP', crv: 'Ed25519' },
  EdDSA: { kty: 'OKP', crv: 'Ed25519' },
  RS256: { kty: 'RSA' },
  RS384: { kty: 'RSA' },
  RS512: { kty: 'RSA' },
  PS256: { kty: 'RSA' },
  PS384: { kty: 'RSA' },
  PS512: { kty: 'RSA' },
  HS256: { kty: 'oct', minSecretBytes: 32 },
  HS384: { kty: 'oct', minSecretBytes: 48 },
  HS512: { kty: 'oct', minSecretBytes: 64 },
};

/** Every algorithm, for messages. */
export const JWT_ALGORITHMS = Object.freeze(Object.keys(RULES)) as readonly JwtAlgorithm[];

/** What kind of key an algorithm takes; undefined for a name that is not on the (case-sensitive) list. */
export function algorithmRule(name: unknown): AlgorithmRule | undefined {
  return typeof name === 'string' && Object.hasOwn(RULES, name) ? RULES[name as JwtAlgorithm] : undefined;
}

/** `EdDSA` and `Ed25519` are two names of one algorithm (RFC 9864 §2.2): everything inside uses the new one. */
export function canonicalAlgorithm(name: string): JwtAlgorithm {
  return (name === 'EdDSA' ? 'Ed25519' : name) as JwtAlgorithm;
}

/** Whether an algorithm is an HMAC: it takes a shared secret, and never stands beside asymmetric ones. */
export function isHmac(name: string): boolean {
  return name.startsWith('HS');
}

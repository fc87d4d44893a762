import type { JwtAlgorithm } from './jwt-algorithm.js';
import { readPublicKey, type VerificationKey } from './verification-key.js';

/** The verification keys of one issuer at one moment. Immutable. */
export class KeySet {
  readonly #byAlgorithm = new Map<JwtAlgorithm, VerificationKey[]>();
  readonly keys: readonly VerificationKey[];

  constructor(keys: readonly VerificationKey[]) {
    this.keys = keys;
    for (const key of keys) {
      const listed = this.#byAlgorithm.get(key.algorithm);
      if (listed === undefined) this.#byAlgorithm.set(key.algorithm, [key]);
      else listed.push(key);
    }
  }

  /**
   * The key of that `kid`; without a `kid`, the only key of that algorithm: where there are several, none is guessed. A shared
   * secret that stands alone and has no `kid` is asked about any: issuers name their secrets, and configurations do not.
   */
  find(algorithm: JwtAlgorithm, kid: string | undefined): VerificationKey | undefined {
    const keys = this.#byAlgorithm.get(algorithm);
    if (keys === undefined) return undefined;
    if (kid === undefined) return keys.length === 1 ? keys[0] : undefined;
    const named = keys.find((key) => key.keyId === kid);
    if (named !== undefined || keys.length > 1) return named;
    return keys[0]?.keyId === undefined ? keys[0] : undefined;
  }

  /** The ids of keys that `next` lacks, or has with other key material. */
  withdrawnIn(next: KeySet): string[] {
    const kept = new Set(next.keys.map(identified));
    const withdrawn = this.keys.filter((key) => !kept.has(identified(key))).map((key) => key.keyId);
    return [...new Set(withdrawn)].filter((keyId) => keyId !== undefined);
  }
}

/** What a JWKS holds that can be used, and what is wrong with the rest. */
export interface ReadKeySet {
  readonly set: KeySet;
  readonly problems: readonly string[];
}

/**
 * Reads a JWK set (RFC 7517 §5).
 *
 * @returns undefined when it is no JWK set at all.
 */
export function readKeySet(jwks: unknown, algorithms: readonly JwtAlgorithm[]): ReadKeySet | undefined {
  const listed = typeof jwks === 'object' && jwks !== null ? (jwks as { keys?: unknown }).keys : undefined;
  if (!Array.isArray(listed)) return undefined;
  const keys: VerificationKey[] = [];
  const problems: string[] = [];
  const seen = new Set<string>();
  for (const [index, jwk] of listed.entries()) {
    const key = readPublicKey(jwk, algorithms);
    if (typeof key === 'string') {
      problems.push(`keys[${index}] ${key}`);
      continue;
    }
    const name = `${key.algorithm} ${key.keyId}`;
    if (seen.has(name)) {
      problems.push(`keys[${index}] has the "kid" of another key`);
      continue;
    }
    seen.add(name);
    keys.push(key);
  }
  return { set: new KeySet(keys), problems };
}

function identified({ keyId, fingerprint }: VerificationKey): string {
  return JSON.stringify([keyId, fingerprint]);
}

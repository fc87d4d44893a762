import type { JWK } from './jwk.js';
import type { SigningAlgorithm } from './signing-key.js';

/**
 * - `next`: published, not signing yet.
 * - `active`: published and signing; exactly one.
 * - `retiring`: published, verifying only.
 * - `retired`: withdrawn, because nothing that it signed can still be valid.
 * - `revoked`: withdrawn at once.
 */
export type KeyState = 'next' | 'active' | 'retiring' | 'retired' | 'revoked';

/** One key as it is stored. Instants are epoch seconds, with fractions. */
export interface KeyRecord {
  /** The RFC 7638 thumbprint. */
  readonly kid: string;
  readonly alg: SigningAlgorithm;
  readonly state: KeyState;
  readonly publicJwk: JWK;
  /** Absent for external keys, and once the key is retired or revoked. A store may encrypt it. */
  readonly privateJwk?: JWK;
  /** Since when it is published. */
  readonly stagedAt: number;
  readonly activatedAt?: number;
  /** When it signed last: another key took over. */
  readonly retiringAt?: number;
  /** When it was withdrawn. */
  readonly endedAt?: number;
}

/** What a store holds: the whole ring, so that one write changes it. */
export interface StoredKeyRing {
  /** 1 for the first that was saved, and one more with every save. */
  readonly version: number;
  readonly keys: readonly KeyRecord[];
}

/** Where several processes keep one key ring. The records hold private keys: guard the store like them. */
export interface KeyStore {
  /** The ring, or undefined when none was saved yet. */
  load(signal: AbortSignal): Promise<StoredKeyRing | undefined>;
  /**
   * Saves the ring as version `expectedVersion + 1` if the stored version is `expectedVersion` (0: nothing is stored),
   * atomically.
   *
   * @returns false when somebody else was faster.
   */
  save(keys: readonly KeyRecord[], expectedVersion: number, signal: AbortSignal): Promise<boolean>;
}

/** A store in memory, for tests and for several rings in one process. */
export function memoryKeyStore(): KeyStore {
  let stored: StoredKeyRing | undefined;
  return {
    async load() {
      return stored;
    },
    async save(keys, expectedVersion) {
      if ((stored?.version ?? 0) !== expectedVersion) return false;
      stored = { version: expectedVersion + 1, keys: structuredClone(keys) };
      return true;
    },
  };
}

import { OptionsParser } from '../errors/options-parser.js';
import type { Revocations } from '../revocation/revocations.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import type { JWK } from './jwk.js';
import type { KeyStore } from './key-store.js';
import { type ExternalKey, SIGNING_ALGORITHMS, type SigningAlgorithm } from './signing-key.js';

/** Where the private keys of a ring come from. The first one signs; the others are published as `next`. */
export type KeyRingSource =
  /**
   * PKCS#8 PEM, a private JWK or a JWK set. The file is read anew every `reloadSeconds`: its first key signs once it has
   * been published for `publishSeconds`, further ones are published, and one that has left it verifies for `keepSeconds`.
   */
  | { readonly file: string | URL }
  /** A store that several processes share. An empty one gets its first key when the ring is created. */
  | { readonly store: KeyStore }
  /** PKCS#8 PEM or private JWKs, for keys that a secret manager hands over. */
  | { readonly privateKeys: readonly (string | JWK)[] }
  /** Keys that live in a KMS or an HSM, and sign by a callback. */
  | { readonly external: readonly ExternalKey[] };

export interface KeyRingOptions {
  /** What the keys that the ring makes are for. Default ES256. Where keys are given, they decide; if stated, the first must agree. */
  readonly algorithm?: SigningAlgorithm;
  /** Default: one fresh key in memory, for one process. */
  readonly keys?: KeyRingSource;
  /**
   * Seconds between publishing a key and signing with it: at least the cache life of the verifiers' key sets plus the time
   * that the processes of the issuer need to learn of it. Default 960: `max-age` of 300, 600 in stock verifiers, 60 of propagation.
   */
  readonly publishSeconds?: number;
  /**
   * Seconds between the last signature and withdrawing a key: at least the longest token's life plus skew and propagation.
   * Default 86520: tokens of a day, and two minutes. An issuer raises it to what its longest token needs.
   */
  readonly keepSeconds?: number;
  /** Seconds between two looks at the file or the store. Default 30. */
  readonly reloadSeconds?: number;
  /** Seconds without a successful look at the store after which nothing is signed any more. Default 900. */
  readonly maxStaleSeconds?: number;
  /** Told of a revoked key, so that verifiers with a cached key set refuse what it signed. */
  readonly revocations?: Pick<Revocations, 'revoke'>;
  /** Told when a look at the file or the store failed; the ring goes on with the keys that it has. */
  readonly onReloadError?: (error: Error) => void;
  readonly clock?: Clock;
}

const OPTIONS: readonly (keyof KeyRingOptions)[] = [
  'algorithm',
  'keys',
  'publishSeconds',
  'keepSeconds',
  'reloadSeconds',
  'maxStaleSeconds',
  'revocations',
  'onReloadError',
  'clock',
];
/** The sources, of which one is given. */
interface Sources {
  readonly file?: string | URL;
  readonly store?: KeyStore;
  readonly privateKeys?: readonly (string | JWK)[];
  readonly external?: readonly ExternalKey[];
}

const SOURCES: readonly (keyof Sources)[] = ['file', 'store', 'privateKeys', 'external'];

/** What a ring works with: one of the four sources, or none. */
export type KeyRingSettings = ReturnType<typeof parseKeyRingOptions>;

/** @throws TypeError that lists every problem. */
export function parseKeyRingOptions(given: KeyRingOptions) {
  const parser = new OptionsParser('createKeyRing');
  const options = parser.known(given, OPTIONS);
  if (options.algorithm !== undefined) parser.oneOf('algorithm', options.algorithm, SIGNING_ALGORITHMS, 'ES256');
  const source: Sources = options.keys === undefined ? {} : parser.known(options.keys as Sources, SOURCES, 'keys');
  if (options.keys !== undefined && Object.keys(source).length !== 1) {
    parser.problem(`keys must have one of ${SOURCES.join(', ')}`);
  }
  if ('file' in source && !(source.file instanceof URL)) parser.string('keys.file', source.file);
  if ('store' in source && (typeof source.store?.load !== 'function' || typeof source.store.save !== 'function')) {
    parser.problem('keys.store must have load and save');
  }
  for (const name of ['privateKeys', 'external'] as const) {
    const list: unknown = source[name];
    if (name in source && !(Array.isArray(list) && list.length > 0)) {
      parser.problem(`keys.${name} must be an array with at least one key`);
    }
  }
  const numbers = {
    publishSeconds: parser.number('publishSeconds', options.publishSeconds, 960),
    keepSeconds: parser.number('keepSeconds', options.keepSeconds, 86_520),
    reloadSeconds: parser.number('reloadSeconds', options.reloadSeconds, 30, { min: 1, max: 86_400 }),
    maxStaleSeconds: parser.number('maxStaleSeconds', options.maxStaleSeconds, 900, { min: 1 }),
  };
  if (options.revocations !== undefined && typeof options.revocations?.revoke !== 'function') {
    parser.problem('revocations must come from createRevocations');
  }
  parser.optionalFunction('onReloadError', options.onReloadError);
  parser.done();
  const { algorithm, revocations, onReloadError, clock = systemClock } = options;
  const { file, store, privateKeys, external } = source;
  return { ...numbers, algorithm, file, store, privateKeys, external, revocations, onReloadError, clock };
}

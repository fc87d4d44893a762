import { RegistryError } from '../errors/registry-error.js';
import { withDeadline } from '../runtime/deadline.js';
import type { Lifecycle } from '../runtime/lifecycle.js';
import type { JWK } from './jwk.js';
import { readKeyFile } from './key-file.js';
import { type KeyRingOptions, type KeyRingSettings, parseKeyRingOptions } from './key-ring-options.js';
import type { KeyRecord, KeyState } from './key-store.js';
import {
  activatableAt,
  activated,
  isPublished,
  type KeyTimes,
  reconciled,
  retirableAt,
  retired,
  revoked,
} from './key-times.js';
import {
  type ExternalKey,
  generateSigningKey,
  importExternalKey,
  importSigningKey,
  type Signer,
  type SigningAlgorithm,
  type SigningKey,
} from './signing-key.js';

/** A key of the ring, without any secret. Instants are epoch seconds. */
export interface KeyInfo {
  readonly kid: string;
  readonly alg: SigningAlgorithm;
  readonly state: KeyState;
  readonly stagedAt: number;
  readonly activatedAt?: number;
  readonly retiringAt?: number;
  readonly endedAt?: number;
  /** With `next`: when it may sign. */
  readonly activatableAt?: number;
  /** With `retiring`: when it may be retired. */
  readonly retirableAt?: number;
}

/** The keys of one issuer, and the rules by which they follow each other. */
export interface KeyRing extends Lifecycle {
  readonly publishSeconds: number;
  /** As configured, or what an issuer that signs with the ring needs, if that is more. */
  readonly keepSeconds: number;
  /** An issuer states how long a key must be kept after its last signature, for its longest token. It never gets less. */
  keepAtLeast(seconds: number): void;
  /** Grows with every change. */
  readonly version: number;
  /** The published keys, public parts only: the active one first. Frozen, and the same object until something changes. */
  jwks(): { readonly keys: JWK[] };
  /** Every key, in the order in which they were staged. */
  keys(): readonly KeyInfo[];
  /** The key that signs, as it is now. @throws Error when the store has not been read for `maxStaleSeconds`. */
  signer(): Signer;
  /** Publishes a new key: a fresh one, or the external one that is given. It signs nothing yet. */
  stage(external?: ExternalKey): Promise<{ readonly kid: string }>;
  /**
   * Makes a `next` key sign; the active one becomes `retiring`.
   *
   * @throws RegistryError `conflict` before it has been published for `publishSeconds`, `not_found` for an unknown `kid`.
   */
  activate(kid: string): Promise<void>;
  /** Withdraws a key. @throws RegistryError `conflict` when it signs, or signed less than `keepSeconds` ago. */
  retire(kid: string): Promise<void>;
  /**
   * Withdraws a key at once, whatever it signed. If it signs, the `next` key takes over without delay.
   *
   * @throws RegistryError `conflict` when it signs and there is no `next` key.
   */
  revoke(kid: string): Promise<void>;
  /** Looks at the file or the store now. Rejects when that fails; the keys then stay as they are. */
  reload(): Promise<void>;
  /** Calls the listener after every change, with the keys that are not published any more. Returns what ends that. */
  onChange(listener: (withdrawnKids: readonly string[]) => void): () => void;
}

const STORE_TIMEOUT_MS = 5_000;
/** How often a change is tried anew when another process changes the store at the same time. */
const MAX_SAVES = 8;

/**
 * The signing keys of an issuer: `next` → `active` → `retiring` → `retired`, and `revoked`. A key is published before it
 * signs and kept after its last signature, so that no verifier ever meets a token whose key it cannot know.
 *
 * @throws TypeError that lists every problem of the options; Error when the keys cannot be loaded.
 */
export async function createKeyRing(options: KeyRingOptions = {}): Promise<KeyRing> {
  const ring = new Ring(parseKeyRingOptions(options));
  await ring.open();
  return ring;
}

class Ring implements KeyRing {
  readonly #settings: KeyRingSettings;
  #times: KeyTimes;
  readonly #listeners = new Set<(withdrawnKids: readonly string[]) => void>();
  readonly #signers = new Map<string, Signer>();
  #records: readonly KeyRecord[] = [];
  #jwks: { readonly keys: JWK[] } = { keys: [] };
  #active: Signer | undefined;
  #version = 0;
  #storeVersion = 0;
  #loadedAt = 0;
  #queue: Promise<unknown> = Promise.resolve();
  #timer: NodeJS.Timeout | undefined;

  constructor(settings: KeyRingSettings) {
    this.#settings = settings;
    this.#times = settings;
  }

  get publishSeconds(): number {
    return this.#times.publishSeconds;
  }

  get keepSeconds(): number {
    return this.#times.keepSeconds;
  }

  keepAtLeast(seconds: number): void {
    const { publishSeconds, keepSeconds } = this.#times;
    if (seconds > keepSeconds) this.#times = { publishSeconds, keepSeconds: seconds };
  }

  get version(): number {
    return this.#version;
  }

  async open(): Promise<void> {
    const { file, store, external, privateKeys, algorithm } = this.#settings;
    if (store !== undefined) {
      await this.#load();
      if (this.#records.length === 0) {
        const first = this.#record(await generateSigningKey(algorithm ?? 'ES256'));
        await this.#change((records) =>
          records.length > 0 ? records : activated([first], first.kid, this.#now(), this.#times),
        );
      }
    } else {
      const given =
        file !== undefined
          ? await readKeyFile(file)
          : external !== undefined
            ? await Promise.all(external.map(importExternalKey))
            : (privateKeys?.map(importSigningKey) ?? [await generateSigningKey(algorithm ?? 'ES256')]);
      if (algorithm !== undefined && given[0]?.signer.alg !== algorithm) {
        throw new TypeError(`createKeyRing: the first key is not for ${algorithm}`);
      }
      this.#adopt(
        reconciled(
          [],
          given.map((key) => this.#record(key)),
          this.#now(),
          this.#times,
        ),
      );
    }
    if (store !== undefined || file !== undefined) {
      this.#timer = setInterval(() => {
        this.reload().catch((error: Error) => this.#settings.onReloadError?.(error));
      }, this.#settings.reloadSeconds * 1_000);
      this.#timer.unref();
    }
  }

  jwks(): { readonly keys: JWK[] } {
    return this.#jwks;
  }

  keys(): readonly KeyInfo[] {
    return this.#records.map(({ publicJwk: _, privateJwk: __, ...record }) => ({
      ...record,
      ...(record.state === 'next' ? { activatableAt: activatableAt(record as KeyRecord, this.#times) } : {}),
      ...(record.state === 'retiring' ? { retirableAt: retirableAt(record as KeyRecord, this.#times) } : {}),
    }));
  }

  signer(): Signer {
    const { store, clock, maxStaleSeconds } = this.#settings;
    // Another process may have published a key that this one does not know, or revoked the one that it signs with.
    if (store !== undefined && clock.monotonic() - this.#loadedAt > maxStaleSeconds * 1_000) {
      throw new Error('the key store has not been read for too long');
    }
    return this.#active as Signer;
  }

  async stage(external?: ExternalKey): Promise<{ readonly kid: string }> {
    const { file, external: externals, algorithm } = this.#settings;
    if (file !== undefined) {
      throw new RegistryError('conflict', ['the keys come from a file: add the new key at its end']);
    }
    if ((externals !== undefined) !== (external !== undefined)) {
      throw new RegistryError('invalid_input', [
        external === undefined ? 'stage needs the external key to publish' : 'this ring makes its own keys',
      ]);
    }
    const alg = algorithm ?? this.#active?.alg ?? 'ES256';
    const key = external === undefined ? await generateSigningKey(alg) : await importExternalKey(external);
    const record = this.#record(key);
    await this.#change((records) => {
      if (records.some(({ kid }) => kid === record.kid)) {
        throw new RegistryError('conflict', ['the key ring has this key already']);
      }
      return [...records, record];
    });
    return { kid: record.kid };
  }

  async activate(kid: string): Promise<void> {
    await this.#change((records) => activated(records, kid, this.#now(), this.#times));
  }

  async retire(kid: string): Promise<void> {
    await this.#change((records) => retired(records, kid, this.#now(), this.#times));
  }

  async revoke(kid: string): Promise<void> {
    await this.#change((records) => revoked(records, kid, this.#now()));
    // Without a date: whoever holds a leaked key states any `iat`.
    await this.#settings.revocations?.revoke({ keyId: kid });
  }

  async reload(): Promise<void> {
    const { file } = this.#settings;
    await this.#exclusively(async () => {
      await this.#load();
      if (file === undefined) return;
      const fresh = (await readKeyFile(file)).map((key) => this.#record(key));
      this.#adopt(reconciled(this.#records, fresh, this.#now(), this.#times));
    });
  }

  onChange(listener: (withdrawnKids: readonly string[]) => void): () => void {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  }

  async ready(): Promise<void> {}

  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.#listeners.clear();
  }

  /** One change at a time in this process; between processes, the store's compare-and-swap decides. */
  #change(operation: (records: readonly KeyRecord[]) => readonly KeyRecord[]): Promise<void> {
    return this.#exclusively(async () => {
      const { store } = this.#settings;
      if (store === undefined) return this.#adopt(operation(this.#records));
      for (let attempt = 0; attempt < MAX_SAVES; attempt++) {
        await this.#load();
        const next = operation(this.#records);
        const saved = await withDeadline(STORE_TIMEOUT_MS, (signal) => store.save(next, this.#storeVersion, signal));
        if (saved !== true) continue;
        this.#storeVersion += 1;
        return this.#adopt(next);
      }
      throw new RegistryError('conflict', ['other processes keep changing the key ring']);
    });
  }

  #exclusively(work: () => Promise<void>): Promise<void> {
    const turn = this.#queue.then(work);
    this.#queue = turn.catch(() => undefined);
    return turn;
  }

  async #load(): Promise<void> {
    const { store, clock } = this.#settings;
    if (store === undefined) return;
    const asOf = clock.monotonic();
    const stored = await withDeadline(STORE_TIMEOUT_MS, (signal) => store.load(signal));
    const records = stored?.keys ?? [];
    if (stored !== undefined && records.filter(({ state }) => state === 'active').length !== 1) {
      throw new Error('the key store does not hold exactly one active key');
    }
    // A store that has lost the ring must not make this process invent another one.
    if (stored === undefined && this.#records.length > 0) throw new Error('the key store is empty');
    for (const record of records) this.#verify(record);
    this.#storeVersion = stored?.version ?? 0;
    this.#loadedAt = asOf;
    this.#adopt(records);
  }

  /** Whoever can write to the store must not make this process publish one key and sign with another. */
  #verify({ kid, alg, state, privateJwk }: KeyRecord): void {
    if (this.#signers.has(kid) || state === 'retired' || state === 'revoked') return;
    const key = privateJwk === undefined ? undefined : importSigningKey(privateJwk);
    if (key?.signer.kid !== kid || key.signer.alg !== alg)
      throw new Error('the key store holds a key that does not fit its record');
    this.#signers.set(kid, key.signer);
  }

  #record({ signer, publicJwk, privateJwk }: SigningKey): KeyRecord {
    this.#signers.set(signer.kid, signer);
    const record: KeyRecord = { kid: signer.kid, alg: signer.alg, state: 'next', publicJwk, stagedAt: this.#now() };
    return this.#settings.store !== undefined && privateJwk !== undefined ? { ...record, privateJwk } : record;
  }

  #adopt(records: readonly KeyRecord[]): void {
    const before = this.#records;
    const published = records.filter(isPublished);
    const listed = new Set(published.map(({ kid }) => kid));
    for (const record of records) if (!isPublished(record)) this.#signers.delete(record.kid);
    if (sameStates(before, records)) return;
    const withdrawn = before.filter((record) => isPublished(record) && !listed.has(record.kid)).map(({ kid }) => kid);
    const active = published.find(({ state }) => state === 'active');
    const ordered = active === undefined ? published : [active, ...published.filter((record) => record !== active)];
    this.#records = Object.freeze(records.map((record) => Object.freeze({ ...record })));
    this.#jwks = Object.freeze({ keys: Object.freeze(ordered.map(({ publicJwk }) => publicJwk)) as JWK[] });
    this.#active = active === undefined ? undefined : this.#signers.get(active.kid);
    this.#version += 1;
    for (const listener of [...this.#listeners]) listener(withdrawn);
  }

  #now(): number {
    return this.#settings.clock.now() / 1_000;
  }
}

function sameStates(a: readonly KeyRecord[], b: readonly KeyRecord[]): boolean {
  return (
    a.length === b.length && a.every(({ kid, state }, index) => b[index]?.kid === kid && b[index]?.state === state)
  );
}

import type { Identity } from '../identity/ambient.cjs';
import type { Random } from '../runtime/random.js';
import { FOREVER, HashedTable } from './hashed-table.js';
import { KeyedHash } from './keyed-hash.js';
import { CHANGE_KEEP_SECONDS, type ChangeKind, namedTarget, type TargetKind } from './revocation-entry.js';
import type { RevocationEntry } from './revocation-store.js';

/** How many changes are remembered one by one. Beyond, everything decided so far is verified anew. */
const MAX_CHANGES = 262_144;
/** A bounded step of sweeping is done once in so many entries. */
const SWEEP_EVERY = 64;

/** The denials and changes that one process knows, as sets of keyed hashes. */
export class RevocationView {
  readonly #denied: Readonly<Record<Exclude<TargetKind, 'all'>, HashedTable>>;
  readonly #changed: Readonly<Record<ChangeKind, HashedTable>>;
  /** The watermark of everything. */
  #all = 0;
  #allUntil = 0;
  /** Issuers that an entry names, numbered from 1. */
  readonly #issuers = new Map<string, number>();
  /** Whatever was decided at a version below may have changed: the changes since are not remembered one by one. */
  #floor = 0;
  #version = 0;
  #applied = 0;

  constructor(random: Random) {
    const hash = () => new KeyedHash(random);
    // One hash per kind: the id that was looked for among the denials is not hashed again for the changes.
    const [token, client, key] = [hash(), hash(), hash()];
    this.#denied = {
      token: new HashedTable(token),
      client: new HashedTable(client),
      tenant: new HashedTable(hash()),
      subject: new HashedTable(hash()),
      issuer: new HashedTable(hash()),
      key: new HashedTable(key),
    };
    this.#changed = { token: new HashedTable(token), client: new HashedTable(client), key: new HashedTable(key) };
  }

  /** Grows with everything that becomes known. */
  get version(): number {
    return this.#version;
  }

  /**
   * Takes an entry in. A denial is never taken back: it only gets wider, until it expires.
   *
   * @param now epoch seconds.
   * @throws TypeError for an entry of an unknown form.
   */
  apply(entry: RevocationEntry, now: number): void {
    const { action, kind, id, issuer } = namedTarget(entry);
    this.#applied += 1;
    if (this.#applied % SWEEP_EVERY === 0) this.sweep(now);
    if (action === 'change') return this.#change(kind as ChangeKind, id, issuer, now);
    if (entry.expiresAt <= now) return;
    // 0 is "none" in the tables, and a watermark at 0 still denies what does not say when it was issued.
    const before = Math.max(1, entry.before);
    if (kind === 'all') {
      const expired = this.#allUntil <= now;
      if (!expired && before <= this.#all && entry.expiresAt <= this.#allUntil) return;
      this.#all = expired ? before : Math.max(this.#all, before);
      this.#allUntil = expired ? entry.expiresAt : Math.max(this.#allUntil, entry.expiresAt);
      this.#version += 1;
      return;
    }
    const raised = this.#denied[kind].raise(id, this.#issuerNumber(issuer), before, entry.expiresAt, now);
    if (raised) this.#version += 1;
  }

  /** Whatever was decided so far is to be verified anew: changes may have been missed. */
  everythingChanged(): void {
    this.#version += 1;
    this.#floor = this.#version;
  }

  /** Forgets some of what has expired: one bounded step. */
  sweep(now: number): void {
    for (const table of Object.values(this.#denied)) table.sweep(now);
    for (const table of Object.values(this.#changed)) table.sweep(now);
  }

  /** Whether a denial covers the identity. */
  revokes(identity: Identity, nowMs: () => number): boolean {
    // Most identities meet no entry at all: the clock is asked only about those that do.
    return this.#covers(identity, 0) && this.#covers(identity, nowMs() / 1_000);
  }

  /** Whether something that the identity was decided from has changed since its decision began. */
  changedSince(identity: Identity, decidedAtVersion: number): boolean {
    const { token, client, key } = this.#changed;
    const floor = Math.max(this.#floor, token.highestForgotten, client.highestForgotten, key.highestForgotten);
    if (decidedAtVersion < floor) return true;
    const issuer = this.#issuers.get(identity.issuer) ?? 0;
    return (
      highest(token, identity.tokenId, issuer, 0) > decidedAtVersion ||
      highest(client, identity.clientId, issuer, 0) > decidedAtVersion ||
      highest(key, identity.keyId, 0, 0) > decidedAtVersion
    );
  }

  #covers(identity: Identity, now: number): boolean {
    const { token, client, tenant, subject, issuer, key } = this.#denied;
    const number = this.#issuers.get(identity.issuer) ?? 0;
    if (highest(token, identity.tokenId, number, now) !== 0) return true;
    let cutOff = this.#allUntil > now ? this.#all : 0;
    cutOff = Math.max(cutOff, highest(client, identity.clientId, number, now));
    cutOff = Math.max(cutOff, highest(tenant, identity.tenant, 0, now));
    if (number !== 0) cutOff = Math.max(cutOff, highest(subject, identity.subject.id, number, now));
    cutOff = Math.max(cutOff, highest(issuer, identity.issuer, 0, now));
    cutOff = Math.max(cutOff, highest(key, identity.keyId, 0, now));
    if (cutOff === 0) return false;
    const { issuedAt } = identity;
    return cutOff === FOREVER || issuedAt === undefined || Math.floor(issuedAt) <= cutOff;
  }

  #change(kind: ChangeKind, id: string, issuer: string, now: number): void {
    const table = this.#changed[kind];
    if (table.size >= MAX_CHANGES) table.clear();
    this.#version += 1;
    const until = Math.floor(now) + CHANGE_KEEP_SECONDS;
    table.raise(id, this.#issuerNumber(issuer), this.#version, until, now);
  }

  #issuerNumber(issuer: string): number {
    if (issuer === '') return 0;
    let number = this.#issuers.get(issuer);
    if (number === undefined) {
      number = this.#issuers.size + 1;
      this.#issuers.set(issuer, number);
    }
    return number;
  }
}

function highest(table: HashedTable, id: string | undefined, issuer: number, now: number): number {
  return id === undefined ? 0 : table.highest(id, issuer, now);
}

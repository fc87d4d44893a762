import { OptionsParser } from '../errors/options-parser.js';
import { RegistryError } from '../errors/registry-error.js';
import { createRevocations } from '../revocation/create-revocations.js';
import { memoryRevocationStore } from '../revocation/memory-revocation-store.js';
import type { Revocations } from '../revocation/revocations.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { type Random, systemRandom } from '../runtime/random.js';
import { ClientBook, NO_CLIENT } from './client-book.js';
import type { ClientRecord } from './client-record.js';
import { LastUsed } from './last-used.js';
import { pastWatermarks } from './past-watermarks.js';
import { PepperRing, type Peppers } from './pepper-ring.js';
import { changedRecord, retryChange } from './record-change.js';
import { RegistryInput } from './registry-input.js';
import { formatToken, isTokenId, isTokenPrefix, mintToken, TOKEN_ENVS, TOKEN_KINDS } from './token-format.js';
import { type StoredToken, statusOf, type TokenRecord, tokenRecord } from './token-record.js';
import type {
  ClientInput,
  ClientPatch,
  IssuedToken,
  ListQuery,
  Page,
  PepperCount,
  RotateOptions,
  TokenInput,
  TokenPatch,
  TokenRegistry,
} from './token-registry.js';
import { type TokenAnswer, TokenResolver } from './token-resolver.js';
import type { TokenLookup, TokenStore } from './token-store.js';

export interface TokenRegistryOptions {
  /** `memoryTokenStore()`, or one that keeps them. */
  readonly store: TokenStore;
  readonly peppers: Peppers;
  /** How raw tokens begin: at most 32 letters, digits and single underscores, e.g. `acme`. */
  readonly prefix: string;
  /** Default: in this process alone. With several processes, one that they share. */
  readonly revocations?: Revocations;
  readonly clock?: Clock;
  readonly random?: Random;
}

const MAX_OVERLAP_SECONDS = 31_536_000;
const NO_TOKEN = 'there is no such token';
const STORE_METHODS: readonly (keyof TokenStore)[] = [
  'insertClient',
  'updateClient',
  'deleteClient',
  'getClient',
  'listClients',
  'insertToken',
  'updateToken',
  'getTokens',
  'listTokens',
  'touchTokens',
  'countByPepper',
  'revokeByPepper',
];

/**
 * A registry of API clients and of opaque tokens, which are stored as HMACs under a pepper.
 *
 * @throws TypeError that lists every problem of the options: a pepper that is short, repeats itself or is a placeholder too.
 */
export function createTokenRegistry(options: TokenRegistryOptions): TokenRegistry {
  return new StoredRegistry(options);
}

class StoredRegistry implements TokenRegistry {
  readonly prefix: string;
  readonly revocations: Revocations;
  readonly #store: TokenStore;
  readonly #clients: ClientBook;
  readonly #peppers: PepperRing;
  readonly #configuredPeppers: ReadonlySet<string>;
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #lastUsed: LastUsed;
  readonly #resolver: TokenResolver;
  readonly #ownsRevocations: boolean;

  constructor(given: TokenRegistryOptions) {
    const parser = new OptionsParser('createTokenRegistry');
    const options = parser.known(given, ['store', 'peppers', 'prefix', 'revocations', 'clock', 'random']);
    const { store, peppers, prefix, revocations, clock = systemClock, random = systemRandom } = options;
    const isStore = STORE_METHODS.every((method) => typeof store?.[method] === 'function');
    parser.check(isStore, 'store must be a token store (did you call its factory?)');
    parser.check(isTokenPrefix(prefix), 'prefix must be at most 32 letters, digits and single underscores');
    this.#peppers = new PepperRing(peppers, parser);
    if (revocations !== undefined && typeof revocations?.revoke !== 'function') {
      parser.problem('revocations must come from createRevocations');
    }
    parser.done();
    this.prefix = prefix;
    this.#ownsRevocations = revocations === undefined;
    this.revocations = revocations ?? createRevocations({ store: memoryRevocationStore(), clock, random });
    this.#store = store;
    this.#clients = new ClientBook(store, this.revocations, clock, random);
    this.#configuredPeppers = new Set(this.#peppers.ids);
    this.#clock = clock;
    this.#random = random;
    this.#lastUsed = new LastUsed(store);
    this.#resolver = new TokenResolver(prefix, store, this.#peppers, this.#lastUsed, this.revocations, clock);
  }

  async ready(signal?: AbortSignal): Promise<void> {
    await Promise.all([this.#store.ready?.(signal), this.revocations.ready(signal)]);
  }

  async close(signal?: AbortSignal): Promise<void> {
    await this.#lastUsed.flush();
    if (this.#ownsRevocations) await this.revocations.close(signal);
  }

  createClient(input: ClientInput): Promise<ClientRecord> {
    return this.#clients.create(input);
  }

  getClient(id: string): Promise<ClientRecord | undefined> {
    return this.#clients.get(id);
  }

  listClients(query: ListQuery & { readonly tenant?: string } = {}): Promise<Page<ClientRecord>> {
    return this.#clients.list(query);
  }

  updateClient(id: string, patch: ClientPatch): Promise<ClientRecord> {
    return this.#clients.update(id, patch);
  }

  deleteClient(id: string): Promise<void> {
    return this.#clients.delete(id);
  }

  async issueToken(given: TokenInput): Promise<IssuedToken> {
    const fields = ['clientId', 'scopes', 'groups', 'resources', 'subject', 'expiresAt', 'description', 'kind', 'env'];
    const input = new RegistryInput(given, fields);
    const clientId = input.name('clientId');
    input.required('clientId', clientId);
    const scopes = input.scopes();
    input.required('scopes', scopes);
    const groups = input.groups() ?? [];
    const optional = this.#tokenFields(input);
    const subject = input.subject();
    const kind = input.oneOf('kind', TOKEN_KINDS, 'sk');
    const env = input.oneOf('env', TOKEN_ENVS, 'live');
    const client = clientId === undefined ? undefined : await this.getClient(clientId);
    input.done(clientId !== undefined && client === undefined ? NO_CLIENT : undefined);
    const holder = {
      clientId: clientId as string,
      subject: subject ?? ({ kind: 'service', id: clientId as string } as const),
    };
    const second = await this.#issuingSecond(holder, client?.tenant);
    const issued = this.#mint(second, kind, env, (id) => ({
      ...holder,
      authId: id,
      scopes: scopes as readonly string[],
      groups,
      ...optional,
    }));
    if ((await this.#store.insertToken(issued.stored)) !== 'inserted')
      throw new RegistryError('not_found', [NO_CLIENT]);
    return { token: issued.token, record: this.#record(issued.stored) };
  }

  async getToken(id: string): Promise<TokenRecord | undefined> {
    const stored = await this.#find(id);
    return stored && this.#record(stored);
  }

  async listTokens(query: ListQuery & { readonly clientId?: string } = {}): Promise<Page<TokenRecord>> {
    const input = new RegistryInput(query, ['limit', 'cursor', 'clientId']);
    const clientId = input.name('clientId');
    const page = input.page();
    input.done();
    const stored = await this.#store.listTokens({ ...page, ...(clientId === undefined ? {} : { clientId }) });
    const items = stored.items.map((token) => this.#record(token));
    return stored.next === undefined ? { items } : { items, nextCursor: String(stored.next) };
  }

  async updateToken(id: string, given: TokenPatch): Promise<TokenRecord> {
    const input = new RegistryInput(given, ['scopes', 'groups', 'resources', 'expiresAt', 'description']);
    const patch = { scopes: input.scopes(), groups: input.groups(), ...this.#tokenFields(input) };
    input.done();
    const changed = await this.#change(id, (stored) => {
      if (stored.revokedAt !== undefined) throw new RegistryError('conflict', ['the token is revoked']);
      return patch;
    });
    await this.revocations.changed({ tokenId: id });
    return changed;
  }

  async revokeToken(id: string): Promise<TokenRecord> {
    const record = await this.#change(id, (stored) => ({ revokedAt: stored.revokedAt ?? this.#second() }));
    await this.#denyToken(record);
    return record;
  }

  async rotateToken(id: string, given: RotateOptions = {}): Promise<IssuedToken> {
    const input = new RegistryInput(given, ['overlapSeconds', 'expiresAt']);
    const overlapSeconds = input.seconds('overlapSeconds', MAX_OVERLAP_SECONDS);
    const expiresAt = input.expiresAt(this.#now());
    input.done();
    const issued = await retryChange('token', async () => {
      const found = await this.#lookup(id);
      if (found === undefined) throw new RegistryError('not_found', [NO_TOKEN]);
      const { token: old, client } = found;
      this.#checkRotatable(old);
      const second = await this.#issuingSecond(old, client?.tenant);
      // First, so that a rotation that nobody could be told of leaves the old token as it was, to be repeated.
      if (overlapSeconds === 0) await this.#denyToken(old);
      const minted = this.#mint(second, old.kind, old.env, () => ({
        ...rights(old),
        ...(expiresAt === undefined ? {} : { expiresAt }),
        rotatedFrom: id,
      }));
      const endsAt = Math.min(old.expiresAt ?? Number.POSITIVE_INFINITY, this.#now() + overlapSeconds);
      const replaced = changedRecord(old, {
        updatedAt: this.#second(),
        rotatedTo: minted.stored.id,
        ...(overlapSeconds === 0 ? { revokedAt: this.#second() } : { expiresAt: endsAt }),
      });
      const outcome = await this.#store.insertToken(minted.stored, replaced);
      if (outcome === 'no_client') throw new RegistryError('not_found', [NO_CLIENT]);
      return outcome === 'inserted' ? minted : undefined;
    });
    // The new token is stored, and this is the only time that it can be shown: a notice that does not get through (which
    // the revocations publish) must not swallow it. Others then hear of the earlier end when their cache lets go.
    if (overlapSeconds > 0) await this.revocations.changed({ tokenId: id }).catch(() => {});
    return { token: issued.token, record: this.#record(issued.stored) };
  }

  resolveToken(token: string): TokenAnswer | Promise<TokenAnswer> {
    return this.#resolver.resolve(token);
  }

  async pepperReport(): Promise<readonly PepperCount[]> {
    const counts = await this.#store.countByPepper(this.#now());
    const { ids, currentId } = this.#peppers;
    return [...new Set([...ids, ...counts.keys()])].map((id) => ({
      id,
      state: !ids.includes(id) ? 'missing' : id === currentId ? 'current' : 'previous',
      tokens: counts.get(id) ?? 0,
    }));
  }

  async dropPepper(id: string): Promise<{ readonly revoked: number }> {
    if (!this.#configuredPeppers.has(id)) throw new RegistryError('not_found', ['there is no such pepper']);
    this.#peppers.drop(id);
    // Both, whichever fails: each alone refuses most of what must die.
    const [announced, revoked] = await Promise.allSettled([
      this.revocations.revoke({ keyId: id }),
      this.#store.revokeByPepper(id, this.#second()),
    ]);
    if (announced.status === 'rejected') throw announced.reason;
    if (revoked.status === 'rejected') throw revoked.reason;
    return { revoked: revoked.value };
  }

  /** Epoch seconds. */
  #now(): number {
    return this.#clock.now() / 1_000;
  }

  /** Whole epoch seconds. */
  #second(): number {
    return Math.floor(this.#now());
  }

  #record(stored: StoredToken): TokenRecord {
    return tokenRecord(stored, this.#now());
  }

  async #lookup(id: string): Promise<TokenLookup | undefined> {
    if (!isTokenId(id)) return undefined;
    const [found] = await this.#store.getTokens([id]);
    return found;
  }

  async #find(id: string): Promise<StoredToken | undefined> {
    return (await this.#lookup(id))?.token;
  }

  #issuingSecond({ clientId, subject }: Pick<StoredToken, 'clientId' | 'subject'>, tenant: string | undefined) {
    const keyId = this.#peppers.currentId;
    if (!this.#peppers.ids.includes(keyId)) throw pepperDropped();
    const holder = { clientId, subject, authId: clientId, keyId, ...(tenant === undefined ? {} : { tenant }) };
    return pastWatermarks(this.revocations, this.#clock, holder);
  }

  /** Changes the fields that `change` gives; null takes one away. */
  async #change(id: string, change: (stored: StoredToken) => object): Promise<TokenRecord> {
    return retryChange('token', async () => {
      const stored = await this.#find(id);
      if (stored === undefined) throw new RegistryError('not_found', [NO_TOKEN]);
      const changed = changedRecord(stored, { ...change(stored), updatedAt: this.#second() });
      const updated = await this.#store.updateToken(changed);
      return updated ? this.#record({ ...changed, version: changed.version + 1 }) : undefined;
    });
  }

  #denyToken({ id, expiresAt }: Pick<StoredToken, 'id' | 'expiresAt'>): Promise<void> {
    // A token that never expires could be in a cache for as long as the app has it kept there.
    return this.revocations.revoke({ tokenId: id }, expiresAt === undefined ? {} : { expiresAt });
  }

  #checkRotatable(token: StoredToken): void {
    const status = statusOf(token, this.#now());
    if (status !== 'active') {
      throw new RegistryError('conflict', [status === 'revoked' ? 'the token is revoked' : 'the token has expired']);
    }
    if (token.rotatedTo !== undefined) throw new RegistryError('conflict', ['the token was rotated already']);
  }

  #tokenFields(input: RegistryInput) {
    return {
      resources: input.resources(),
      expiresAt: input.expiresAt(this.#now()),
      description: input.description(),
    };
  }

  #mint(second: number, kind: StoredToken['kind'], env: StoredToken['env'], fieldsOf: (id: string) => object) {
    const parts = mintToken(this.prefix, kind, env, this.#random);
    const mac = this.#peppers.mac(parts);
    if (mac === undefined) throw pepperDropped();
    const { currentId } = this.#peppers;
    const fixed = { id: parts.id, version: 1, prefix: this.prefix, kind, env, pepperId: currentId, mac };
    const dated = { ...fixed, createdAt: second, updatedAt: second };
    return { token: formatToken(parts), stored: changedRecord<object>(dated, fieldsOf(parts.id)) as StoredToken };
  }
}

function pepperDropped(): RegistryError {
  return new RegistryError('conflict', ['the current pepper was dropped: configure a new one']);
}

/** What a rotated token takes along. */
function rights({ clientId, authId, subject, scopes, groups, resources, description, expiresAt }: StoredToken) {
  return { clientId, authId, subject, scopes, groups, resources, description, expiresAt };
}

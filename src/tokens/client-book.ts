import { RegistryError } from '../errors/registry-error.js';
import type { Revocations } from '../revocation/revocations.js';
import type { Clock } from '../runtime/clock.js';
import type { Random } from '../runtime/random.js';
import { randomBase62 } from './base62.js';
import type { ClientRecord } from './client-record.js';
import { changedRecord, retryChange } from './record-change.js';
import { RegistryInput } from './registry-input.js';
import type { ClientInput, ClientPatch, ListQuery, Page } from './token-registry.js';
import type { TokenStore } from './token-store.js';

const FIELDS = ['name', 'tenant', 'plan', 'description', 'metadata'];
/** What is said of a client that does not exist. */
export const NO_CLIENT = 'there is no such client';

/** The clients of a registry. */
export class ClientBook {
  readonly #store: TokenStore;
  readonly #revocations: Revocations;
  readonly #clock: Clock;
  readonly #random: Random;

  constructor(store: TokenStore, revocations: Revocations, clock: Clock, random: Random) {
    this.#store = store;
    this.#revocations = revocations;
    this.#clock = clock;
    this.#random = random;
  }

  async create(given: ClientInput): Promise<ClientRecord> {
    const input = new RegistryInput(given, FIELDS);
    const name = input.name('name');
    input.required('name', name);
    const fields = optionalFields(input);
    input.done();
    const createdAt = this.#second();
    const bare = { id: `cl_${randomBase62(16, this.#random)}`, version: 1, name: name as string };
    const client: ClientRecord = Object.freeze(changedRecord({ ...bare, createdAt, updatedAt: createdAt }, fields));
    if (!(await this.#store.insertClient(client))) throw nameTaken();
    return client;
  }

  async get(id: string): Promise<ClientRecord | undefined> {
    return typeof id === 'string' && /^[0-9A-Za-z_-]{1,64}$/.test(id) ? this.#store.getClient(id) : undefined;
  }

  async list(query: ListQuery & { readonly tenant?: string }): Promise<Page<ClientRecord>> {
    const input = new RegistryInput(query, ['limit', 'cursor', 'tenant']);
    const tenant = input.name('tenant');
    const page = input.page();
    input.done();
    const { items, next } = await this.#store.listClients({ ...page, ...(tenant === undefined ? {} : { tenant }) });
    return next === undefined ? { items } : { items, nextCursor: String(next) };
  }

  async update(id: string, given: ClientPatch): Promise<ClientRecord> {
    const input = new RegistryInput(given, FIELDS);
    const patch = { name: input.name('name'), ...optionalFields(input) };
    input.done();
    const client = await retryChange('client', async () => {
      const stored = await this.get(id);
      if (stored === undefined) throw new RegistryError('not_found', [NO_CLIENT]);
      const changed = changedRecord(stored, { ...patch, updatedAt: this.#second() });
      const outcome = await this.#store.updateClient(changed);
      if (outcome === 'name_taken') throw nameTaken();
      return outcome === 'updated' ? Object.freeze({ ...changed, version: changed.version + 1 }) : undefined;
    });
    if (patch.plan !== undefined || patch.tenant !== undefined) await this.#revocations.changed({ clientId: id });
    return client;
  }

  async delete(id: string): Promise<void> {
    if ((await this.get(id)) === undefined) throw new RegistryError('not_found', [NO_CLIENT]);
    // First, so that a deletion that nobody could be told of can be repeated.
    await this.#revocations.revoke({ clientId: id }, { before: Number.POSITIVE_INFINITY });
    if (!(await this.#store.deleteClient(id, this.#second()))) throw new RegistryError('not_found', [NO_CLIENT]);
  }

  #second(): number {
    return Math.floor(this.#clock.now() / 1_000);
  }
}

function optionalFields(input: RegistryInput) {
  return {
    tenant: input.nullableName('tenant'),
    plan: input.nullableName('plan'),
    description: input.description(),
    metadata: input.metadata(),
  };
}

function nameTaken(): RegistryError {
  return new RegistryError('name_taken', ['the tenant has a client of that name']);
}

import assert from 'node:assert/strict';
import type { ClientRecord } from '../tokens/client-record.js';
import type { StoredToken } from '../tokens/token-record.js';
import type { TokenStore } from '../tokens/token-store.js';
import type { ContractCase } from './contract-case.js';

/** An empty, migrated store, and what ends it. */
export interface TokenStoreUnderTest {
  readonly store: TokenStore;
  end?(): Promise<void>;
}

const NOW = 1_767_225_600;
/** How many writers meet. */
const RIVALS = 8;

/** What every token store must do, as runner-neutral cases. */
export function tokenStoreContract(make: () => Promise<TokenStoreUnderTest>): ContractCase[] {
  const cases: ContractCase[] = [];
  const test = (name: string, body: (store: TokenStore) => Promise<void>): void => {
    cases.push({
      name,
      async run() {
        const { store, end } = await make();
        try {
          await store.ready?.();
          await body(store);
        } finally {
          await end?.();
        }
      },
    });
  };

  test('keeps clients as they were given, whole ones and bare ones', async (store) => {
    const whole = clientOf('whole', {
      tenant: 'acme',
      plan: 'pro',
      description: 'two\nlines, "quotes" and \u{1f511}',
      metadata: { list: [1, 2.5, null, true], nested: { text: 'a\u0000b' }, ['__proto__']: { x: 1 } },
    });
    const bare = clientOf('bare');
    for (const client of [whole, bare]) {
      assert.equal(await store.insertClient(client), true);
      assert.deepEqual(plain(await store.getClient(client.id)), plain(client));
    }
    assert.equal(await store.getClient('cl_unknown'), undefined);
  });

  test("takes a client's name once in a tenant, and once among those without a tenant", async (store) => {
    assert.equal(await store.insertClient(clientOf('c1', { name: 'n', tenant: 'a' })), true);
    assert.equal(await store.insertClient(clientOf('c2', { name: 'n', tenant: 'a' })), false);
    assert.equal(await store.getClient(clientOf('c2').id), undefined);
    assert.equal(await store.insertClient(clientOf('c3', { name: 'n', tenant: 'b' })), true);
    assert.equal(await store.insertClient(clientOf('c4', { name: 'n' })), true);
    assert.equal(await store.insertClient(clientOf('c5', { name: 'n' })), false);
    await store.deleteClient(clientOf('c1').id, NOW);
    assert.equal(await store.insertClient(clientOf('c6', { name: 'n', tenant: 'a' })), true);
  });

  test('takes a name once however many ask for it at the same time', async (store) => {
    const outcomes = await Promise.all(rivals((n) => store.insertClient(clientOf(`c${n}`, { name: 'n' }))));
    assert.equal(outcomes.filter(Boolean).length, 1);
  });

  test('updates a client only at the version that was read', async (store) => {
    const client = clientOf('c', { plan: 'free', description: 'd' });
    await store.insertClient(client);
    await store.insertClient(clientOf('other', { name: 'taken' }));
    const { description: _, ...rest } = client;
    const changed = { ...rest, plan: 'pro', updatedAt: NOW + 5 };
    assert.equal(await store.updateClient(changed), 'updated');
    assert.deepEqual(plain(await store.getClient(client.id)), { ...changed, version: 2 });
    assert.equal(await store.updateClient({ ...changed, plan: 'late' }), 'conflict');
    assert.equal(await store.updateClient({ ...changed, version: 2, name: 'taken' }), 'name_taken');
    assert.equal(await store.updateClient(clientOf('unknown')), 'conflict');
    assert.deepEqual(plain(await store.getClient(client.id)), { ...changed, version: 2 });
    assert.equal(await store.updateClient({ ...changed, version: 2, name: 'fresh' }), 'updated');
    assert.equal(await store.insertClient(clientOf('again', { name: client.name })), true);
    assert.equal(await store.insertClient(clientOf('again2', { name: 'fresh' })), false);
  });

  test('lets one of several writers of one version win', async (store) => {
    await store.insertClient(clientOf('c'));
    await store.insertToken(tokenOf('t'));
    const clients = await Promise.all(rivals((n) => store.updateClient(clientOf('c', { plan: `p${n}` }))));
    assert.equal(clients.filter((outcome) => outcome === 'updated').length, 1);
    const tokens = await Promise.all(rivals((n) => store.updateToken(tokenOf('t', { description: `d${n}` }))));
    assert.equal(tokens.filter(Boolean).length, 1);
    const [found] = await store.getTokens([tokenOf('t').id]);
    assert.equal(found?.token.version, 2);
    assert.equal(found.token.description, `d${tokens.indexOf(true)}`);
  });

  test('lists clients in pages, in the order of creation', async (store) => {
    const names = ['z', 'a', 'm', 'b', 'y'];
    for (const [index, name] of names.entries()) {
      await store.insertClient(clientOf(name, index % 2 === 0 ? { tenant: 'even' } : {}));
    }
    assert.deepEqual(await pages((page) => store.listClients(page), 2), [['z', 'a'], ['m', 'b'], ['y']]);
    assert.deepEqual(await pages((page) => store.listClients(page), 5), [names]);
    assert.deepEqual(await pages((page) => store.listClients({ ...page, tenant: 'even' }), 2), [['z', 'm'], ['y']]);
    assert.deepEqual(await store.listClients({ limit: 2, tenant: 'none' }), { items: [] });
    const first = await store.listClients({ limit: 1 });
    await store.deleteClient(clientOf('z').id, NOW);
    const rest = await store.listClients({ limit: 9, after: first.next as number });
    assert.deepEqual(
      rest.items.map(({ name }) => name),
      names.slice(1),
    );
  });

  test('keeps tokens as they were given: order of groups, absent and empty resources', async (store) => {
    await store.insertClient(clientOf('c', { tenant: 'acme', plan: 'pro' }));
    const whole = tokenOf('whole', {
      scopes: ['scan:read', 'clearance:read'],
      groups: ['3', '1', '2', 'ünïcode'],
      resources: [{ type: 'repo', id: 'r"1' }],
      subject: { kind: 'user', id: 'u-1' },
      description: 'd',
      expiresAt: NOW + 60.5,
      rotatedFrom: tokenOf('bare').id,
      rotatedTo: tokenOf('empty').id,
      revokedAt: NOW + 3,
    });
    const empty = tokenOf('empty', { resources: [], kind: 'rk', env: 'test' });
    for (const token of [whole, tokenOf('bare'), empty]) {
      assert.equal(await store.insertToken(token), 'inserted');
      const [found] = await store.getTokens([token.id]);
      assert.deepEqual(plain(found?.token), plain(token));
      assert.deepEqual([found?.client?.tenant, found?.client?.plan], ['acme', 'pro']);
    }
  });

  test('refuses a token whose client does not exist', async (store) => {
    assert.equal(await store.insertToken(tokenOf('t')), 'no_client');
    assert.deepEqual(await store.getTokens([tokenOf('t').id]), []);
  });

  test('looks many tokens up at once, and leaves out what does not exist', async (store) => {
    await store.insertClient(clientOf('c'));
    const ids = Array.from({ length: 500 }, (_, index) => tokenOf(`t${index}`).id);
    for (let index = 0; index < 500; index += 100) await store.insertToken(tokenOf(`t${index}`));
    const found = await store.getTokens(ids);
    assert.deepEqual(found.map(({ token }) => token.id).sort(), [0, 100, 200, 300, 400].map((n) => ids[n]).sort());
    assert.deepEqual(await store.getTokens([]), []);
  });

  test("shows a token with its client's present plan and tenant, and without a deleted client", async (store) => {
    await store.insertClient(clientOf('c', { plan: 'free' }));
    await store.insertToken(tokenOf('t'));
    await store.updateClient(clientOf('c', { plan: 'pro', tenant: 'acme' }));
    const [found] = await store.getTokens([tokenOf('t').id]);
    assert.deepEqual([found?.client?.tenant, found?.client?.plan], ['acme', 'pro']);
    await store.deleteClient(clientOf('c').id, NOW);
    const [orphan] = await store.getTokens([tokenOf('t').id]);
    assert.equal(orphan?.token.id, tokenOf('t').id);
    assert.equal(orphan.client, undefined);
  });

  test('updates a token only at the version that was read, and leaves its last use alone', async (store) => {
    await store.insertClient(clientOf('c'));
    await store.insertToken(tokenOf('t', { description: 'd', resources: [] }));
    await store.touchTokens([{ id: tokenOf('t').id, lastUsedAt: NOW + 1 }]);
    const changed = tokenOf('t', { groups: ['2'], pepperId: 'p2', mac: 'B'.repeat(43), expiresAt: NOW + 9 });
    assert.equal(await store.updateToken({ ...changed, lastUsedAt: NOW - 9 }), true);
    const [found] = await store.getTokens([changed.id]);
    assert.deepEqual(plain(found?.token), { ...plain(changed), version: 2, lastUsedAt: NOW + 1 });
    assert.equal(await store.updateToken(changed), false);
    assert.equal(await store.updateToken(tokenOf('unknown')), false);
    assert.deepEqual(plain((await store.getTokens([changed.id]))[0]), plain(found));
  });

  test('replaces a token by another in one step: both or neither', async (store) => {
    await store.insertClient(clientOf('c'));
    await store.insertToken(tokenOf('old'));
    const replaced = tokenOf('old', { rotatedTo: tokenOf('new').id, revokedAt: NOW });
    assert.equal(await store.insertToken(tokenOf('new'), { ...replaced, version: 7 }), 'conflict');
    assert.deepEqual(await store.getTokens([tokenOf('new').id]), []);
    assert.equal(await store.insertToken(tokenOf('new', { clientId: 'cl_unknown' }), replaced), 'no_client');
    assert.deepEqual(plain((await store.getTokens([replaced.id]))[0]?.token), plain(tokenOf('old')));
    assert.equal(await store.insertToken(tokenOf('new'), replaced), 'inserted');
    assert.deepEqual(plain((await store.getTokens([replaced.id]))[0]?.token), { ...plain(replaced), version: 2 });
    assert.equal((await store.getTokens([tokenOf('new').id])).length, 1);
  });

  test('replaces a token once however many try at the same time', async (store) => {
    await store.insertClient(clientOf('c'));
    await store.insertToken(tokenOf('old'));
    const outcomes = await Promise.all(
      rivals((n) => store.insertToken(tokenOf(`new${n}`), tokenOf('old', { rotatedTo: tokenOf(`new${n}`).id }))),
    );
    assert.equal(outcomes.filter((outcome) => outcome === 'inserted').length, 1);
    assert.equal((await store.listTokens({ limit: 99 })).items.length, 2);
  });

  test('lists tokens in pages, in the order of creation, of one client or of all', async (store) => {
    await store.insertClient(clientOf('c'));
    await store.insertClient(clientOf('d'));
    const names = ['z', 'a', 'm', 'b', 'y'];
    for (const [index, name] of names.entries()) {
      await store.insertToken(tokenOf(name, { clientId: clientOf(index % 2 === 0 ? 'c' : 'd').id, description: name }));
    }
    const list = (clientId?: string) =>
      pages(async (page) => {
        const { items, ...rest } = await store.listTokens({ ...page, ...(clientId === undefined ? {} : { clientId }) });
        return { items: items.map(({ description }) => ({ name: description as string })), ...rest };
      }, 2);
    assert.deepEqual(await list(), [['z', 'a'], ['m', 'b'], ['y']]);
    assert.deepEqual(await list(clientOf('c').id), [['z', 'm'], ['y']]);
    assert.deepEqual(await list(clientOf('d').id), [['a', 'b']]);
    assert.deepEqual(await list('cl_unknown'), [[]]);
  });

  test("revokes a deleted client's tokens, and keeps them on record", async (store) => {
    await store.insertClient(clientOf('c'));
    await store.insertClient(clientOf('d'));
    await store.insertToken(tokenOf('live'));
    await store.insertToken(tokenOf('dead', { revokedAt: NOW - 100 }));
    await store.insertToken(tokenOf('other', { clientId: clientOf('d').id }));
    assert.equal(await store.deleteClient(clientOf('c').id, NOW), true);
    assert.equal(await store.deleteClient(clientOf('c').id, NOW + 1), false);
    assert.equal(await store.getClient(clientOf('c').id), undefined);
    const state = async (name: string) => (await store.getTokens([tokenOf(name).id]))[0]?.token.revokedAt;
    assert.deepEqual([await state('live'), await state('dead'), await state('other')], [NOW, NOW - 100, undefined]);
    assert.equal(await store.updateToken(tokenOf('live')), false, 'whoever read it before must not revive it');
    assert.equal((await store.listTokens({ limit: 9, clientId: clientOf('c').id })).items.length, 2);
  });

  test('leaves no usable token of a client that is deleted while tokens are issued', async (store) => {
    for (let round = 0; round < 5; round++) {
      const client = clientOf(`c${round}`);
      await store.insertClient(client);
      const issued = rivals((n) => store.insertToken(tokenOf(`r${round}n${n}`, { clientId: client.id })));
      const outcomes = await Promise.all([
        ...issued.slice(0, 4),
        store.deleteClient(client.id, NOW),
        ...issued.slice(4),
      ]);
      assert.equal(outcomes[4], true);
      const { items } = await store.listTokens({ limit: 99, clientId: client.id });
      assert.equal(items.length, outcomes.filter((outcome) => outcome === 'inserted').length);
      assert.deepEqual(
        items.filter(({ revokedAt }) => revokedAt === undefined),
        [],
      );
    }
  });

  test('notes the last use, which never goes back, without counting the version up', async (store) => {
    await store.insertClient(clientOf('c'));
    await store.insertToken(tokenOf('t'));
    await store.insertToken(tokenOf('u'));
    const [t, u, unknown] = [tokenOf('t').id, tokenOf('u').id, tokenOf('unknown').id];
    await store.touchTokens([
      { id: t, lastUsedAt: NOW + 10 },
      { id: unknown, lastUsedAt: NOW },
      { id: u, lastUsedAt: NOW + 20 },
    ]);
    await store.touchTokens([{ id: t, lastUsedAt: NOW + 5 }]);
    await store.touchTokens([]);
    const found = await store.getTokens([t, u, unknown]);
    const seen = found.map(({ token }) => [token.id, token.lastUsedAt, token.version]);
    assert.deepEqual(
      seen.sort(),
      [
        [t, NOW + 10, 1],
        [u, NOW + 20, 1],
      ].sort(),
    );
  });

  test('counts the usable tokens of each pepper, and revokes all of one', async (store) => {
    await store.insertClient(clientOf('c'));
    await store.insertToken(tokenOf('a'));
    await store.insertToken(tokenOf('b', { expiresAt: NOW + 10 }));
    await store.insertToken(tokenOf('c', { expiresAt: NOW }));
    await store.insertToken(tokenOf('d', { revokedAt: NOW - 5 }));
    await store.insertToken(tokenOf('e', { pepperId: 'p2' }));
    const counts = async () => [...(await store.countByPepper(NOW))].filter(([, count]) => count > 0).sort();
    assert.deepEqual(await counts(), [
      ['p1', 2],
      ['p2', 1],
    ]);
    assert.equal(await store.revokeByPepper('p1', NOW), 3);
    assert.equal(await store.revokeByPepper('p1', NOW + 1), 0);
    assert.deepEqual(await counts(), [['p2', 1]]);
    const [a, d] = await Promise.all(['a', 'd'].map(async (name) => (await store.getTokens([tokenOf(name).id]))[0]));
    assert.deepEqual([a?.token.revokedAt, a?.token.version, d?.token.revokedAt], [NOW, 2, NOW - 5]);
    const moved = tokenOf('a', { pepperId: 'p2' });
    assert.equal(await store.updateToken(moved), false, 'a token that is being moved to another pepper dies too');
  });

  test('shares no record with its callers', async (store) => {
    const client = { ...clientOf('c'), metadata: { deep: ['x'] } };
    const token = { ...tokenOf('t'), scopes: ['a:read'], groups: ['1'] };
    await store.insertClient(client);
    await store.insertToken(token);
    (client.metadata.deep as string[]).push('y');
    token.groups.push('2');
    const read = async () => [await store.getClient(client.id), (await store.getTokens([token.id]))[0]?.token] as const;
    const [handedClient, handedToken] = await read();
    for (const list of [handedClient?.metadata?.deep, handedToken?.groups, handedToken?.scopes]) {
      try {
        (list as string[]).push('z');
      } catch {
        // Frozen: as good as a copy.
      }
    }
    const [againClient, againToken] = await read();
    assert.deepEqual(
      [againClient?.metadata, againToken?.groups, againToken?.scopes],
      [{ deep: ['x'] }, ['1'], ['a:read']],
    );
  });

  return cases;
}

function clientOf(name: string, fields: Partial<ClientRecord> = {}): ClientRecord {
  return { id: `cl_${name}`, version: 1, name, createdAt: NOW, updatedAt: NOW, ...fields };
}

function tokenOf(name: string, fields: Partial<StoredToken> = {}): StoredToken {
  const id = name.padEnd(16, 'Z');
  return {
    id,
    version: 1,
    clientId: 'cl_c',
    authId: id,
    prefix: 'acme',
    kind: 'sk',
    env: 'live',
    pepperId: 'p1',
    mac: 'A'.repeat(43),
    subject: { kind: 'service', id: 'cl_c' },
    scopes: [],
    groups: [],
    createdAt: NOW,
    updatedAt: NOW,
    ...fields,
  };
}

function rivals<T>(act: (n: number) => Promise<T>): Promise<T>[] {
  return Array.from({ length: RIVALS }, (_, n) => act(n));
}

/** The names on every page, until there is no next one. */
async function pages(
  list: (page: { limit: number; after?: number }) => Promise<{ items: readonly { name: string }[]; next?: number }>,
  limit: number,
): Promise<string[][]> {
  const found: string[][] = [];
  let next: number | undefined;
  do {
    const page = await list({ limit, ...(next === undefined ? {} : { after: next }) });
    found.push(page.items.map(({ name }) => name));
    next = page.next;
  } while (next !== undefined && found.length < 100);
  return found;
}

/** As JSON carries it: absent is absent, and classes do not matter. */
function plain(value: unknown): object {
  return JSON.parse(JSON.stringify(value ?? null)) as object;
}

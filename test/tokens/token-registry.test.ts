import { createHmac, randomBytes } from 'node:crypto';
import { inspect } from 'node:util';
import fc from 'fast-check';
import { createTokenRegistry, memoryTokenStore, type RegistryError, type TokenInput } from 'tollkeeper';
import { manualClock } from 'tollkeeper/testing';
import { describe, expect, it } from 'vitest';
import { issuedApp, pepper, registryApp } from './registry-app.js';

const START = 1_767_225_600;

async function refusal(promise: Promise<unknown>): Promise<Pick<RegistryError, 'code' | 'status' | 'problems'>> {
  const error = await promise.then(
    () => undefined,
    (reason: RegistryError) => reason,
  );
  expect(error?.name).toBe('RegistryError');
  const { code, status, problems } = error as RegistryError;
  return { code, status, problems };
}

describe('createTokenRegistry', () => {
  it('refuses wrong options with all problems at once, and without any secret', () => {
    const secret = 'short-but-secret';
    const make = () =>
      createTokenRegistry({
        store: memoryTokenStore as never,
        peppers: { current: { id: 'p 1', secret }, previous: [{ id: 'p2', secret: 7 as never }] },
        prefix: 'acme-',
        revocations: {} as never,
        clok: 1,
      } as never);
    expect(make).toThrow(TypeError);
    expect(make).toThrow(
      /unknown option "clok" \(did you mean "clock"\?\).*store must be.*prefix must be.*peppers\.current\.id must be.*peppers\.current\.secret must have at least 32.*peppers\.previous\[0\]\.secret must be.*revocations must/,
    );
    expect(make).not.toThrow(new RegExp(secret));
  });

  it.each([
    ['short', 'x3k9vQ7pL2'],
    ['31 bytes', pepper.secret.subarray(0, 31)],
    ['one byte again and again', Buffer.alloc(32, 7)],
    ['a short piece again and again', 'abcdef0123456789'.repeat(2)],
    ['few different characters', 'aabbabbbaabababbbabaabbababbabab'],
    ['a placeholder of a template', 'change-me-in-production-please-1234567890'],
    ['another placeholder', 'your_secret_here_0123456789_abcdefgh'],
    ['a third', 'THIS IS AN EXAMPLE pepper, at least 32'],
    ['a password', 'my-Pass.word-is-9f8e7d6c5b4a39281706'],
    ['the bytes from 0', Uint8Array.from({ length: 32 }, (_, index) => index)],
    ['the alphabet', 'abcdefghijklmnopqrstuvwxyz0123456789'],
    ['empty', ''],
    ['a number', 5],
    ['absent', undefined],
  ])('refuses to start with a pepper that is %s, in every environment', (_, secret) => {
    for (const env of ['production', 'test', 'development']) {
      const before = process.env.NODE_ENV;
      process.env.NODE_ENV = env;
      try {
        const peppers = { current: { id: 'p1', secret: secret as string } };
        expect(() => createTokenRegistry({ store: memoryTokenStore(), peppers, prefix: 'acme' })).toThrow(TypeError);
        const previous = { current: pepper, previous: [{ id: 'p0', secret: secret as string }] };
        expect(() => createTokenRegistry({ store: memoryTokenStore(), peppers: previous, prefix: 'acme' })).toThrow(
          TypeError,
        );
      } finally {
        process.env.NODE_ENV = before;
      }
    }
  });

  it('refuses a pepper that is there twice, by id or by secret, and peppers of a wrong form', () => {
    const make = (peppers: unknown) => () =>
      createTokenRegistry({ store: memoryTokenStore(), peppers: peppers as never, prefix: 'acme' });
    expect(make({ current: pepper, previous: [pepper] })).toThrow(/id is that of another.*secret is that of another/);
    expect(make({ current: pepper, previous: {} })).toThrow(/peppers\.previous must be an array/);
    expect(make(undefined)).toThrow(/peppers must be an object/);
    expect(make({ previous: [pepper] })).toThrow(/peppers\.current must be an object/);
    expect(make({ current: pepper, previous: [null] })).toThrow(/peppers\.previous\[0\] must be an object/);
  });

  it.each(['', '1acme', 'acme_', 'a__b', 'ac-me', 'a'.repeat(33), 'acmé', 5, undefined])(
    'refuses the prefix %j',
    (prefix) => {
      const options = { store: memoryTokenStore(), peppers: { current: pepper }, prefix: prefix as string };
      expect(() => createTokenRegistry(options)).toThrow(/prefix must be/);
    },
  );

  it('takes a secret that is a string of 32 bytes, and a prefix with an underscore', async () => {
    const peppers = { current: { id: 'p1', secret: 'k3JxPq8vRm2ZtLw9Yb5NcHf7Dg4SaQe1' } };
    const { registry, ask } = registryApp({ peppers, prefix: 'my_app' });
    const client = await registry.createClient({ name: 'c' });
    const { token } = await registry.issueToken({ clientId: client.id, scopes: [] });
    expect(token).toMatch(/^my_app_sk_live_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}$/);
    expect((await ask(token)).status).toBe(200);
  });

  it('is ready, and closes twice', async () => {
    const { registry } = registryApp();
    await registry.ready();
    await registry.close();
    await registry.close();
  });

  it('is not ready while its store is not', async () => {
    const store = {
      ...memoryTokenStore(),
      async ready() {
        throw new Error('call migrate() first');
      },
    };
    const registry = createTokenRegistry({ store, peppers: { current: pepper }, prefix: 'acme' });
    await expect(registry.ready()).rejects.toThrow('migrate');
  });
});

describe('clients', () => {
  it('are created, read, changed and deleted', async () => {
    const clock = manualClock(START * 1_000 + 700);
    const { registry } = registryApp({ clock });
    const client = await registry.createClient({
      name: 'Customer',
      tenant: 't',
      plan: 'free',
      description: 'd',
      metadata: { crm: { id: 7 } },
    });
    expect(client).toEqual({
      id: expect.stringMatching(/^cl_[0-9A-Za-z]{16}$/),
      version: 1,
      name: 'Customer',
      tenant: 't',
      plan: 'free',
      description: 'd',
      metadata: { crm: { id: 7 } },
      createdAt: START,
      updatedAt: START,
    });
    expect(await registry.getClient(client.id)).toEqual(client);
    clock.advance(10);
    const changed = await registry.updateClient(client.id, { name: 'New', plan: 'pro', description: null });
    const { description: _, ...rest } = client;
    expect(changed).toEqual({ ...rest, version: 2, name: 'New', plan: 'pro', updatedAt: START + 10 });
    expect(await registry.getClient(client.id)).toEqual(changed);
    expect(await registry.updateClient(client.id, {})).toMatchObject({ name: 'New', version: 3 });
    await registry.deleteClient(client.id);
    expect(await registry.getClient(client.id)).toBeUndefined();
    for (const gone of [registry.deleteClient(client.id), registry.updateClient(client.id, { name: 'x' })]) {
      expect(await refusal(gone)).toEqual({ code: 'not_found', status: 404, problems: ['there is no such client'] });
    }
  });

  it('have a name that is unique within the tenant', async () => {
    const { registry } = registryApp();
    await registry.createClient({ name: 'n', tenant: 'a' });
    await registry.createClient({ name: 'n' });
    const other = await registry.createClient({ name: 'n', tenant: 'b' });
    const taken = { code: 'name_taken', status: 409, problems: ['the tenant has a client of that name'] };
    expect(await refusal(registry.createClient({ name: 'n', tenant: 'a' }))).toEqual(taken);
    expect(await refusal(registry.createClient({ name: 'n' }))).toEqual(taken);
    expect(await refusal(registry.updateClient(other.id, { tenant: 'a' }))).toEqual(taken);
    expect(await refusal(registry.updateClient(other.id, { tenant: null }))).toEqual(taken);
  });

  it('are listed in pages, in the order of creation', async () => {
    const { registry } = registryApp();
    for (let index = 0; index < 5; index++) await registry.createClient({ name: `c${index}`, tenant: `t${index % 2}` });
    const first = await registry.listClients({ limit: 2 });
    expect(first.items.map(({ name }) => name)).toEqual(['c0', 'c1']);
    const second = await registry.listClients({ limit: 2, cursor: first.nextCursor as string });
    const third = await registry.listClients({ limit: 2, cursor: second.nextCursor as string });
    expect(third).toEqual({ items: [expect.objectContaining({ name: 'c4' })] });
    expect((await registry.listClients({ tenant: 't1' })).items.map(({ name }) => name)).toEqual(['c1', 'c3']);
    expect((await registry.listClients()).items).toHaveLength(5);
  });

  it('are refused with every problem of the input at once', async () => {
    const { registry } = registryApp();
    const input = {
      name: 'line\nbreak',
      tenant: '',
      plan: 5,
      description: 'x'.repeat(2_001),
      metadata: [1],
      nmae: 'x',
    };
    const wrong = await refusal(registry.createClient(input as never));
    expect([wrong.code, wrong.status]).toEqual(['invalid_input', 400]);
    expect(wrong.problems).toEqual([
      'unknown option "input.nmae" (did you mean "name"?)',
      'name must be 1 to 200 printable characters',
      'tenant must be 1 to 200 printable characters',
      'plan must be 1 to 200 printable characters',
      'description must be text of at most 2000 characters',
      'metadata must be a JSON object of at most 16384 bytes',
    ]);
    expect((await refusal(registry.createClient({} as never))).problems).toEqual(['name is needed']);
    const cyclic: Record<string, unknown> = {};
    cyclic.self = cyclic;
    for (const metadata of [cyclic, { big: 'x'.repeat(16_384) }, { n: 1n }, 'x']) {
      expect((await refusal(registry.createClient({ name: 'n', metadata: metadata as never }))).status).toBe(400);
    }
    for (const list of [
      registry.listClients({ limit: 0 }),
      registry.listClients({ limit: 1.5, cursor: 'x', tenant: '' }),
    ]) {
      expect((await refusal(list)).status).toBe(400);
    }
    expect((await refusal(registry.listTokens({ cursor: '0' }))).problems).toEqual(['cursor must be a nextCursor']);
  });

  it('gives way with 409 to somebody who is always faster', async () => {
    const inner = memoryTokenStore();
    const store = { ...inner, updateClient: async () => 'conflict' as const, updateToken: async () => false };
    const { registry, client, record } = await issuedApp({ store });
    for (const late of [registry.updateClient(client.id, { plan: 'x' }), registry.revokeToken(record.id)]) {
      expect(await refusal(late)).toMatchObject({ code: 'conflict', status: 409 });
    }
  });
});

describe('tokens', () => {
  it.each([32, 64, 65, 200])(
    'are stored as the HMAC-SHA-256 of their parts under a pepper of %s bytes',
    async (size) => {
      const secret = randomBytes(size);
      const { store, registry, client } = await issuedApp({ peppers: { current: { id: 'p1', secret } } });
      const before = Buffer.from(secret);
      const issued = [];
      for (const kind of ['sk', 'rk'] as const) {
        issued.push(await registry.issueToken({ clientId: client.id, scopes: [], kind, env: 'test' }));
      }
      secret.fill(0);
      for (const { token, record } of issued) {
        const parts = ['v1', 'acme', record.kind, 'test', record.id, token.slice(30, 73)];
        const input = parts.map((part) => `${part.length}:${part}`).join('');
        const [found] = await store.getTokens([record.id]);
        expect(found?.token.mac).toBe(createHmac('sha256', before).update(input).digest('base64url'));
        expect(await registry.resolveToken(token)).toMatchObject({ active: true });
      }
    },
  );

  it('are issued once in the clear, with a record that holds no secret', async () => {
    const clock = manualClock(START * 1_000);
    const { registry, client, token, record } = await issuedApp(
      { clock },
      {
        scopes: ['scan:read', 'clearance:read', 'scan:read'],
        groups: ['3', '1', '2'],
        expiresAt: START + 60.9,
        description: 'ci',
      },
    );
    expect(token).toMatch(/^acme_sk_live_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}$/);
    expect(record).toEqual({
      id: token.slice(13, 29),
      version: 1,
      clientId: client.id,
      authId: record.id,
      kind: 'sk',
      env: 'live',
      pepperId: 'p1',
      display: `acme_sk_live_${record.id.slice(0, 6)}…`,
      status: 'active',
      subject: { kind: 'service', id: client.id },
      scopes: ['scan:read', 'clearance:read'],
      groups: ['3', '1', '2'],
      description: 'ci',
      createdAt: START,
      updatedAt: START,
      expiresAt: START + 60,
    });
    expect(await registry.getToken(record.id)).toEqual(record);
    const { secret, mac } = { secret: token.slice(30, 73), mac: 'mac' };
    const shown = inspect([record, await registry.listTokens(), await registry.getToken(record.id)], { depth: 9 });
    expect(shown).not.toContain(secret);
    expect(shown).not.toContain(mac);
    clock.advance(60);
    expect((await registry.getToken(record.id))?.status).toBe('expired');
    expect((await registry.issueToken({ clientId: client.id, scopes: [], kind: 'rk', env: 'test' })).token).toMatch(
      /^acme_rk_test_/,
    );
  });

  it('are refused with every problem of the input at once', async () => {
    const clock = manualClock(START * 1_000);
    const { registry, client } = await issuedApp({ clock });
    const input = {
      clientId: 'cl_unknown',
      scopes: ['ok:read', 'with space', '*', 'scan:any', 5],
      groups: ['1', '2', '1', '', '1'],
      resources: [{ type: 'repo' }, { type: 'repo', id: 'x', extra: 1 }, null],
      subject: { kind: 'robot', id: '' },
      expiresAt: START,
      description: 5,
      kind: 'pk',
      env: 'prod',
      scope: 'x',
    };
    const wrong = await refusal(registry.issueToken(input as never));
    expect([wrong.code, wrong.status]).toEqual(['invalid_input', 400]);
    const malformed = 'is malformed: printable ASCII without spaces, quotes and backslashes is needed';
    const wildcard = 'is a wildcard: every scope must be named';
    expect(wrong.problems).toEqual([
      'unknown option "input.scope" (did you mean "scopes"?)',
      `scopes[1] ${malformed}`,
      `scopes[2] ${wildcard}`,
      `scopes[3] ${wildcard}`,
      `scopes[4] ${malformed}`,
      'groups[2] repeats groups[0]',
      'groups[3] must be 1 to 200 printable characters',
      'groups[4] repeats groups[0]',
      'resources[0] must be { type, id }, each 1 to 200 printable characters',
      'unknown option "resources[1].extra"',
      'resources[2] must be an object',
      'resources[2] must be { type, id }, each 1 to 200 printable characters',
      'expiresAt is in the past',
      'description must be text of at most 2000 characters',
      'subject must be { kind, id }: kind one of user, service, workload, organization, id 1 to 200 characters',
      'kind must be one of sk, rk',
      'env must be one of live, test',
      'there is no such client',
    ]);
    expect(await refusal(registry.issueToken({ clientId: 'cl_unknown', scopes: [] }))).toEqual({
      code: 'not_found',
      status: 404,
      problems: ['there is no such client'],
    });
    expect((await refusal(registry.issueToken({} as never))).problems).toEqual([
      'clientId is needed',
      'scopes is needed',
    ]);
    expect((await refusal(registry.issueToken({ clientId: client.id, scopes: 'a:read' as never }))).status).toBe(400);
    for (const expiresAt of [(START + 60) * 1_000, Number.NaN, '2027', new Date()]) {
      const promise = registry.issueToken({ clientId: client.id, scopes: [], expiresAt: expiresAt as number });
      expect((await refusal(promise)).problems).toEqual([
        'expiresAt must be epoch seconds (a number, not milliseconds)',
      ]);
    }
  });

  it('answer 404 for ids that do not exist or are none', async () => {
    const { registry } = registryApp();
    for (const id of ['0'.repeat(16), '', '\u0000', "'; drop table", 'x'.repeat(70_000), null, {}, ['a']]) {
      const given = id as string;
      expect(await registry.getToken(given)).toBeUndefined();
      expect(await registry.getClient(given)).toBeUndefined();
      for (const missing of [
        registry.updateToken(given, {}),
        registry.revokeToken(given),
        registry.rotateToken(given),
        registry.updateClient(given, {}),
        registry.deleteClient(given),
        registry.dropPepper(given),
      ]) {
        expect(await refusal(missing)).toMatchObject({ code: 'not_found', status: 404 });
      }
    }
  });

  it('refuse hostile values everywhere, with a RegistryError and nothing else', async () => {
    const { registry, client, record } = await issuedApp();
    const hostile = fc.oneof(
      fc.anything({ withNullPrototype: true, withBigInt: true, withDate: true, withMap: true, withTypedArray: true }),
      fc.constantFrom(
        'x'.repeat(65_536),
        '__proto__',
        JSON.parse('{"__proto__":{"a":1}}'),
        '\ud800',
        '\u0000',
        null,
        [],
      ),
    );
    const fields = ['name', 'tenant', 'plan', 'description', 'metadata', 'scopes', 'groups', 'resources', 'subject'];
    await fc.assert(
      fc.asyncProperty(
        hostile,
        fc.constantFrom(...fields, 'expiresAt', 'kind', 'env', 'limit', 'cursor'),
        async (value, field) => {
          const calls = [
            () => registry.createClient({ name: `n${Math.random()}`, [field]: value }),
            () => registry.updateClient(client.id, { [field]: value }),
            () => registry.issueToken({ clientId: client.id, scopes: [], [field]: value } as TokenInput),
            () => registry.updateToken(record.id, { [field]: value }),
            () => registry.listTokens({ [field]: value }),
            () => registry.createClient(value as never),
            () => registry.updateToken(record.id, value as never),
          ];
          for (const call of calls) {
            await call().catch((error: RegistryError) => {
              if (error.name !== 'RegistryError') throw error;
            });
          }
        },
      ),
      { numRuns: 500 },
    );
  });

  it('are changed: a list that is given replaces the whole list, [] clears, absent keeps, null takes away', async () => {
    const { registry, record } = await issuedApp(
      {},
      { groups: ['3', '1', '2'], resources: [{ type: 'repo', id: 'r' }], description: 'd', expiresAt: 4_000_000_000 },
    );
    const replaced = await registry.updateToken(record.id, { groups: ['2', '3'] });
    expect([replaced.groups, replaced.scopes]).toEqual([['2', '3'], ['scan:read']]);
    const cleared = await registry.updateToken(record.id, { groups: [], scopes: [], resources: [] });
    expect([cleared.groups, cleared.scopes, cleared.resources]).toEqual([[], [], []]);
    const bare = await registry.updateToken(record.id, { resources: null, description: null, expiresAt: null });
    expect(Object.keys(bare)).not.toEqual(expect.arrayContaining(['resources']));
    expect([bare.resources, bare.description, bare.expiresAt]).toEqual([undefined, undefined, undefined]);
    expect(await registry.getToken(record.id)).toEqual(bare);
    expect((await refusal(registry.updateToken(record.id, { groups: ['1', '1'] }))).status).toBe(400);
    expect((await refusal(registry.updateToken(record.id, { clientId: 'x' } as never))).status).toBe(400);
    await registry.revokeToken(record.id);
    expect(await refusal(registry.updateToken(record.id, { scopes: [] }))).toMatchObject({
      code: 'conflict',
      problems: ['the token is revoked'],
    });
  });

  it('are listed by client', async () => {
    const { registry, client, record } = await issuedApp();
    const other = await registry.createClient({ name: 'other' });
    const { record: second } = await registry.issueToken({ clientId: other.id, scopes: [] });
    expect((await registry.listTokens()).items).toEqual([record, second]);
    expect((await registry.listTokens({ clientId: client.id })).items).toEqual([record]);
    expect(await registry.listTokens({ limit: 1 })).toEqual({ items: [record], nextCursor: expect.any(String) });
  });

  it('are rotated once: with the same authId, rights and expiry, under another id', async () => {
    const clock = manualClock(START * 1_000);
    const { registry, record } = await issuedApp(
      { clock },
      { groups: ['2', '1'], expiresAt: START + 1_000, kind: 'rk' },
    );
    const { token, record: next } = await registry.rotateToken(record.id, { overlapSeconds: 30 });
    expect(token).toMatch(/^acme_rk_live_/);
    expect(next).toEqual({
      ...record,
      id: token.slice(13, 29),
      display: `acme_rk_live_${token.slice(13, 19)}…`,
      rotatedFrom: record.id,
    });
    expect(await registry.getToken(record.id)).toMatchObject({
      rotatedTo: next.id,
      expiresAt: START + 30,
      status: 'active',
    });
    const again = { code: 'conflict', status: 409, problems: ['the token was rotated already'] };
    expect(await refusal(registry.rotateToken(record.id))).toEqual(again);
    const { record: third } = await registry.rotateToken(next.id, { expiresAt: null });
    expect([third.authId, third.expiresAt]).toEqual([record.authId, undefined]);
    expect(await registry.getToken(next.id)).toMatchObject({ status: 'revoked', revokedAt: START });
    expect((await refusal(registry.rotateToken(next.id))).problems).toEqual(['the token is revoked']);
    clock.advance(31);
    expect((await refusal(registry.rotateToken(record.id))).problems).toEqual(['the token has expired']);
    for (const overlapSeconds of [-1, Number.NaN, '5', 31_536_001]) {
      const wrong = registry.rotateToken(third.id, { overlapSeconds: overlapSeconds as number });
      expect((await refusal(wrong)).problems).toEqual([
        'overlapSeconds must be a number of seconds from 0 to 31536000',
      ]);
    }
  });

  it('are rotated by one of those who try at the same time', async () => {
    const { registry, record } = await issuedApp();
    const outcomes = await Promise.allSettled(
      Array.from({ length: 6 }, () => registry.rotateToken(record.id, { overlapSeconds: 9 })),
    );
    expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    expect((await registry.listTokens()).items).toHaveLength(2);
  });

  it('cannot be rotated or issued into a client that is deleted meanwhile', async () => {
    const inner = memoryTokenStore();
    const store = { ...inner, insertToken: async () => 'no_client' as const };
    const { registry } = registryApp({ store });
    const client = await registry.createClient({ name: 'c' });
    expect((await refusal(registry.issueToken({ clientId: client.id, scopes: [] }))).status).toBe(404);
    const { registry: whole, record } = await issuedApp({ store: inner });
    expect(whole).toBeDefined();
    expect((await refusal(registry.rotateToken(record.id, { overlapSeconds: 1 }))).status).toBe(404);
  });

  it('draws ids and secrets evenly: bytes that would favour some digits are drawn again', async () => {
    let next = 0;
    // Every byte value in turn, the unfair ones too.
    const random = (size: number) => Uint8Array.from({ length: size }, () => next++ % 256);
    const { token } = await issuedApp({ random });
    expect(token).toMatch(/^acme_sk_live_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}$/);
    const counts = new Map<string, number>();
    const { registry, client } = await issuedApp();
    for (let round = 0; round < 400; round++) {
      const issued = await registry.issueToken({ clientId: client.id, scopes: [] });
      for (const digit of issued.token.slice(30, 73)) counts.set(digit, (counts.get(digit) ?? 0) + 1);
    }
    // 17,200 digits: 277 of each are expected, with a deviation of 17; without the redraw the first eight would have 336.
    expect(counts.size).toBe(62);
    const firstEight = [...'01234567'].reduce((sum, digit) => sum + (counts.get(digit) ?? 0), 0);
    expect(firstEight).toBeLessThan(8 * 277 + 300);
  });
});

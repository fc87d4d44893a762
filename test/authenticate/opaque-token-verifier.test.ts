import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import {
  authenticate,
  createRevocations,
  createTokenRegistry,
  memoryRevocationStore,
  memoryTokenStore,
  opaqueTokenVerifier,
  type RegistryError,
  type TokenLookup,
  type TokenRegistry,
  type TokenStore,
} from 'tollkeeper';
import { manualClock } from 'tollkeeper/testing';
import { describe, expect, it, vi } from 'vitest';
import { frameworks } from '../support/frameworks.js';
import { rawGet, withoutDate } from '../support/raw-request.js';
import { serve } from '../support/serve.js';
import { issuedApp, pepper, registryApp } from '../tokens/registry-app.js';

const START = 1_767_225_600;
const other = { id: 'p2', secret: randomBytes(32) };

/** A store whose lookups wait, so that a test can act while one is in flight. */
function slowStore() {
  const inner = memoryTokenStore();
  let waiting: (() => void)[] = [];
  const slow = {
    hold: false,
    lookups: 0,
    /** Resolves once so many lookups have been read and wait to be answered. */
    async arrived(count: number) {
      while (waiting.length < count) await sleep(1);
    },
    release() {
      const released = waiting;
      waiting = [];
      for (const go of released) go();
    },
  };
  const store: TokenStore = {
    ...inner,
    async getTokens(ids) {
      slow.lookups += 1;
      const found = await inner.getTokens(ids);
      if (slow.hold) await new Promise<void>((go) => waiting.push(go));
      return found;
    },
  };
  return { store, slow };
}

describe('opaqueTokenVerifier', () => {
  it('refuses wrong options with all problems at once', () => {
    expect(() => opaqueTokenVerifier({ registry: {} as never, name: '', nmae: 1 } as never)).toThrow(
      /unknown option "nmae" \(did you mean "name"\?\).*name must be.*registry must come from/,
    );
    expect(() => opaqueTokenVerifier(undefined as never)).toThrow(TypeError);
  });

  it('attaches the identity of the record, with scopes and ordered groups', async () => {
    const { ask, client, token, record } = await issuedApp(
      { clock: manualClock(START * 1_000) },
      {
        scopes: ['scan:read', 'clearance:read'],
        groups: ['3', '1', '2'],
        resources: [{ type: 'repo', id: 'r' }],
        expiresAt: START + 60,
      },
    );
    const res = await ask(token);
    expect([res.status, res.body]).toEqual([
      200,
      {
        subject: { kind: 'service', id: client.id },
        issuer: 'opaque',
        authId: record.id,
        scopes: ['scan:read', 'clearance:read'],
        groups: ['3', '1', '2'],
        verifier: 'opaque',
        claims: {},
        tenant: 'acme-inc',
        clientId: client.id,
        tokenId: record.id,
        keyId: 'p1',
        plan: 'pro',
        issuedAt: START,
        expiresAt: START + 60,
        resources: [{ type: 'repo', id: 'r' }],
      },
    ]);
  });

  it('speaks for the subject that was stated, under the name that was given', async () => {
    const { registry, client } = await issuedApp();
    const subject = { kind: 'user', id: 'u-1' } as const;
    const { token } = await registry.issueToken({ clientId: client.id, scopes: [], subject });
    const served = await serve((req, res) =>
      authenticate({ verifiers: [opaqueTokenVerifier({ registry, name: 'keys' })] })(req, res, () =>
        res.end(JSON.stringify(req.identity)),
      ),
    );
    const res = await fetch(served.url, { headers: { authorization: `Bearer ${token}` } });
    expect(await res.json()).toMatchObject({ subject, issuer: 'keys', verifier: 'keys' });
    await served.close();
  });

  it('answers the same under every framework', async () => {
    const { registry, token } = await issuedApp();
    const answers = new Set<string>();
    for (const { listen } of frameworks) {
      const gate = authenticate({ verifiers: [opaqueTokenVerifier({ registry })] });
      const served = await serve(listen([gate], (req, res) => res.end(req.identity?.authId)));
      const both = [];
      for (const shown of [token, `${token.slice(0, -1)}!`, token.replace('acme', 'acm3')]) {
        both.push(withoutDate(await rawGet(served.port, [`Authorization: Bearer ${shown}`])));
      }
      answers.add(both.join('\n').replaceAll(/keep-alive: .*\r\n/gi, ''));
      await served.close();
    }
    expect(answers.size).toBe(1);
    expect([...answers][0]).toMatch(/200 OK[\s\S]*400 Bad Request[\s\S]*401 Unauthorized/);
  });

  it('refuses a malformed token or a wrong checksum without any lookup', async () => {
    const { ask, asked, reasons, token } = await issuedApp();
    const flip = (at: number) => token.slice(0, at) + (token[at] === 'x' ? 'y' : 'x') + token.slice(at + 1);
    const wrong = [
      'acme_',
      'acme_nonsense',
      token.slice(0, -1),
      `${token}0`,
      flip(15),
      flip(40),
      flip(token.length - 1),
      token.replace('_sk_', '_rk_'),
      token.replace('_live_', '_test_'),
      token.replace('_sk_', '_xx_'),
      `${token.slice(0, -6)}000000`,
    ];
    for (const shown of wrong) {
      const res = await ask(shown);
      expect([res.status, res.body.code]).toEqual([401, 'invalid_token']);
      expect(res.headers['www-authenticate']).toMatch(/^Bearer error="invalid_token"/);
    }
    expect(new Set(reasons)).toEqual(new Set(['the token is malformed, or its checksum is wrong']));
    expect(asked).toEqual([]);
  });

  it('accepts no mutation of a valid token, and repeats nothing of it', async () => {
    const { registry, token } = await issuedApp();
    const positions = fc.integer({ min: 0, max: token.length - 1 });
    const digits = fc.constantFrom(...'0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-.');
    const edits = fc.array(fc.tuple(positions, digits, fc.constantFrom('replace', 'insert', 'delete')), {
      minLength: 1,
      maxLength: 4,
    });
    await fc.assert(
      fc.asyncProperty(edits, async (list) => {
        let shown = token;
        for (const [at, digit, edit] of list) {
          shown = shown.slice(0, at) + (edit === 'delete' ? '' : digit) + shown.slice(edit === 'insert' ? at : at + 1);
        }
        if (shown === token) return;
        const answer = await registry.resolveToken(shown);
        expect(answer).toMatchObject({ active: false });
      }),
      { numRuns: 10_000 },
    );
  });

  it('refuses a secret that is wrong, unknown or of another token, though its checksum is right, and says the same', async () => {
    const { ask, reasons, registry, client, token, record } = await issuedApp();
    // A registry with the same prefix and another pepper makes tokens of the right form.
    const foreign = await issuedApp({ peppers: { current: other } });
    const bodies = new Set<string>();
    const { token: second } = await registry.issueToken({ clientId: client.id, scopes: [] });
    const forged = await forge(`${token.slice(0, 29)}${second.slice(29, 73)}`);
    await registry.revokeToken(record.id);
    for (const shown of [foreign.token, forged]) {
      const res = await ask(shown);
      expect(res.status).toBe(401);
      bodies.add(JSON.stringify([res.body, res.headers['www-authenticate']]));
    }
    expect(reasons).toEqual(['the token is unknown', 'the token is unknown']);
    bodies.add(JSON.stringify([(await ask(token)).body, (await ask(token)).headers['www-authenticate']]));
    expect(bodies.size).toBe(1);
  });

  it('does not accept a token that was stored under another prefix', async () => {
    const { store, token } = await issuedApp();
    const { ask } = registryApp({ store, prefix: 'acmf' });
    const res = await ask(await forge(token.slice(0, -6).replace('acme', 'acmf')));
    expect(res.status).toBe(401);
  });

  it('refuses an expired token to the second, cached or not', async () => {
    const clock = manualClock(START * 1_000);
    const { ask, reasons, token } = await issuedApp({ clock }, { expiresAt: START + 10 });
    expect((await ask(token)).status).toBe(200);
    clock.advance(9.999);
    expect((await ask(token)).status).toBe(200);
    clock.advance(0.001);
    expect((await ask(token)).status).toBe(401);
    expect(reasons).toEqual(['the token has expired']);
  });

  it('refuses a token whose client is gone, whatever its record says', async () => {
    const inner = memoryTokenStore();
    const store: TokenStore = {
      ...inner,
      getTokens: async (ids) => (await inner.getTokens(ids)).map(({ token }) => ({ token })),
    };
    const { ask, reasons, token } = await issuedApp({ store });
    expect((await ask(token)).status).toBe(401);
    expect(reasons).toEqual(["the token's client was deleted"]);
  });

  it('answers 503 while the store is down, keeps known callers, and recovers', async () => {
    let down = false;
    const inner = memoryTokenStore();
    const store: TokenStore = {
      ...inner,
      async getTokens(ids) {
        if (down) throw new Error('connection refused');
        return inner.getTokens(ids);
      },
    };
    const { ask, registry, client, token } = await issuedApp({ store });
    const { token: unknown } = await registry.issueToken({ clientId: client.id, scopes: [] });
    expect((await ask(token)).status).toBe(200);
    down = true;
    expect((await ask(token)).status).toBe(200);
    const res = await ask(unknown);
    expect([res.status, res.body.code, res.headers['www-authenticate']]).toEqual([
      503,
      'verifier_unavailable',
      undefined,
    ]);
    expect(Number(res.headers['retry-after'])).toBeGreaterThan(0);
    down = false;
    expect((await ask(unknown)).status).toBe(200);
  });

  it('looks a known caller up once, and many at once in few queries', async () => {
    const { registry, client } = await issuedApp();
    const { store, slow } = slowStore();
    const busy = registryApp({ store });
    const owner = await busy.registry.createClient({ name: 'c' });
    const tokens: string[] = [];
    for (let index = 0; index < 600; index++) {
      tokens.push((await busy.registry.issueToken({ clientId: owner.id, scopes: [] })).token);
    }
    busy.asked.length = 0;
    const answers = await Promise.all([...tokens, ...tokens].map((token) => busy.registry.resolveToken(token)));
    expect(answers.every(({ active }) => active)).toBe(true);
    expect(busy.asked.length).toBeLessThanOrEqual(3);
    expect(Math.max(...busy.asked.map((ids) => ids.length))).toBeLessThanOrEqual(500);
    expect(busy.asked.every((ids) => new Set(ids).size === ids.length)).toBe(true);
    expect(slow.lookups).toBe(busy.asked.length);
    const { token } = await registry.issueToken({ clientId: client.id, scopes: [] });
    const known = registryApp({ store: memoryTokenStore() });
    expect((await known.ask(token)).status).toBe(401);
  });

  it('runs a bounded number of queries at a time, and fails them one by one', async () => {
    const { store, slow } = slowStore();
    let fail = false;
    const app = registryApp({
      store: {
        ...store,
        async getTokens(ids) {
          const found = await store.getTokens(ids);
          if (fail) throw new Error('down');
          return found;
        },
      },
    });
    const client = await app.registry.createClient({ name: 'c' });
    const { token } = await app.registry.issueToken({ clientId: client.id, scopes: [] });
    slow.hold = true;
    slow.lookups = 0;
    const answers: Promise<unknown>[] = [];
    for (let turn = 0; turn < 10; turn++) {
      answers.push(Promise.resolve(app.registry.resolveToken(token)).catch((error: Error) => error.message));
      await sleep(2);
    }
    expect(slow.lookups).toBe(4);
    fail = true;
    slow.hold = false;
    slow.release();
    expect(new Set(await Promise.all(answers))).toEqual(new Set(['down']));
    // The six that waited went into one query together.
    expect(slow.lookups).toBe(5);
  });

  it('gives up after five seconds what a store does not answer, and leaves no queue behind', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setImmediate'] });
    try {
      const inner = memoryTokenStore();
      let hangs = false;
      const app = registryApp({
        store: { ...inner, getTokens: (ids) => (hangs ? new Promise<never>(() => {}) : inner.getTokens(ids)) },
      });
      const client = await app.registry.createClient({ name: 'c' });
      const tokens: string[] = [];
      for (let index = 0; index < 3_000; index++) {
        tokens.push((await app.registry.issueToken({ clientId: client.id, scopes: [] })).token);
      }
      hangs = true;
      app.asked.length = 0;
      const answers: (Promise<unknown> | undefined)[] = [];
      for (const token of tokens) {
        answers.push(Promise.resolve(app.registry.resolveToken(token)).catch((error: Error) => error.name));
        if (answers.length % 100 === 0) await vi.advanceTimersByTimeAsync(1);
      }
      await vi.advanceTimersByTimeAsync(3_500);
      expect(await Promise.race([...answers, 'none'])).toBe('none');
      await vi.advanceTimersByTimeAsync(1_500);
      expect(new Set(await Promise.all(answers))).toEqual(new Set(['DeadlineError']));
      // Whoever comes now waits for nobody who has been answered: those were never asked about.
      hangs = false;
      expect(app.asked).toHaveLength(4);
      expect(await app.registry.resolveToken(tokens[0] as string)).toMatchObject({ active: true });
      expect(app.asked).toHaveLength(5);
      expect(vi.getTimerCount()).toBeLessThanOrEqual(2);
    } finally {
      vi.useRealTimers();
    }
  });

  it('notes the last use once a minute, in batches, off the path', async () => {
    const clock = manualClock(START * 1_000);
    const inner = memoryTokenStore();
    const written: unknown[] = [];
    let broken = false;
    const store: TokenStore = {
      ...inner,
      async touchTokens(uses) {
        written.push(uses.length);
        if (broken) throw new Error('down');
        return inner.touchTokens(uses);
      },
    };
    const { registry, client, token, record } = await issuedApp({ store, clock });
    const { token: second } = await registry.issueToken({ clientId: client.id, scopes: [] });
    for (const shown of [token, token, second]) await registry.resolveToken(shown);
    expect((await registry.getToken(record.id))?.lastUsedAt).toBeUndefined();
    await registry.close();
    expect(written).toEqual([2]);
    expect((await registry.getToken(record.id))?.lastUsedAt).toBe(START);
    clock.advance(59);
    await registry.resolveToken(token);
    await registry.close();
    expect(written).toEqual([2]);
    clock.advance(1);
    broken = true;
    await registry.resolveToken(token);
    await registry.close();
    broken = false;
    await registry.resolveToken(token);
    await sleep(1_100);
    expect(written).toEqual([2, 1, 1]);
    expect((await registry.getToken(record.id))?.lastUsedAt).toBe(START + 60);
  });
});

/** What each change must do to a caller who is known, and to one whose verification is in flight. */
const changes: readonly {
  name: string;
  act(registry: TokenRegistry, tokenId: string, clientId: string): Promise<unknown>;
  status: number;
  shows?: object;
}[] = [
  { name: 'revokes the token', act: (registry, id) => registry.revokeToken(id), status: 401 },
  { name: 'rotates the token', act: (registry, id) => registry.rotateToken(id), status: 401 },
  { name: 'deletes the client', act: (registry, _, clientId) => registry.deleteClient(clientId), status: 401 },
  { name: 'drops the pepper', act: (registry) => registry.dropPepper('p1'), status: 401 },
  {
    name: 'changes the scopes',
    act: (registry, id) => registry.updateToken(id, { scopes: ['clearance:read'] }),
    status: 200,
    shows: { scopes: ['clearance:read'], groups: ['1', '2'] },
  },
  {
    name: 'clears the groups',
    act: (registry, id) => registry.updateToken(id, { groups: [] }),
    status: 200,
    shows: { scopes: ['scan:read'], groups: [] },
  },
  {
    name: "changes the client's plan and tenant",
    act: (registry, _, clientId) => registry.updateClient(clientId, { plan: 'free', tenant: 'other' }),
    status: 200,
    shows: { plan: 'free', tenant: 'other' },
  },
];

describe.each(changes)('who $name', ({ act, status, shows = {} }) => {
  it('is obeyed on the very next request of a known caller, in this process', async () => {
    const { ask, asked, registry, client, token, record } = await issuedApp({}, { groups: ['1', '2'] });
    for (let count = 0; count < 3; count++) expect((await ask(token)).status).toBe(200);
    expect(asked).toHaveLength(1);
    await act(registry, record.id, client.id);
    for (let count = 0; count < 2; count++) {
      const res = await ask(token);
      expect(res.status).toBe(status);
      if (status === 200) expect(res.body).toMatchObject(shows);
      else expect(res.body.code).toBe('invalid_token');
    }
  });

  it('is obeyed by a verification that was in flight', async () => {
    const { store, slow } = slowStore();
    const { ask, registry, client, token, record } = await issuedApp({ store }, { groups: ['1', '2'] });
    slow.hold = true;
    const pending = ask(token).then((res) => res);
    await slow.arrived(1);
    slow.hold = false;
    await act(registry, record.id, client.id);
    slow.release();
    const res = await pending;
    expect(res.status).toBe(status);
    if (status === 200) expect(res.body).toMatchObject(shows);
    expect((await ask(token)).status).toBe(status);
  });
});

describe('a rotation with an overlap', () => {
  it('lets both tokens work until its end, and then the new one alone, though the old one is cached', async () => {
    const clock = manualClock(START * 1_000 + 500);
    const { ask, registry, token, record } = await issuedApp({ clock });
    expect((await ask(token)).body.expiresAt).toBeUndefined();
    const { token: next } = await registry.rotateToken(record.id, { overlapSeconds: 20 });
    const [old, fresh] = [await ask(token), await ask(next)];
    expect([old.status, fresh.status, old.body.authId]).toEqual([200, 200, fresh.body.authId]);
    expect(old.body.expiresAt).toBe(START + 20.5);
    clock.advance(19.9);
    expect((await ask(token)).status).toBe(200);
    clock.advance(0.1);
    expect([(await ask(token)).status, (await ask(next)).status]).toEqual([401, 200]);
  });

  it('still shows the new token when the others cannot be told', async () => {
    const down = createRevocations({
      store: {
        append: async () => {
          throw new Error('down');
        },
        read: async () => ({ entries: [], cursor: '0', more: false, continued: true, asOf: Date.now() }),
      },
    });
    const { ask, registry, record } = await issuedApp({ revocations: down });
    const { token } = await registry.rotateToken(record.id, { overlapSeconds: 5 });
    expect((await ask(token)).status).toBe(200);
    await down.close();
  });
});

describe('when the revocations cannot be told', () => {
  it('a change rejects, holds here, and can be repeated', async () => {
    let down = true;
    const entries: unknown[] = [];
    const revocations = createRevocations({
      store: {
        async append(entry) {
          if (down) throw new Error('down');
          entries.push(entry);
        },
        async read() {
          return { entries: [], cursor: '0', more: false, continued: true, asOf: Date.now() };
        },
      },
    });
    const { ask, registry, client, token, record } = await issuedApp({ revocations });
    expect((await ask(token)).status).toBe(200);
    await expect(registry.rotateToken(record.id)).rejects.toThrow('down');
    expect((await registry.listTokens()).items).toHaveLength(1);
    await expect(registry.deleteClient(client.id)).rejects.toThrow('down');
    expect(await registry.getClient(client.id)).toBeDefined();
    await expect(registry.revokeToken(record.id)).rejects.toThrow('down');
    expect((await ask(token)).status).toBe(401);
    await expect(registry.dropPepper('p1')).rejects.toThrow('down');
    down = false;
    await registry.revokeToken(record.id);
    await registry.deleteClient(client.id);
    expect(await registry.dropPepper('p1')).toEqual({ revoked: 0 });
    expect(entries).toHaveLength(3);
    await revocations.close();
  });
});

describe('a watermark', () => {
  it.each([
    ['client', (clientId: string) => ({ clientId })],
    ['tenant', () => ({ tenant: 'acme-inc' })],
    ['subject', (id: string) => ({ subject: id, issuer: 'opaque' })],
  ])(
    'of a %s denies what was issued before, and nothing that is issued or rotated right after it',
    async (_, target) => {
      const { ask, registry, client, token } = await issuedApp();
      const { record } = await registry.issueToken({ clientId: client.id, scopes: [] });
      await registry.revocations.revoke(target(client.id));
      expect((await ask(token)).status).toBe(401);
      const [issued, rotated] = await Promise.all([
        registry.issueToken({ clientId: client.id, scopes: [] }),
        registry.rotateToken(record.id, { overlapSeconds: 5 }),
      ]);
      expect([(await ask(issued.token)).status, (await ask(rotated.token)).status]).toEqual([200, 200]);
      expect((await ask(token)).status).toBe(401);
    },
  );

  it('that has no end refuses to issue', async () => {
    const { registry, client, record } = await issuedApp();
    await registry.revocations.revoke({ tenant: 'acme-inc' }, { before: Number.POSITIVE_INFINITY });
    const refused = {
      code: 'conflict',
      problems: ['the client, its tenant, its subject or the current pepper is revoked'],
    };
    const both = await Promise.allSettled([
      registry.issueToken({ clientId: client.id, scopes: [] }),
      registry.rotateToken(record.id),
    ]);
    for (const outcome of both) expect(outcome).toMatchObject({ status: 'rejected', reason: refused });
    expect((await registry.getToken(record.id))?.status).toBe('active');
  });
});

describe('peppers', () => {
  it('are rotated: a token moves to the current one when it is used, and who has not is reported', async () => {
    const store = memoryTokenStore();
    const before = await issuedApp({ store });
    const { token: dormant } = await before.registry.issueToken({ clientId: before.client.id, scopes: [] });
    const peppers = { current: other, previous: [pepper] };
    const { ask, registry } = registryApp({ store, peppers });
    expect(await registry.pepperReport()).toEqual([
      { id: 'p2', state: 'current', tokens: 0 },
      { id: 'p1', state: 'previous', tokens: 2 },
    ]);
    expect((await ask(before.token)).body.keyId).toBe('p1');
    await sleep(5);
    expect(await registry.pepperReport()).toEqual([
      { id: 'p2', state: 'current', tokens: 1 },
      { id: 'p1', state: 'previous', tokens: 1 },
    ]);
    const after = registryApp({ store, peppers: { current: other } });
    expect((await after.ask(before.token)).body.keyId).toBe('p2');
    expect((await after.ask(dormant)).status).toBe(401);
    expect(await after.registry.pepperReport()).toEqual([
      { id: 'p2', state: 'current', tokens: 1 },
      { id: 'p1', state: 'missing', tokens: 1 },
    ]);
  });

  it('move a token once however often it is used, and never back to life', async () => {
    const store = memoryTokenStore();
    const before = await issuedApp({ store });
    let updates = 0;
    let revoke = false;
    const racing: TokenStore = {
      ...store,
      async updateToken(token) {
        updates += 1;
        if (revoke) {
          const [found] = await store.getTokens([token.id]);
          await store.updateToken({ ...(found as TokenLookup).token, revokedAt: START });
        }
        return store.updateToken(token);
      },
    };
    const { registry } = registryApp({ store: racing, peppers: { current: other, previous: [pepper] } });
    revoke = true;
    await Promise.all(Array.from({ length: 5 }, () => registry.resolveToken(before.token)));
    await sleep(5);
    expect(updates).toBe(1);
    expect(await registry.getToken(before.record.id)).toMatchObject({ status: 'revoked', pepperId: 'p1' });
    expect(await registry.resolveToken(before.token)).toMatchObject({ active: false });
  });

  it('let a token in whose move fails', async () => {
    const store = memoryTokenStore();
    const before = await issuedApp({ store });
    const readOnly: TokenStore = {
      ...store,
      async updateToken() {
        throw new Error('read only');
      },
    };
    const { ask } = registryApp({ store: readOnly, peppers: { current: other, previous: [pepper] } });
    for (let count = 0; count < 2; count++) expect((await ask(before.token)).status).toBe(200);
  });

  it('that are dropped kill their tokens at once and for good, and nothing is issued under them', async () => {
    const store = memoryTokenStore();
    const before = await issuedApp({ store });
    const { ask, registry } = registryApp({ store, peppers: { current: other, previous: [pepper] } });
    const { token: fresh } = await registry.issueToken({ clientId: before.client.id, scopes: [] });
    const { token: dormant } = await before.registry.issueToken({ clientId: before.client.id, scopes: [] });
    expect((await ask(fresh)).status).toBe(200);
    expect(await registry.dropPepper('p1')).toEqual({ revoked: 2 });
    expect([(await ask(dormant)).status, (await ask(before.token)).status, (await ask(fresh)).status]).toEqual([
      401, 401, 200,
    ]);
    // A process that starts later with the old configuration does not know what was revoked, but the store does.
    const restarted = registryApp({ store, peppers: { current: other, previous: [pepper] } });
    expect((await restarted.ask(dormant)).status).toBe(401);
    expect(await registry.dropPepper('p2')).toEqual({ revoked: 1 });
    expect((await ask(fresh)).status).toBe(401);
    const refused = await registry
      .issueToken({ clientId: before.client.id, scopes: [] })
      .catch((error: RegistryError) => error);
    expect(refused).toMatchObject({
      code: 'conflict',
      problems: ['the current pepper was dropped: configure a new one'],
    });
    expect(await registry.pepperReport()).toEqual([]);
  });

  it('that another process has dropped are left as they are here: no token moves away from its death, and none is issued', async () => {
    const inner = memoryTokenStore();
    const before = await issuedApp({ store: inner });
    const revocations = createRevocations({ store: memoryRevocationStore() });
    let updates = 0;
    const store: TokenStore = {
      ...inner,
      updateToken(token) {
        updates += 1;
        return inner.updateToken(token);
      },
    };
    const { ask, registry } = registryApp({ store, revocations, peppers: { current: other, previous: [pepper] } });
    // The other process has announced it, and has not reached the store yet.
    await revocations.revoke({ keyId: 'p1' });
    expect((await ask(before.token)).status).toBe(401);
    await sleep(5);
    expect(updates).toBe(0);
    expect(await registry.getToken(before.record.id)).toMatchObject({ pepperId: 'p1' });
    await revocations.revoke({ keyId: 'p2' });
    await expect(registry.issueToken({ clientId: before.client.id, scopes: [] })).rejects.toMatchObject({
      code: 'conflict',
    });
    expect((await registry.listTokens()).items).toHaveLength(1);
  });

  it('keep a copy of the store alone from being of use: it holds no raw token and no pepper', async () => {
    const store = memoryTokenStore();
    const { token, registry, client } = await issuedApp({ store });
    const issued = [token];
    for (let count = 0; count < 5; count++) {
      issued.push((await registry.issueToken({ clientId: client.id, scopes: [] })).token);
    }
    const dump = JSON.stringify([await store.listClients({ limit: 99 }), await store.listTokens({ limit: 99 })]);
    for (const raw of issued) {
      expect(dump).toContain(raw.slice(13, 29));
      for (const part of [raw, raw.slice(30, 73), raw.slice(-6)]) expect(dump).not.toContain(part);
    }
    for (const form of ['hex', 'base64', 'base64url'] as const) {
      expect(dump).not.toContain(Buffer.from(pepper.secret).toString(form));
    }
  });
});

/** A token body with its right checksum, as anybody can compute it. */
async function forge(body: string): Promise<string> {
  const { crc32 } = await import('node:zlib');
  const alphabet = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
  let rest = crc32(body);
  let checksum = '';
  for (let digit = 0; digit < 6; digit++) {
    checksum = alphabet[rest % 62] + checksum;
    rest = Math.floor(rest / 62);
  }
  return body + checksum;
}

it('createTokenRegistry needs nothing but a store, peppers and a prefix', () => {
  const registry = createTokenRegistry({ store: memoryTokenStore(), peppers: { current: pepper }, prefix: 'acme' });
  expect(registry.revocations.version).toBe(0);
});

import express from 'express';
import { Redis } from 'ioredis';
import {
  createQuota,
  enforceQuota,
  type IdentityInput,
  identityOf,
  memoryQuotaStore,
  type QuotaOp,
  type QuotaPolicy,
  type QuotaStore,
  type StoreWindow,
} from 'tollkeeper';
import { redisQuotaStore } from 'tollkeeper/redis';
import { asIdentity, manualClock } from 'tollkeeper/testing';
import { afterEach, describe, expect, it } from 'vitest';
import { describeWith, type RunningServer, type Served, serve, sized, startRedis } from '../support/index.js';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const slow: StoreWindow = { kind: 'gcra', periodMs: 100_000 * HOUR_MS, burst: 1_000_000 };

const ends: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

function calendar(lengthMs: number): StoreWindow {
  const at = (ms: number) => {
    const startMs = Math.floor(ms / lengthMs) * lengthMs;
    return { startMs, endMs: startMs + lengthMs };
  };
  return { kind: 'calendar', at };
}

const caller: IdentityInput = { subject: { kind: 'user', id: 'u' }, authId: 'k', plan: 'free' };

async function apiWith(store: QuotaStore, policies: readonly QuotaPolicy[]): Promise<Served> {
  const quota = createQuota({ store, plans: { free: policies }, replicas: 4 });
  const app = express().use(asIdentity(caller), enforceQuota({ quota }), (_req, res) => res.json('in'));
  const served = await serve(app);
  ends.push(() => served.close());
  return served;
}

describe('calendar windows', () => {
  const policy = (window: object): QuotaPolicy =>
    ({ name: 'p', per: 'subject', limit: 5, window: { kind: 'calendar', ...window } }) as QuotaPolicy;

  /** Hours from the instant to the end of its window, and from there to the end of the next. */
  async function windowsFrom(window: object, instant: string): Promise<number[]> {
    const clock = manualClock(Date.parse(instant));
    const quota = createQuota({ store: memoryQuotaStore({ clock }), plans: { free: [policy(window)] }, clock });
    const req = {} as never;
    asIdentity(caller)(req, {} as never, () => {});
    const hours: number[] = [];
    for (let turn = 0; turn < 2; turn++) {
      const [standing] = await quota.peek(identityOf(req));
      hours.push((standing?.resetSeconds ?? 0) / 3_600);
      clock.advance(standing?.resetSeconds ?? 0);
    }
    return hours;
  }

  it.each([
    ['trap 11: a day of 23 hours', { unit: 'day', timeZone: 'Europe/Berlin' }, '2026-03-28T23:00:00Z', [23, 24]],
    ['trap 11: a day of 25 hours', { unit: 'day', timeZone: 'Europe/Berlin' }, '2026-10-24T22:00:00Z', [25, 24]],
    [
      'trap 11: a midnight that does not exist',
      { unit: 'day', timeZone: 'America/Sao_Paulo' },
      '2018-11-03T03:00:00Z',
      [24, 23],
    ],
    ['a midnight that comes twice', { unit: 'day', timeZone: 'America/Sao_Paulo' }, '2018-02-17T02:00:00Z', [25, 24]],
    [
      'a minute past midnight set back',
      { unit: 'day', timeZone: 'America/St_Johns' },
      '2006-10-29T03:00:00Z',
      [24.5, 24],
    ],
    ['a day that does not exist', { unit: 'day', timeZone: 'Pacific/Apia' }, '2011-12-29T10:00:00Z', [24, 24]],
    ['weeks that begin on Monday', { unit: 'week' }, '2026-11-25T00:00:00Z', [5 * 24, 7 * 24]],
    ['months', { unit: 'month' }, '2026-02-01T00:00:00Z', [28 * 24, 31 * 24]],
    [
      'trap 12: anchor day 31, clamped in February, back in March',
      { unit: 'month', anchorDay: 31 },
      '2026-02-27T00:00:00Z',
      [24, 31 * 24],
    ],
    ['anchor day 15, before it', { unit: 'month', anchorDay: 15 }, '2026-01-05T00:00:00Z', [10 * 24, 31 * 24]],
  ])('%s', async (_name, window, instant, hours) => {
    expect(await windowsFrom(window, instant)).toEqual(hours);
  });

  it('trap 3: around the end of a window at most twice the limit passes, and a rate at most its burst', () => {
    for (const [window, most] of [
      [calendar(60_000), 20],
      [{ kind: 'gcra', periodMs: 60_000, burst: 10 }, 10],
    ] as const) {
      const clock = manualClock(60_000_000 - 1);
      const store = memoryQuotaStore({ clock });
      const op: QuotaOp = { key: 'k', window, limit: 10, cost: 1 };
      let admitted = 0;
      for (const _side of ['before', 'after']) {
        for (let call = 0; call < 30; call++) if (store.take('s', [op], { mode: 'all' }).allowed) admitted += 1;
        clock.advance(0.002);
      }
      expect(admitted).toBe(most);
    }
  });

  it('trap 2: a wall clock that is set back an hour refunds nothing, and nothing is stuck', () => {
    const clock = manualClock(1_000 * DAY_MS + 30 * 60_000);
    const store = memoryQuotaStore({ clock });
    const ops: QuotaOp[] = [
      { key: 'c', window: calendar(HOUR_MS), limit: 10, cost: 10 },
      { key: 'g', window: { kind: 'gcra', periodMs: 1_000, burst: 10 }, limit: 10, cost: 10 },
    ];
    expect(store.take('s', ops, { mode: 'all' }).allowed).toBe(true);
    clock.advance(45 * 60);
    expect(store.take('s', ops, { mode: 'all' }).allowed).toBe(true);
    clock.set(clock.now() - HOUR_MS);
    expect(store.take('s', ops.slice(0, 1), { mode: 'all' }).allowed).toBe(false);
    clock.advance(1);
    expect(store.take('s', ops.slice(1), { mode: 'all' }).allowed).toBe(true);
    clock.advance(3_600);
    expect(store.take('s', ops.slice(0, 1), { mode: 'all' }).allowed).toBe(false);
    clock.advance(3_600);
    expect(store.take('s', ops, { mode: 'all' }).allowed).toBe(true);
  });
});

describe('memoryQuotaStore', () => {
  const KEYS = sized(200_000, 10_000_000);

  it('trap 16: stays within its cap, and eviction never unblocks what is denied or loses what is held', () => {
    const clock = manualClock();
    const store = memoryQuotaStore({ maxEntries: 1_000, clock });
    const op = (key: string, change: Partial<QuotaOp> = {}): QuotaOp => ({
      key,
      window: slow,
      limit: 1_000_000,
      cost: 1,
      ...change,
    });
    const tight = (key: string): QuotaOp =>
      op(key, { window: { ...slow, burst: 5 } as StoreWindow, limit: 5, cost: 5 });
    for (let index = 0; index < 100; index++) store.take('s', [tight(`denied-${index}`)], { mode: 'all' });
    store.take('s', [op('held', { cost: 7, reserved: true })], { mode: 'all', id: 'h' });
    for (let key = 0; key < KEYS; key++) store.take('s', [op(`key-${key}`)], { mode: 'all' });
    expect(store.size).toBeLessThanOrEqual(1_000);
    for (let index = 0; index < 100; index++) {
      expect(store.take('s', [{ ...tight(`denied-${index}`), cost: 1 }], { mode: 'all' }).allowed).toBe(false);
    }
    store.settle('s', 'h', [3]);
    expect(store.take('s', [op('held', { cost: 0 })], { mode: 'peek' }).ops[0]?.used).toBe(3);
  }, 300_000);

  it('refuses new counters when only such are left that deny, which enforceQuota answers with 503', async () => {
    const store = memoryQuotaStore({ maxEntries: 2 });
    const full: StoreWindow = { ...slow, burst: 1 } as StoreWindow;
    for (const key of ['a', 'b']) store.take('s', [{ key, window: full, limit: 1, cost: 1 }], { mode: 'all' });
    expect(() => store.take('s', [{ key: 'c', window: full, limit: 1, cost: 1 }], { mode: 'all' })).toThrow('full');
    expect(store.take('s', [{ key: 'a', window: full, limit: 1, cost: 1 }], { mode: 'all' }).allowed).toBe(false);
    const api = await apiWith(store, [{ name: 'p', per: 'subject', limit: 1, window: { periodSeconds: 1e6 } }]);
    expect((await fetch(api.url)).status).toBe(503);
  });

  it('refuses more holds than its cap, and forgets those that are over', () => {
    const clock = manualClock();
    const store = memoryQuotaStore({ maxEntries: 10, clock });
    const op: QuotaOp = { key: 'k', window: slow, limit: 1_000_000, cost: 1, reserved: true };
    for (let id = 0; id < 10; id++) store.take('s', [op], { mode: 'all', id: `${id}` });
    expect(() => store.take('s', [op], { mode: 'all', id: 'more' })).toThrow('full of holds');
    for (let id = 0; id < 10; id++) store.settle('s', `${id}`, [0]);
    clock.advance(61);
    expect(store.take('s', [op], { mode: 'all', id: 'more' }).allowed).toBe(true);
  });

  it('lets the oldest go when all were used since, windows of every kind', () => {
    const clock = manualClock(1_000 * DAY_MS);
    const store = memoryQuotaStore({ maxEntries: 300, clock });
    const kinds: StoreWindow[] = [slow, calendar(HOUR_MS), { kind: 'concurrent', ttlMs: 1_000 }];
    const op = (index: number): QuotaOp => {
      return { key: `k${index}`, window: kinds[index % 3] as StoreWindow, limit: 1_000_000, cost: 1 };
    };
    for (let turn = 0; turn < 2; turn++) {
      for (let index = 0; index < 300; index++) {
        store.take('s', [op(index)], {
          mode: 'all',
          id: turn === 0 && index % 3 === 2 ? `${index}` : undefined,
        } as never);
        if (turn === 0) store.settle('s', `${index}`, [0]);
      }
      kinds[2] = slow;
    }
    expect(store.take('s', [op(300)], { mode: 'all' }).allowed).toBe(true);
    expect(store.size).toBeLessThanOrEqual(300);
    clock.advance(3 * 3_600);
    for (let index = 301; index < 600; index++) store.take('s', [op(index)], { mode: 'all' });
    expect(store.size).toBeLessThanOrEqual(300);
  });

  it('forgets the present window when told to, and no other, also after the clock was set back', () => {
    const clock = manualClock(1_000 * DAY_MS);
    const store = memoryQuotaStore({ clock });
    const op: QuotaOp = { key: 'k', window: calendar(HOUR_MS), limit: 10, cost: 4 };
    const used = (): number | undefined => store.take('s', [{ ...op, cost: 0 }], { mode: 'peek' }).ops[0]?.used;
    clock.advance(3_600);
    store.take('s', [op], { mode: 'all' });
    clock.set(1_000 * DAY_MS);
    store.take('s', [{ ...op, cost: 3 }], { mode: 'all' });
    clock.advance(3_600);
    expect(used()).toBe(4);
    store.reset('s', [op]);
    expect(used()).toBe(0);
    clock.set(1_000 * DAY_MS);
    expect(used()).toBe(3);
    clock.advance(3_600);
    store.take('s', [op], { mode: 'all' });
    store.reset('s', [op]);
    clock.set(1_000 * DAY_MS);
    expect(used()).toBe(3);
    store.reset('s', [op]);
    store.reset('s', [op]);
    expect(used()).toBe(0);
  });

  it('trap 13: begins a window of 31 days without a timer that overflows', async () => {
    const clock = manualClock(Date.UTC(2026, 0, 1));
    const store = memoryQuotaStore({ clock });
    const month: StoreWindow = {
      kind: 'calendar',
      at: () => ({ startMs: Date.UTC(2026, 0, 1), endMs: Date.UTC(2026, 1, 1) }),
    };
    const op: QuotaOp = { key: 'k', window: month, limit: 1, cost: 1 };
    store.take('s', [op], { mode: 'all' });
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(store.take('s', [op], { mode: 'all' })).toMatchObject({ allowed: false, ops: [{ retryMs: 31 * DAY_MS }] });
  });
});

describeWith('redis', 'a quota on Redis', () => {
  async function redis(options: Parameters<typeof startRedis>[0] = {}) {
    const server: RunningServer = await startRedis(options);
    const client = new Redis(server.port, server.host, { retryStrategy: () => 20 });
    client.on('error', () => {});
    ends.push(
      () => server.stop(),
      () => client.disconnect(),
    );
    return { server, client };
  }

  const hard: QuotaPolicy = { name: 'hard', per: 'subject', limit: 1_000, window: { kind: 'calendar', unit: 'month' } };
  const soft: QuotaPolicy = { ...hard, name: 'soft', onStoreError: 'local', limit: 10, window: { periodSeconds: 1e6 } };
  const lax: QuotaPolicy = { ...soft, name: 'lax', onStoreError: 'allow' };

  it.each([
    ['is killed', (server: RunningServer) => server.kill()],
    ['stands still', async (server: RunningServer) => server.pause()],
  ])('answers in time by the policy of each plan when Redis %s, and goes on when it is back', async (_name, fail) => {
    const { server, client } = await redis();
    const make = () => {
      const store = redisQuotaStore(client, { deadlineSeconds: 0.3 });
      ends.push(() => store.close?.());
      return store;
    };
    const [denying, local, allowing] = await Promise.all([
      apiWith(make(), [hard]),
      apiWith(make(), [soft]),
      apiWith(make(), [lax]),
    ]);
    const statuses = async (api: Served, count: number): Promise<number[]> => {
      const list: number[] = [];
      for (let call = 0; call < count; call++) list.push((await fetch(api.url)).status);
      return list;
    };
    await expect.poll(() => statuses(denying, 1), { timeout: 10_000 }).toEqual([200]);
    await fail(server);
    const refused = await fetch(denying.url);
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([503, '5']);
    expect(await refused.json()).toMatchObject({ code: 'quota_unavailable' });
    // A share of ⌈10 / 4⌉ of this process.
    expect(await statuses(local, 5)).toEqual([200, 200, 200, 429, 429]);
    expect(await statuses(allowing, 12)).toEqual(new Array(12).fill(200));
    server.resume();
    if (_name === 'is killed') await server.restart();
    await expect.poll(() => statuses(denying, 1), { timeout: 20_000, interval: 200 }).toEqual([200]);
  });

  it('begins anew after FLUSHALL, and settles nothing on counters that are gone', async () => {
    const { client } = await redis();
    const store = redisQuotaStore(client, { deadlineSeconds: 10 });
    ends.push(() => store.close?.());
    const op: QuotaOp = { key: 'k', window: calendar(10_000 * DAY_MS), limit: 10, cost: 10, reserved: true };
    const plain = { ...op, reserved: false };
    await store.take('s', [op], { mode: 'all', id: 'a' });
    await client.flushall();
    await store.settle('s', 'a', [7]);
    const taken = { allowed: true, serverNowMs: Date.now(), ops: [{ granted: 10, used: 10, resetMs: 1, retryMs: 0 }] };
    await store.settle('s', { ops: [plain], taken }, [20]);
    expect(await client.dbsize()).toBe(0);
    expect(await store.take('s', [plain], { mode: 'all' })).toMatchObject({ allowed: true, ops: [{ used: 10 }] });
  });

  it('lets nobody name a slot, a counter or another key through an id', async () => {
    const { client } = await redis();
    const store = redisQuotaStore(client, { deadlineSeconds: 10 });
    ends.push(() => store.close?.());
    const quota = createQuota({
      store,
      plans: {
        free: (['subject', 'tenant', 'client', 'authId'] as const).map((per) => ({
          name: per,
          per,
          limit: 100,
          window: { periodSeconds: 1e6 },
        })),
      },
      defaultPlan: 'free',
    });
    const hostile = ['{a}', 'a:b', '}{', '*', '\n', 'ä😀', '__proto__', 'x'.repeat(65_536)];
    for (const text of hostile) {
      const identity = { subject: { kind: 'user', id: text }, authId: text, tenant: text, clientId: text } as const;
      const app = express().use(asIdentity(identity), enforceQuota({ quota }), (_req, res) => res.json('in'));
      const served = await serve(app);
      expect((await fetch(served.url)).status).toBe(200);
      await served.close();
    }
    const keys = await client.keys('*');
    expect(keys).toHaveLength(hostile.length * 4);
    for (const key of keys) {
      expect(key).toMatch(
        /^tollkeeper:quota:\{[A-Za-z0-9_-]{22}\}:(subject|tenant|client|authId):[A-Za-z0-9_-]{22}:gcra$/,
      );
      expect(await client.pttl(key)).toBeGreaterThan(0);
    }
  });

  it('drains a level from now on when the clock of Redis was set back', async () => {
    const { client } = await redis();
    const store = redisQuotaStore(client, { deadlineSeconds: 10 });
    ends.push(() => store.close?.());
    const op: QuotaOp = { key: 'k', window: { kind: 'gcra', periodMs: 400, burst: 4 }, limit: 4, cost: 1 };
    // As the script keeps it: the level, and when it was last drained.
    const ahead = Buffer.alloc(16);
    ahead.writeDoubleLE(4, 0);
    ahead.writeDoubleLE(Date.now() + HOUR_MS, 8);
    await client.set('tollkeeper:quota:{s}:k', ahead, 'PX', HOUR_MS);
    expect((await store.take('s', [op], { mode: 'all' })).allowed).toBe(false);
    await expect
      .poll(async () => (await store.take('s', [op], { mode: 'all' })).allowed, { timeout: 5_000 })
      .toBe(true);
  });

  it('trap 5: counts a charge whose answer was lost as spent, and never sends it again', async () => {
    const { server, client } = await redis();
    const store = redisQuotaStore(client, { deadlineSeconds: 0.1 });
    ends.push(() => store.close?.());
    const op: QuotaOp = { key: 'k', window: slow, limit: 1_000_000, cost: 1 };
    await expect
      .poll(
        async () =>
          store.ready?.().then(
            () => true,
            () => false,
          ),
        { timeout: 5_000 },
      )
      .toBe(true);
    server.pause();
    await expect(async () => store.take('s', [op], { mode: 'all' })).rejects.toThrow('no answer within');
    server.resume();
    const used = async (): Promise<number | undefined> =>
      Promise.resolve(store.take('s', [op], { mode: 'peek' })).then(
        ({ ops }) => ops[0]?.used,
        () => undefined,
      );
    await expect.poll(used, { timeout: 5_000 }).toBe(1);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(await used()).toBe(1);
  });

  it('trap 19: a lease cannot be spent in the next window, nor by a process whose clock stands still', async () => {
    const { client } = await redis();
    const window = calendar(1_000);
    const clock = { now: () => Date.now(), monotonic: () => performance.now() };
    const store = redisQuotaStore(client, { deadlineSeconds: 10, lease: { replicas: 1 }, clock });
    ends.push(() => store.close?.());
    const op: QuotaOp = { key: 'k', window, limit: 1_000, cost: 1 };
    // At the very beginning of a window.
    await new Promise((resolve) => setTimeout(resolve, 1_000 - (Date.now() % 1_000)));
    await store.take('s', [op], { mode: 'all' });
    expect(store.take('s', [op], { mode: 'all' })).not.toBeInstanceOf(Promise);
    const stopped = Date.now();
    clock.now = () => stopped;
    // The script is in the next window, and so is what is asked of it after that answer.
    await new Promise((resolve) => setTimeout(resolve, 1_100));
    const asked = store.take('s', [op], { mode: 'all' });
    expect(asked).toBeInstanceOf(Promise);
    expect((await asked).allowed).toBe(true);
  });
});

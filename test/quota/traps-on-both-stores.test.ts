import { setTimeout as sleep } from 'node:timers/promises';
import express from 'express';
import { Redis } from 'ioredis';
import {
  createQuota,
  type EnforceQuotaOptions,
  enforceQuota,
  type IdentityInput,
  memoryQuotaStore,
  type QuotaOp,
  type QuotaPolicy,
  type QuotaStore,
  type StoreWindow,
  usageOf,
} from 'tollkeeper';
import { redisQuotaStore } from 'tollkeeper/redis';
import { asIdentity } from 'tollkeeper/testing';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { describeWith, type RunningServer, serve, startRedis } from '../support/index.js';

const ends: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

const month = { name: 'month', per: 'subject', limit: 3, window: { kind: 'calendar', unit: 'month' } } as const;
const tokens = { ...month, name: 'tokens', unit: 'output_tokens', limit: 100 } as const;
let callers = 0;

function windowsOf(lengthMs: number): StoreWindow {
  const at = (ms: number) => {
    const startMs = Math.floor(ms / lengthMs) * lengthMs;
    return { startMs, endMs: startMs + lengthMs };
  };
  return { kind: 'calendar', at };
}

/** An app with the whole middleware, and a caller that nobody has seen before. */
async function apiOn(
  store: QuotaStore,
  plans: Record<string, readonly QuotaPolicy[]>,
  enforce: Partial<EnforceQuotaOptions> = {},
  handler: express.RequestHandler = (_req, res) => res.json('in'),
) {
  callers += 1;
  const caller: IdentityInput = { subject: { kind: 'user', id: `caller-${callers}` }, authId: 'k', plan: 'free' };
  const asked = { plan: 'free' };
  const quota = createQuota({ store, plans, planOf: () => asked.plan });
  const app = express().use(asIdentity(caller)).get('/quota', quota.handler());
  const served = await serve(app.use(enforceQuota({ quota, ...enforce }), handler));
  ends.push(() => served.close());
  const ask = () => fetch(served.url);
  const standing = async () => {
    const { policies } = (await (await fetch(`${served.url}/quota`)).json()) as {
      policies: { used: number; remaining: number }[];
    };
    return policies[0];
  };
  return { ask, standing, asked, url: served.url };
}

function traps(make: () => QuotaStore): void {
  it('3: at the end of a window every window admits exactly its limit of what is asked of it', async () => {
    const store = make();
    const lengthMs = 500;
    const op: QuotaOp = { key: `edge-${callers}`, window: windowsOf(lengthMs), limit: 10, cost: 1 };
    const windows = new Map<number, { asked: number; admitted: number }>();
    const until = Date.now() + 4 * lengthMs;
    while (Date.now() < until) {
      const results = await Promise.all(Array.from({ length: 20 }, () => store.take('edge', [op], { mode: 'all' })));
      for (const { allowed, serverNowMs } of results) {
        const at = Math.floor(serverNowMs / lengthMs);
        const { asked, admitted } = windows.get(at) ?? { asked: 0, admitted: 0 };
        windows.set(at, { asked: asked + 1, admitted: admitted + (allowed ? 1 : 0) });
      }
      await sleep(1);
    }
    expect(windows.size).toBeGreaterThan(1);
    for (const { asked, admitted } of windows.values()) expect(admitted).toBe(Math.min(asked, 10));
  });

  it('7: settling after the window ended counts nowhere', async () => {
    const store = make();
    const op: QuotaOp = { key: 'ended', window: windowsOf(3_000), limit: 10, cost: 5 };
    const taken = await store.take('ended', [op], { mode: 'all' });
    await store.take('ended', [{ ...op, reserved: true }], { mode: 'all', id: 'hold' });
    await sleep(3_000 - (Date.now() % 3_000) + 20);
    expect((await store.take('ended', [{ ...op, cost: 1 }], { mode: 'all' })).ops[0]?.used).toBe(1);
    await store.settle('ended', { ops: [op], taken }, [0]);
    await store.settle('ended', 'hold', [9]);
    expect((await store.take('ended', [{ ...op, cost: 1 }], { mode: 'all' })).ops[0]?.used).toBe(2);
  });

  it('7: settling after only the reservation expired charges what was used', async () => {
    const store = make();
    const op: QuotaOp = { key: 'late', window: windowsOf(400 * 86_400_000), limit: 10, cost: 5, reserved: true };
    const taken = await store.take('late', [op], { mode: 'all', id: 'late', holdMs: 50 });
    expect(taken.ops[0]?.used).toBe(5);
    const used = async () => (await store.take('late', [{ ...op, cost: 0 }], { mode: 'peek' })).ops[0]?.used;
    await expect.poll(used, { timeout: 10_000 }).toBe(0);
    await store.settle('late', 'late', [7]);
    expect(await used()).toBe(7);
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY, -1, 1.5, '3', 2 ** 53, null, undefined])(
    '8: a cost of %s is 503 and consumes nothing',
    async (cost) => {
      const { ask, standing } = await apiOn(make(), { free: [month] }, { cost: () => cost as never });
      const refused = await ask();
      expect(await refused.json()).toMatchObject({ status: 503, code: 'quota_unavailable' });
      expect(await standing()).toMatchObject({ used: 0 });
    },
  );

  it('9: a cost of 0 is admitted when nothing is left, and consumes nothing', async () => {
    let cost = 3;
    const { ask, standing } = await apiOn(make(), { free: [month] }, { cost: () => cost });
    expect((await ask()).status).toBe(200);
    cost = 0;
    expect((await ask()).status).toBe(200);
    expect(await standing()).toMatchObject({ used: 3, remaining: 0 });
  });

  it('10: a cost above the limit is refused at once, without Retry-After, and consumes nothing', async () => {
    const { ask, standing } = await apiOn(make(), { free: [month] }, { cost: 4 });
    const refused = await ask();
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([429, null]);
    expect(await standing()).toMatchObject({ used: 0 });
  });

  it('14: a larger plan gives headroom at once, a smaller one leaves 0', async () => {
    const { ask, standing, asked } = await apiOn(make(), { free: [month], pro: [{ ...month, limit: 10 }] });
    const statuses: number[] = [];
    for (const plan of ['free', 'free', 'free', 'free', 'pro', 'pro', 'free']) {
      asked.plan = plan;
      statuses.push((await ask()).status);
    }
    expect(statuses).toEqual([200, 200, 200, 429, 200, 200, 429]);
    expect(await standing()).toMatchObject({ used: 5, remaining: 0 });
  });

  it('17: a client that goes away settles once, to what it has used', async () => {
    const store = make();
    const settle = vi.spyOn(store, 'settle');
    const { standing, url } = await apiOn(
      store,
      { free: [tokens] },
      { reserve: () => ({ output_tokens: 60 }) },
      (req, res) => {
        usageOf(req).add('output_tokens', 7);
        res.write('part');
      },
    );
    const controller = new AbortController();
    const answer = await fetch(url, { signal: controller.signal });
    await answer.body?.getReader().read();
    expect(await standing()).toMatchObject({ used: 60 });
    controller.abort();
    await expect.poll(async () => (await standing())?.used, { timeout: 10_000 }).toBe(7);
    expect(settle).toHaveBeenCalledTimes(1);
  });

  it('18: the same id twice is charged once', async () => {
    const store = make();
    const op: QuotaOp = { key: 'twice', window: windowsOf(400 * 86_400_000), limit: 10, cost: 3, reserved: true };
    const results = await Promise.all([1, 2, 3].map(async () => store.take('twice', [op], { mode: 'all', id: 'one' })));
    expect(results.map(({ allowed }) => allowed)).toEqual([true, true, true]);
    expect((await store.take('twice', [{ ...op, cost: 0 }], { mode: 'peek' })).ops[0]?.used).toBe(3);
  });

  it('20: q, w, r and t are integers of RFC 9651, admitted and refused', async () => {
    const { ask } = await apiOn(make(), {
      free: [
        { ...month, limit: Number.MAX_SAFE_INTEGER },
        { ...month, name: 'slow', limit: 2, window: { periodSeconds: 315_360_000 } },
        { ...month, name: 'tiny', limit: 3, window: { periodSeconds: 0.001 } },
      ],
    });
    for (const status of [200, 200, 429]) {
      const answer = await ask();
      expect(answer.status).toBe(status);
      const text = `${answer.headers.get('ratelimit-policy')}, ${answer.headers.get('ratelimit')}`;
      expect(text).toMatch(/^"\w+"(;[qwrt]=\d{1,15})+(, "\w+"(;[qwrt]=\d{1,15})+){5}$/);
    }
  });
}

describe('on memoryQuotaStore, trap', () => traps(() => memoryQuotaStore()));

describeWith('redis', 'on redisQuotaStore, trap', () => {
  let server: RunningServer;
  let client: Redis;
  beforeAll(async () => {
    server = await startRedis();
    client = new Redis(server.url);
  });
  afterAll(async () => {
    client.disconnect();
    await server.stop();
  });
  const make = (): QuotaStore => {
    const store = redisQuotaStore(client, { deadlineSeconds: 10 });
    ends.push(() => store.close?.());
    return store;
  };
  traps(make);

  it('2: a sum outlives its window by hours: a clock that is set back finds it', async () => {
    const store = make();
    const op: QuotaOp = { key: 'back', window: windowsOf(200), limit: 10, cost: 10 };
    expect((await store.take('back', [op], { mode: 'all' })).allowed).toBe(true);
    await sleep(250);
    const [key] = await client.keys('*{back}:back:*');
    expect(await client.get(key as string)).toBe('10');
    expect(await client.pttl(key as string)).toBeGreaterThan(20 * 3_600_000);
  });

  it('7: settling after the window ended creates no key', async () => {
    const store = make();
    const op: QuotaOp = { key: 'gone', window: windowsOf(300), limit: 10, cost: 5 };
    const taken = await store.take('gone', [op], { mode: 'all' });
    await store.take('gone', [{ ...op, cost: 1 }], { mode: 'all', id: 'hold' });
    await sleep(320);
    // As if their time to live were over.
    expect(await client.del(await client.keys('*{gone}:gone*'))).toBeGreaterThan(0);
    await store.settle('gone', { ops: [op], taken }, [9]);
    await store.settle('gone', 'hold', [9]);
    expect(await client.keys('*{gone}:gone*')).toEqual([]);
  });

  it('13: the key of a window of 31 days lives as long as the window', async () => {
    const store = make();
    const startMs = Date.now() - 1_000;
    const endMs = startMs + 31 * 86_400_000;
    const window: StoreWindow = { kind: 'calendar', at: () => ({ startMs, endMs }) };
    await store.take('long', [{ key: 'long', window, limit: 10, cost: 1 }], { mode: 'all' });
    const [key] = await client.keys('*{long}:long:*');
    expect(Date.now() + (await client.pttl(key as string))).toBeGreaterThanOrEqual(endMs);
  });

  it('16: a Redis that is full refuses with 503, and admits nobody whom it cannot count', async () => {
    const small = await startRedis();
    ends.push(() => small.stop());
    const owner = new Redis(small.url);
    ends.push(() => owner.disconnect());
    const store = redisQuotaStore(owner, { deadlineSeconds: 10 });
    ends.push(() => store.close?.());
    const { ask } = await apiOn(store, { free: [month] });
    expect((await ask()).status).toBe(200);
    await owner.config('SET', 'maxmemory', '1');
    const refused = await ask();
    expect(await refused.json()).toMatchObject({ status: 503, code: 'quota_unavailable' });
    await owner.config('SET', 'maxmemory', '0');
    await expect.poll(async () => (await ask()).status, { timeout: 10_000 }).toBe(200);
    expect([(await ask()).status, (await ask()).status]).toEqual([200, 429]);
  });

  it('everything in Redis is lost under load: nothing fails, and each time the count begins anew', async () => {
    const store = make();
    const policies = [month, { ...month, name: 'rate', window: { periodSeconds: 86_400 } }];
    const { ask, standing } = await apiOn(store, { free: policies });
    const flushes = 5;
    const statuses = new Map<number, number>();
    let isOver = false;
    const lane = async () => {
      while (!isOver) {
        const { status } = await ask();
        statuses.set(status, (statuses.get(status) ?? 0) + 1);
      }
    };
    const lanes = Array.from({ length: 8 }, lane);
    for (let turn = 0; turn < flushes; turn++) {
      await expect.poll(async () => (await standing())?.remaining, { timeout: 10_000 }).toBe(0);
      await client.flushall();
    }
    await expect.poll(async () => (await standing())?.remaining, { timeout: 10_000 }).toBe(0);
    isOver = true;
    await Promise.all(lanes);
    expect([...statuses.keys()].sort()).toEqual([200, 429]);
    expect(statuses.get(200)).toBe(month.limit * (flushes + 1));
    for (const key of await client.keys('*')) expect(await client.pttl(key)).toBeGreaterThan(0);
  });
});

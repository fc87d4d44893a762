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
    const window: StoreWindow = {
      kind: 'calendar',
      at: (ms) => ({
        startMs: Math.floor(ms / lengthMs) * lengthMs,
        endMs: (Math.floor(ms / lengthMs) + 1) * lengthMs,
      }),
    };
    const op: QuotaOp = { key: `edge-${callers}`, window, limit: 10, cost: 1 };
    const windows = new Map<number, { asked: number; admitted: number }>();
    const until = Date.now() + 4 * lengthMs;
    while (Date.now() < until) {
      const results = await Promise.all(Array.from({ length: 20 }, () => store.take('edge', [op], { mode: 'all' })));
      for (const { allowed, serverNowMs } of results) {
        const at = Math.floor(serverNowMs / lengthMs);
        const { asked, admitted } = windows.get(at) ?? { asked: 0, admitted: 0 };
        windows.set(at, { asked: asked + 1, admitted: admitted + (allowed ? 1 : 0) });
      }
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    expect(windows.size).toBeGreaterThan(1);
    for (const { asked, admitted } of windows.values()) expect(admitted).toBe(Math.min(asked, 10));
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

  it('7: settling after the window ended creates no key', async () => {
    const store = make();
    const at = (ms: number) => ({ startMs: Math.floor(ms / 300) * 300, endMs: Math.floor(ms / 300) * 300 + 300 });
    const op: QuotaOp = { key: 'ended', window: { kind: 'calendar', at }, limit: 10, cost: 5 };
    const taken = await store.take('ended', [op], { mode: 'all' });
    await store.take('ended', [op], { mode: 'all', id: 'hold' });
    await new Promise((resolve) => setTimeout(resolve, 320));
    const before = (await client.keys('*{ended}*')).length;
    await client.del(await client.keys('*{ended}:ended*'));
    await store.settle('ended', { ops: [op], taken }, [9]);
    await store.settle('ended', 'hold', [9]);
    expect(before).toBeGreaterThan(0);
    expect(await client.keys('*{ended}:ended*')).toEqual([]);
  });
});

import { Redis } from 'ioredis';
import { createClient } from 'redis';
import { memoryQuotaStore, type QuotaOp, type QuotaStore } from 'tollkeeper';
import { redisQuotaStore } from 'tollkeeper/redis';
import { quotaStoreContract } from 'tollkeeper/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { describeWith, type RunningServer, startRedis } from '../support/index.js';

const HOUR = 3_600_000;
const GENEROUS = { deadlineSeconds: 5 };

/** Drains so slowly that a test sees nothing of it. */
function slowRate(key: string, limit: number): QuotaOp {
  return { key, window: { kind: 'gcra', periodMs: 1_000 * HOUR, burst: limit }, limit, cost: 1 };
}

describe('memoryQuotaStore', () => {
  for (const { name, run } of quotaStoreContract(async () => ({ store: memoryQuotaStore() }))) it(name, run);
});

describe('quotaStoreContract', () => {
  it('refuses stores that are broken', async () => {
    const broken: (() => QuotaStore)[] = [
      // Charges what fits, though the request is refused.
      () => {
        const store = memoryQuotaStore();
        return {
          ...bound(store),
          take: (slot, ops, options) => {
            const result = store.take(slot, ops, options);
            if (!result.allowed && options.mode === 'all') for (const op of ops) store.take(slot, [op], options);
            return result;
          },
        };
      },
      // Settles twice.
      () => {
        const store = memoryQuotaStore();
        return {
          ...bound(store),
          settle: (slot, hold, actual) => {
            store.settle(slot, hold, actual);
            if (hold === 'hold')
              store.settle(slot, { ops: [], taken: { allowed: true, serverNowMs: 0, ops: [] } }, actual);
            if (typeof hold !== 'string') store.settle(slot, hold, actual);
          },
        };
      },
      // Never says no.
      () => {
        const store = memoryQuotaStore();
        return {
          ...bound(store),
          take: (slot, ops, options) => ({
            ...store.take(slot, ops, { ...options, mode: options.mode === 'all' ? 'force' : options.mode }),
            allowed: true,
          }),
        };
      },
    ];
    for (const make of broken) {
      const results = await Promise.allSettled(
        quotaStoreContract(async () => ({ store: make() })).map(({ run }) => run()),
      );
      expect(results.some(({ status }) => status === 'rejected')).toBe(true);
    }
  });
});

function bound(store: QuotaStore): QuotaStore {
  return {
    take: (slot, ops, options) => store.take(slot, ops, options),
    settle: (slot, hold, actual) => store.settle(slot, hold, actual),
    reset: (slot, ops) => store.reset(slot, ops),
  };
}

describeWith('redis', 'redisQuotaStore', () => {
  let server: RunningServer;
  let ioredis: Redis;
  let nodeRedis: ReturnType<typeof createClient>;
  beforeAll(async () => {
    server = await startRedis();
    ioredis = new Redis(server.port, '127.0.0.1');
    ioredis.on('error', () => {});
    nodeRedis = createClient({ url: `redis://127.0.0.1:${server.port}` });
    nodeRedis.on('error', () => {});
    await nodeRedis.connect();
  });
  afterAll(async () => {
    ioredis?.disconnect();
    nodeRedis?.destroy();
    await server?.stop();
  });

  describe('on ioredis', () => {
    for (const { name, run } of quotaStoreContract(async () => {
      const store = redisQuotaStore(ioredis, GENEROUS);
      return { store, end: async () => store.close?.() };
    }))
      it(name, run);
  });

  describe('on node-redis', () => {
    for (const { name, run } of quotaStoreContract(async () => ({
      store: redisQuotaStore(nodeRedis as never, { ...GENEROUS, prefix: 'node' }),
    })))
      it(name, run);
  });

  it('trap 6: gives every key a time to live, and puts all keys of a slot behind one tag', async () => {
    const keys = await ioredis.keys('*');
    expect(keys.length).toBeGreaterThan(20);
    for (const key of keys) {
      const ttl = await ioredis.pttl(key);
      // -2: it has expired meanwhile; -1 would be a key without a time to live.
      expect([key, ttl > 0 || ttl === -2]).toEqual([key, true]);
      expect(key).toMatch(/^(tollkeeper:quota|node):\{[0-9a-f-]{36}\}:/);
    }
  });

  it('trap 1: takes processes whose clocks are minutes apart for one', async () => {
    // Four minutes, and it is the middle of one: the skewed clocks are in others.
    const lengthMs = 240_000;
    const began = Date.now() - lengthMs / 2;
    const window = {
      kind: 'calendar',
      at(ms: number) {
        const startMs = began + Math.floor((ms - began) / lengthMs) * lengthMs;
        return { startMs, endMs: startMs + lengthMs };
      },
    } as const;
    const op: QuotaOp = { key: 'skew', window, limit: 10, cost: 1 };
    const skewed = [-3 * HOUR, -5 * 60_000, 0, 5 * 60_000, 3 * HOUR].map((skew) =>
      redisQuotaStore(ioredis, {
        ...GENEROUS,
        clock: { now: () => Date.now() + skew, monotonic: () => performance.now() },
      }),
    );
    let admitted = 0;
    for (let turn = 0; turn < 3; turn++) {
      for (const store of skewed) if ((await store.take('skew', [op], { mode: 'all' })).allowed) admitted += 1;
    }
    expect(admitted).toBe(10);
    for (const store of skewed) await store.close?.();
  });

  it('trap 4: counts each call once while the scripts are flushed', async () => {
    const store = redisQuotaStore(ioredis, GENEROUS);
    const op = slowRate('flush', 1_000);
    const calls = Array.from({ length: 200 }, async (_, index) => {
      if (index % 20 === 0) await ioredis.script('FLUSH');
      return store.take('flush', [op], { mode: 'all' });
    });
    expect((await Promise.all(calls)).every(({ allowed }) => allowed)).toBe(true);
    expect((await store.take('flush', [{ ...op, cost: 0 }], { mode: 'peek' })).ops[0]?.used).toBe(200);
    await store.close?.();
    await store.close?.();
    await expect(async () => store.take('flush', [op], { mode: 'all' })).rejects.toThrow('closed');
  });

  it('trap 15: says within the deadline that Redis hangs, leaves it alone for a while, and counts again afterwards', async () => {
    const store = redisQuotaStore(ioredis, { deadlineSeconds: 0.05 });
    const op = slowRate('hang', 100);
    await store.ready?.();
    server.pause();
    for (let i = 0; i < 5; i++)
      await expect(async () => store.take('hang', [op], { mode: 'all' })).rejects.toThrow('no answer');
    await expect(async () => store.take('hang', [op], { mode: 'all' })).rejects.toThrow('left alone');
    server.resume();
    await expect
      .poll(
        async () =>
          (await Promise.resolve(store.take('hang', [{ ...op, cost: 0 }], { mode: 'peek' })).catch(() => undefined))
            ?.ops[0]?.used,
        { timeout: 10_000 },
      )
      .toBe(5);
    await store.close?.();
  });

  it('does not take for a failure of Redis that the process stood still beyond the deadline', async () => {
    const store = redisQuotaStore(ioredis, { deadlineSeconds: 1 });
    const op = slowRate('still', 10_000);
    await store.ready?.();
    const asked = Array.from({ length: 2_000 }, async () => store.take('still', [op], { mode: 'all' }));
    const until = performance.now() + 1_100;
    while (performance.now() < until);
    expect((await Promise.all(asked)).every(({ allowed }) => allowed)).toBe(true);
    await store.close?.();
  });

  it('is ready once Redis answers, within 5 s, and not when it never does', async () => {
    const own = await startRedis();
    own.pause();
    const client = new Redis(own.port, '127.0.0.1', { lazyConnect: true });
    client.on('error', () => {});
    const store = redisQuotaStore(client, { deadlineSeconds: 0.05 });
    const ready = store.ready?.();
    await new Promise((resolve) => setTimeout(resolve, 300));
    own.resume();
    await ready;
    own.pause();
    await expect(store.ready?.(AbortSignal.timeout(200))).rejects.toThrow();
    await store.close?.();
    await own.stop();
  });

  it('never sends a charge again when the connection breaks', async () => {
    const own = await startRedis({ persist: true });
    const client = new Redis(own.port, '127.0.0.1', { retryStrategy: () => 20 });
    client.on('error', () => {});
    const store = redisQuotaStore(client, { deadlineSeconds: 1 });
    const op: QuotaOp = {
      key: 'k',
      window: { kind: 'gcra', periodMs: 1_000 * HOUR, burst: 1_000 },
      limit: 1_000,
      cost: 1,
    };
    let admitted = 0;
    let asked = 0;
    const load = async (): Promise<void> => {
      for (let i = 0; i < 60; i++) {
        asked += 1;
        const result = await Promise.resolve(store.take('k', [op], { mode: 'all' })).catch(() => undefined);
        if (result?.allowed) admitted += 1;
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    };
    const running = Promise.all([load(), load(), load()]);
    await new Promise((resolve) => setTimeout(resolve, 100));
    own.pause();
    await new Promise((resolve) => setTimeout(resolve, 30));
    client.disconnect(true);
    own.resume();
    await running;
    let used = -1;
    await expect
      .poll(
        async () => {
          const result = await Promise.resolve(store.take('k', [{ ...op, cost: 0 }], { mode: 'peek' })).catch(
            () => undefined,
          );
          used = result?.ops[0]?.used ?? -1;
          return used;
        },
        { timeout: 10_000 },
      )
      .toBeGreaterThanOrEqual(0);
    expect(used).toBeGreaterThanOrEqual(admitted);
    expect(used).toBeLessThanOrEqual(asked);
    await store.close?.();
    client.disconnect();
    await own.stop();
  });

  describe('with leases', () => {
    const window = {
      kind: 'calendar',
      at: (ms: number) => ({
        startMs: Math.floor(ms / (24 * HOUR)) * 24 * HOUR,
        endMs: (Math.floor(ms / (24 * HOUR)) + 1) * 24 * HOUR,
      }),
    } as const;
    const op = (key: string, overrides: Partial<QuotaOp> = {}): QuotaOp => ({
      key,
      window,
      limit: 2_000,
      cost: 1,
      ...overrides,
    });

    it('never admits more than the limit, strands little, and asks Redis seldom', async () => {
      const replicas = 4;
      const stores = Array.from({ length: replicas }, () =>
        redisQuotaStore(ioredis, { ...GENEROUS, lease: { replicas } }),
      );
      const before = Number(/cmdstat_evalsha:calls=(\d+)/.exec(await ioredis.info('commandstats'))?.[1] ?? 0);
      let admitted = 0;
      const run = async (store: QuotaStore): Promise<void> => {
        for (let i = 0; i < 1_000; i++)
          if ((await store.take('lease', [op('lease')], { mode: 'all' })).allowed) admitted += 1;
      };
      await Promise.all(stores.map(run));
      const after = Number(/cmdstat_evalsha:calls=(\d+)/.exec(await ioredis.info('commandstats'))?.[1] ?? 0);
      expect(admitted).toBeLessThanOrEqual(2_000);
      expect(admitted).toBeGreaterThanOrEqual(2_000 - replicas * 20);
      console.log(`leases: ${admitted} of 2000 admitted`);
      const refused = replicas * 1_000 - admitted;
      expect(after - before - refused).toBeLessThan(admitted / 5);
      for (const store of stores) await store.close?.();
      const [last] = (
        await Promise.resolve(
          redisQuotaStore(ioredis, GENEROUS).take('lease', [op('lease', { cost: 0 })], { mode: 'peek' }),
        )
      ).ops;
      expect(last?.used).toBe(admitted);
    });

    it('decides in the same tick from a lease, and settles into it', async () => {
      const store = redisQuotaStore(ioredis, { ...GENEROUS, lease: { replicas: 1 } });
      await store.take('tick', [op('tick')], { mode: 'all' });
      const held = store.take('tick', [op('tick', { cost: 5, reserved: true })], { mode: 'all', id: 'h' });
      expect(held).toMatchObject({ allowed: true, ops: [{ granted: 5, used: 6 }] });
      expect(store.take('tick', [op('tick', { cost: 5, reserved: true })], { mode: 'all', id: 'h' })).toMatchObject({
        ops: [{ used: 6 }],
      });
      await store.settle('tick', 'h', [2]);
      await store.settle('tick', 'h', [0]);
      expect(store.take('tick', [op('tick')], { mode: 'all' })).toMatchObject({ ops: [{ used: 4 }] });
      const taken = await store.take('tick', [op('tick', { cost: 3 })], { mode: 'all' });
      await store.settle('tick', { ops: [op('tick', { cost: 3 })], taken }, [30]);
      await store.close?.();
      const [left] = (
        await Promise.resolve(
          redisQuotaStore(ioredis, GENEROUS).take('tick', [op('tick', { cost: 0 })], { mode: 'peek' }),
        )
      ).ops;
      expect(left?.used).toBe(1 + 2 + 1 + 30);
    });

    it('charges all counters or none', async () => {
      const store = redisQuotaStore(ioredis, { ...GENEROUS, lease: { replicas: 1 } });
      const ops = [op('all-a'), op('all-b', { limit: 1 })];
      expect((await store.take('all', ops, { mode: 'all' })).allowed).toBe(true);
      const refused = await store.take('all', ops, { mode: 'all' });
      expect(refused.allowed).toBe(false);
      expect(refused.ops[1]?.retryMs).toBeGreaterThan(0);
      await store.close?.();
      const peeked = await redisQuotaStore(ioredis, GENEROUS).take('all', ops, { mode: 'peek' });
      expect(peeked.ops.map(({ used }) => used)).toEqual([1, 1]);
    });

    it('refuses windows that cannot be leased', async () => {
      const store = redisQuotaStore(ioredis, { lease: { replicas: 2 } });
      const rate: QuotaOp = { key: 'k', window: { kind: 'gcra', periodMs: 1_000, burst: 1 }, limit: 1, cost: 1 };
      expect(() => store.take('k', [rate], { mode: 'all' })).toThrow(TypeError);
      expect(store.leased).toBe(true);
      await store.close?.();
    });
  });

  it('throws a TypeError that lists every problem of the options', () => {
    expect(() =>
      redisQuotaStore({} as never, { prefix: '{x}', deadlineSeconds: 0, lease: { replicas: 0 }, other: 1 } as never),
    ).toThrow(/unknown option "other".*a client of.*prefix must be.*deadlineSeconds.*lease\.replicas/);
    expect(() => redisQuotaStore(ioredis, { lease: {} as never })).toThrow('lease.replicas');
  });
});

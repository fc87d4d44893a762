import { Redis } from 'ioredis';
import type { QuotaOp, QuotaStore, StoreWindow } from 'tollkeeper';
import { redisQuotaStore } from 'tollkeeper/redis';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { describeWith, type RunningServer, startRedis } from '../support/index.js';

const HOUR_MS = 3_600_000;

function calendar(lengthMs: number): StoreWindow {
  const at = (ms: number) => {
    const startMs = Math.floor(ms / lengthMs) * lengthMs;
    return { startMs, endMs: startMs + lengthMs };
  };
  return { kind: 'calendar', at };
}

describeWith('redis', 'a leased quota', () => {
  let server: RunningServer;
  let client: Redis;
  let exact: QuotaStore;
  const stores: QuotaStore[] = [];
  const clock = { ahead: 0, now: () => Date.now(), monotonic: () => performance.now() + clock.ahead };
  beforeAll(async () => {
    server = await startRedis();
    client = new Redis(server.url);
    exact = redisQuotaStore(client, { deadlineSeconds: 10 });
  });
  afterAll(async () => {
    await exact.close?.();
    client.disconnect();
    await server.stop();
  });
  afterEach(async () => {
    for (const store of stores.splice(0)) await store.close?.();
    clock.ahead = 0;
  });

  function leased(replicas = 1): QuotaStore {
    const store = redisQuotaStore(client, { deadlineSeconds: 10, lease: { replicas }, clock });
    stores.push(store);
    return store;
  }
  const long = calendar(100_000 * HOUR_MS);
  const op = (key: string, change: Partial<QuotaOp> = {}): QuotaOp => ({
    key,
    window: long,
    limit: 1_000,
    cost: 1,
    ...change,
  });
  const used = async (of: QuotaOp): Promise<number | undefined> =>
    (await exact.take('s', [{ ...of, cost: 0 }], { mode: 'peek' })).ops[0]?.used;

  it('gives an unsettled reservation back into the lease; settled later, the actual use is booked', async () => {
    const store = leased();
    const held = op('expiry', { cost: 5, reserved: true });
    await store.take('s', [op('expiry'), op('other', { cost: 0 })], { mode: 'all' });
    await store.take('s', [held], { mode: 'all', id: 'a', holdMs: 30 });
    await new Promise((resolve) => setTimeout(resolve, 80));
    expect(await store.take('s', [op('expiry')], { mode: 'all' })).toMatchObject({ ops: [{ used: 2 }] });
    await store.settle('s', 'a', [3]);
    await store.settle('s', 'a', [3]);
    await store.close?.();
    expect(await used(held)).toBe(2 + 3);
  });

  it('trap 18: charges an id once, though it comes several times before there is a lease', async () => {
    const store = leased();
    const held = op('twice', { cost: 3, reserved: true });
    const asked = [1, 2, 3].map(() => store.take('s', [held], { mode: 'all', id: 'one' }));
    expect((await Promise.all(asked)).map(({ allowed }) => allowed)).toEqual([true, true, true]);
    await store.close?.();
    expect(await used(held)).toBe(3);
  });

  it('refunds a charge whose lease is gone, on the window in which it was made', async () => {
    const store = leased();
    const wide = op('gone', { cost: 10 });
    const taken = await store.take('s', [wide], { mode: 'all' });
    // The lease of ten units is spent, and the next one is another.
    clock.ahead += 61_000;
    await store.take('s', [op('gone')], { mode: 'all' });
    await store.settle('s', { ops: [wide], taken }, [2]);
    await store.close?.();
    expect(await used(wide)).toBe(2 + 1);
  });

  it('puts nothing of an earlier window into the lease of the next', async () => {
    const store = leased();
    const brief = op('brief', { window: calendar(500), limit: 100, cost: 1 });
    const wide = { ...brief, cost: 20 };
    await new Promise((resolve) => setTimeout(resolve, 500 - (Date.now() % 500)));
    const taken = await store.take('s', [wide], { mode: 'all' });
    await store.take('s', [{ ...brief, cost: 3, reserved: true }], { mode: 'all', id: 'early' });
    await new Promise((resolve) => setTimeout(resolve, 505 - (Date.now() % 500)));
    let admitted = 0;
    for (let call = 0; call < 5; call++) if ((await store.take('s', [wide], { mode: 'all' })).allowed) admitted += 1;
    await store.settle('s', { ops: [wide], taken }, [0]);
    await store.settle('s', 'early', [0]);
    if ((await store.take('s', [wide], { mode: 'all' })).allowed) admitted += 1;
    expect(admitted).toBe(5);
  });

  it('takes what ended its minute back to Redis, and what is left when the limit changes', async () => {
    const store = leased();
    await store.take('s', [op('minute')], { mode: 'all' });
    expect(await used(op('minute'))).toBe(10);
    clock.ahead += 61_000;
    await store.take('s', [op('minute')], { mode: 'all' });
    expect(await used(op('minute'))).toBe(11);
    await store.take('s', [op('minute', { limit: 500 })], { mode: 'all' });
    await expect.poll(() => used(op('minute'))).toBe(2 + 5);
  });

  it('asks once for what many wait for', async () => {
    const store = leased();
    const before = Number(/cmdstat_evalsha:calls=(\d+)/.exec(await client.info('commandstats'))?.[1]);
    const answers = await Promise.all(
      Array.from({ length: 50 }, () => store.take('s', [op('crowd', { limit: 10_000 })], { mode: 'all' })),
    );
    const after = Number(/cmdstat_evalsha:calls=(\d+)/.exec(await client.info('commandstats'))?.[1]);
    expect(answers.every(({ allowed }) => allowed)).toBe(true);
    expect(after - before).toBe(1);
  });

  it('books what is known only afterwards from the lease, and in Redis what the lease has not', async () => {
    const store = leased();
    const tokens = op('debt', { cost: 0, need: 1 });
    await store.take('s', [tokens], { mode: 'all' });
    const scripts = async () => Number(/cmdstat_evalsha:calls=(\d+)/.exec(await client.info('commandstats'))?.[1]);
    const before = await scripts();
    for (let call = 0; call < 3; call++) {
      const booked = store.take('s', [op('debt', { cost: 3 })], { mode: 'force' });
      expect(booked).toMatchObject({ allowed: true, ops: [{ granted: 3, used: 3 * (call + 1) }] });
    }
    expect(await scripts()).toBe(before);
    await store.take('s', [op('debt', { cost: 3 })], { mode: 'force' });
    expect(await scripts()).toBe(before + 1);
    await store.close?.();
    expect(await used(tokens)).toBe(12);
  });

  it('gives back on closing what it asked for a moment before', async () => {
    const store = leased();
    const asking = store.take('s', [op('closing')], { mode: 'all' });
    await store.close?.();
    expect((await asking).allowed).toBe(true);
    expect(await used(op('closing'))).toBe(1);
  });

  it('remembers for a second what was used up: not for a smaller need, another limit, or after a reset', async () => {
    const store = leased();
    const tight = (change: Partial<QuotaOp> = {}): QuotaOp => op('tight', { limit: 10, ...change });
    await store.take('s', [tight({ cost: 8 })], { mode: 'all' });
    expect((await store.take('s', [tight({ cost: 5 })], { mode: 'all' })).allowed).toBe(false);
    const known = store.take('s', [op('free', { cost: 0 }), tight({ cost: 5 })], { mode: 'all' });
    expect(known).toMatchObject({ allowed: false, ops: [{ granted: 0, retryMs: 0 }, { granted: 0 }] });
    expect((await store.take('s', [tight({ cost: 11 })], { mode: 'all' })).allowed).toBe(false);
    expect((await store.take('s', [tight({ cost: 2 })], { mode: 'all' })).allowed).toBe(true);
    expect((await store.take('s', [tight({ limit: 20, cost: 5 })], { mode: 'all' })).allowed).toBe(true);
    expect((await store.take('s', [tight({ limit: 15, cost: 5 })], { mode: 'all' })).allowed).toBe(false);
    clock.ahead += 1_001;
    const asked = store.take('s', [tight({ limit: 15, cost: 5 })], { mode: 'all' });
    expect(asked).toBeInstanceOf(Promise);
    expect((await asked).allowed).toBe(false);
    await store.reset('s', [tight()]);
    expect((await store.take('s', [tight({ limit: 15, cost: 5 })], { mode: 'all' })).allowed).toBe(true);
  });

  it('gives back what one counter was leased when another refuses, and never waits where waiting does not help', async () => {
    const store = leased();
    const ops = [op('many'), op('none', { limit: 2, cost: 3 })];
    const refused = await store.take('s', ops, { mode: 'all' });
    expect(refused).toMatchObject({ allowed: false, ops: [{ retryMs: 0 }, { retryMs: null }] });
    expect(store.take('s', ops, { mode: 'all' })).toMatchObject({ allowed: false, ops: [{}, { retryMs: null }] });
    expect(await used(op('many'))).toBe(0);
  });
});

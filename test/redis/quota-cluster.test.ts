import { Cluster, Redis } from 'ioredis';
import { createCluster } from 'redis';
import type { QuotaOp, QuotaStore } from 'tollkeeper';
import { redisQuotaStore } from 'tollkeeper/redis';
import { quotaStoreContract } from 'tollkeeper/testing';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { describeWith, startRedisCluster } from '../support/index.js';

const HOUR = 3_600_000;
const GENEROUS = { deadlineSeconds: 5 };
const op = (key: string, change: Partial<QuotaOp> = {}): QuotaOp => ({
  key,
  window: { kind: 'gcra', periodMs: 1_000 * HOUR, burst: 1_000 },
  limit: 1_000,
  cost: 1,
  ...change,
});

describeWith('redis', 'redisQuotaStore on a cluster of three', () => {
  let cluster: Awaited<ReturnType<typeof startRedisCluster>>;
  let ioredis: Cluster;
  let nodeRedis: ReturnType<typeof createCluster>;
  /** The connections that the store makes for itself, where tests get at them. */
  let own: Cluster[] = [];
  const stores: QuotaStore[] = [];
  beforeAll(async () => {
    cluster = await startRedisCluster();
    ioredis = new Cluster(
      cluster.nodes.map(({ host, port }) => ({ host, port })),
      { redisOptions: { connectionName: 'app' } },
    );
    ioredis.on('error', () => {});
    const { duplicate } = ioredis;
    ioredis.duplicate = (...args: Parameters<typeof duplicate>) => {
      const made = duplicate.apply(ioredis, args);
      own.push(made);
      return made;
    };
    nodeRedis = createCluster({
      rootNodes: cluster.nodes.map(({ host, port }) => ({ url: `redis://${host}:${port}` })),
    });
    nodeRedis.on('error', () => {});
    await nodeRedis.connect();
  });
  afterEach(async () => {
    for (const store of stores.splice(0)) await store.close?.();
    own = [];
  });
  afterAll(async () => {
    ioredis?.disconnect();
    nodeRedis?.destroy();
    await cluster?.stop();
  });

  function opened(client: unknown, options: Parameters<typeof redisQuotaStore>[1] = {}): QuotaStore {
    const store = redisQuotaStore(client as never, { ...GENEROUS, ...options });
    stores.push(store);
    return store;
  }
  const usedOf = async (store: QuotaStore, slot: string): Promise<number | undefined> =>
    Promise.resolve(store.take(slot, [op(slot, { cost: 0 })], { mode: 'peek' })).then(
      ({ ops }) => ops[0]?.used,
      () => undefined,
    );
  /** A slot whose keys live on this node of the cluster. */
  async function slotOn(port: number): Promise<string> {
    for (let turn = 0; ; turn++) {
      const slot = `slot-${turn}-${port}`;
      const number = Number(await ioredis.call('CLUSTER', 'KEYSLOT', `tollkeeper:quota:{${slot}}:x`));
      if (ioredis.slots[number]?.[0]?.endsWith(`:${port}`)) return slot;
    }
  }

  for (const [client, make] of [
    ['ioredis', () => redisQuotaStore(ioredis as never, { ...GENEROUS, prefix: 'io' })],
    ['node-redis', () => redisQuotaStore(nodeRedis as never, { ...GENEROUS, prefix: 'node' })],
  ] as const) {
    describe(`by ${client}`, () => {
      const cases = quotaStoreContract(async () => {
        const store = make();
        return { store, end: async () => store.close?.() };
      });
      for (const { name, run } of cases) it(name, run);
    });
  }

  it('gives every key on every node a time to live', async () => {
    let seen = 0;
    for (const { port } of cluster.nodes) {
      const client = new Redis(port, '127.0.0.1');
      for (const key of await client.keys('*')) {
        seen += 1;
        const ttl = await client.pttl(key);
        expect([key, ttl > 0 || ttl === -2]).toEqual([key, true]);
      }
      client.disconnect();
    }
    expect(seen).toBeGreaterThan(20);
  });

  it('keeps the settings of the connections that the app made', async () => {
    const store = opened(ioredis);
    await store.take('names', [op('names')], { mode: 'all' });
    const names = await Promise.all(own.flatMap((made) => made.nodes().map((node) => node.client('GETNAME'))));
    expect(names).toContain('app');
  });

  it('never sends a charge again when the connection to a node breaks', async () => {
    const [node] = cluster.nodes;
    const slot = await slotOn(node?.port as number);
    const store = opened(ioredis);
    await store.take(slot, [op(slot)], { mode: 'all' });
    node?.pause();
    const lost = Promise.resolve(store.take(slot, [op(slot)], { mode: 'all' })).then(
      () => 'answered',
      () => 'refused',
    );
    // What was sent lies with the node, and its answer will find nobody.
    await new Promise((resolve) => setTimeout(resolve, 50));
    for (const made of own)
      for (const { stream } of made.nodes()) (stream as { destroy(): void } | undefined)?.destroy();
    node?.resume();
    expect(await lost).toBe('refused');
    await expect.poll(() => usedOf(store, slot), { timeout: 10_000 }).toBe(2);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(await usedOf(store, slot)).toBe(2);
  });

  it.each([
    ['ioredis', () => ioredis as unknown],
    ['node-redis', () => nodeRedis as unknown],
  ])(
    'answers in time when a node hangs (%s), goes on with the others, and counts again when it is back',
    async (name, client) => {
      const [first, second] = cluster.nodes;
      const [hanging, other] = [await slotOn(first?.port as number), await slotOn(second?.port as number)];
      const store = opened(client(), { deadlineSeconds: 0.3, prefix: 'tollkeeper:quota' });
      await expect.poll(() => usedOf(store, hanging), { timeout: 10_000 }).toBeDefined();
      await expect.poll(() => usedOf(store, other), { timeout: 10_000 }).toBeDefined();
      const before = (await usedOf(store, hanging)) ?? 0;
      first?.pause();
      await expect(async () => store.take(hanging, [op(hanging)], { mode: 'all' }), name).rejects.toThrow('no answer');
      await expect.poll(() => usedOf(store, other), { timeout: 10_000 }).toBeDefined();
      first?.resume();
      await expect.poll(() => usedOf(store, hanging), { timeout: 20_000 }).toBe(before + 1);
    },
  );
});

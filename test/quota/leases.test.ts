import { Redis } from 'ioredis';
import { redisQuotaStore } from 'tollkeeper/redis';
import { expect, it } from 'vitest';
import { describeWith, type RunningProcess, startProcess, startRedis } from '../support/index.js';
import type { LeaseReplicaSettings } from './lease-replica.js';

const REPLICAS = 10;
const REQUESTS = 100_000;
const LIMIT = REQUESTS / 2;

describeWith('redis', 'leases of many processes', () => {
  it('never admit more than the limit and strand no more than the bound, though one dies and one is shut down', async () => {
    const server = await startRedis();
    const client = new Redis(server.url);
    const each = REQUESTS / REPLICAS;
    const started = Array.from({ length: REPLICAS }, (_, index) => {
      const settings: LeaseReplicaSettings = {
        redis: server.url,
        replicas: REPLICAS,
        limit: LIMIT,
        requests: each,
        stopAfter: index === 1 ? Math.floor(each / 4) : 0,
      };
      return startProcess(new URL('./lease-replica.ts', import.meta.url), { args: [JSON.stringify(settings)] });
    });
    const replicas: RunningProcess[] = await Promise.all(started);
    // What each said that it admitted, as its client has seen it.
    const admitted = new Array<number>(REPLICAS).fill(0);
    const ended = replicas.map(
      (replica, index) =>
        new Promise<void>((resolve) => {
          replica.onMessage((message) => {
            const said = message as { admitted: number; request?: number; done?: boolean };
            admitted[index] = said.admitted;
            if (index === 0 && (said.request ?? 0) >= each / 4) void replica.kill('SIGKILL');
            if (said.done === true) resolve();
          });
          void replica.exited.then(() => resolve());
        }),
    );
    for (const replica of replicas) replica.send('go');
    await Promise.all(ended);
    await Promise.all(replicas.map((replica) => replica.kill()));
    const trips = Number(/cmdstat_evalsha:calls=(\d+)/.exec(await client.info('commandstats'))?.[1]);
    const total = admitted.reduce((sum, count) => sum + count, 0);
    const stranded = LIMIT - total;
    // One lease each, and what the killed one had not told yet.
    const bound = REPLICAS * Math.ceil(LIMIT / 100) + 20;
    console.log(
      `${REPLICAS} processes, ${REQUESTS} requests, limit ${LIMIT}: ${total} admitted, ${stranded} stranded (bound ${bound}), ${trips} round trips, one per ${(REQUESTS / trips).toFixed(0)} requests`,
    );
    expect(total).toBeLessThanOrEqual(LIMIT);
    expect(stranded).toBeLessThanOrEqual(bound);
    const exact = redisQuotaStore(client);
    const window = { kind: 'calendar', at: () => ({ startMs: 0, endMs: 8_640_000_000_000 }) } as const;
    const { ops } = await exact.take('leases', [{ key: 'shared', window, limit: LIMIT, cost: 0 }], { mode: 'peek' });
    // What the dead one held is burned; what the others did not spend came back.
    expect(ops[0]?.used).toBeGreaterThanOrEqual(total);
    expect(ops[0]?.used).toBeLessThanOrEqual(LIMIT);
    await exact.close?.();
    client.disconnect();
    await server.stop();
  }, 300_000);
});

import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import type { RunningServer } from './running-server.js';
import { startRedis } from './start-redis.js';

const SLOTS = 16_384;
const MASTERS = 3;
const FORM_MS = 30_000;

export interface RunningRedisCluster {
  readonly nodes: readonly RunningServer[];
  stop(): Promise<void>;
}

/** A real Redis cluster of three masters that cover all slots, without replicas. */
export async function startRedisCluster(): Promise<RunningRedisCluster> {
  const nodes = await Promise.all(
    Array.from({ length: MASTERS }, () =>
      startRedis({ args: ['--cluster-enabled', 'yes', '--cluster-node-timeout', '2000'] }),
    ),
  );
  const stop = async (): Promise<void> => {
    await Promise.all(nodes.map((node) => node.stop()));
  };
  const clients = nodes.map((node) => new Redis({ host: node.host, port: node.port }));
  try {
    for (const [index, client] of clients.entries()) {
      const from = Math.ceil((SLOTS * index) / MASTERS);
      const to = Math.ceil((SLOTS * (index + 1)) / MASTERS) - 1;
      await client.call('CLUSTER', 'SET-CONFIG-EPOCH', index + 1);
      await client.call('CLUSTER', 'ADDSLOTSRANGE', from, to);
    }
    for (const node of nodes.slice(1)) await clients[0]?.call('CLUSTER', 'MEET', node.host, node.port);
    const deadline = Date.now() + FORM_MS;
    for (const client of clients) {
      while (!formed(String(await client.call('CLUSTER', 'INFO')))) {
        if (Date.now() > deadline) throw new Error('the Redis cluster did not form');
        await sleep(50);
      }
    }
  } catch (error) {
    await stop();
    throw error;
  } finally {
    for (const client of clients) client.disconnect();
  }
  return { nodes, stop };
}

function formed(info: string): boolean {
  return (
    info.includes('cluster_state:ok') &&
    info.includes(`cluster_slots_ok:${SLOTS}`) &&
    info.includes(`cluster_size:${MASTERS}`)
  );
}

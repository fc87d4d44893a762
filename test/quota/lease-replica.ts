import { Redis } from 'ioredis';
import type { QuotaOp } from 'tollkeeper';
import { redisQuotaStore } from 'tollkeeper/redis';

/** One replica that spends leases: a process of its own. */
export interface LeaseReplicaSettings {
  readonly redis: string;
  readonly replicas: number;
  readonly limit: number;
  readonly requests: number;
  /** Closes the store after this many requests, as a shutdown does. */
  readonly stopAfter: number;
}

const DAY_MS = 86_400_000;
const settings = JSON.parse(process.argv[2] as string) as LeaseReplicaSettings;
const client = new Redis(settings.redis);
const store = redisQuotaStore(client, { deadlineSeconds: 20, lease: { replicas: settings.replicas } });
const op: QuotaOp = {
  key: 'shared',
  window: { kind: 'calendar', at: () => ({ startMs: 0, endMs: 100_000 * DAY_MS }) },
  limit: settings.limit,
  cost: 1,
};

/** Requests between two reports: as many answers of a killed process are unknown at most. */
const BATCH = 20;

function report(message: object): Promise<void> {
  return new Promise((resolve) => process.send?.(message, undefined, undefined, () => resolve()));
}

/** Goes on only when what was answered so far has been told. */
async function serve(): Promise<void> {
  let admitted = 0;
  for (let request = 1; request <= settings.requests; request++) {
    const { allowed } = await store.take('leases', [op], { mode: 'all' });
    if (allowed) admitted += 1;
    if (request % BATCH === 0) await report({ admitted, request });
    if (request === settings.stopAfter) break;
  }
  await store.close?.();
  client.disconnect();
  await report({ admitted, done: true });
  process.disconnect?.();
}

process.on('message', () => void serve());
await client.ping();
console.log('ready {}');

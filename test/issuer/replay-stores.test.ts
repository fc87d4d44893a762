import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { Cluster, Redis } from 'ioredis';
import Database from 'libsql';
import pg from 'pg';
import { createClient, createCluster } from 'redis';
import { memoryReplayStore, type ReplayStore } from 'tollkeeper/issuer';
import { postgresReplayStore } from 'tollkeeper/postgres';
import { redisReplayStore } from 'tollkeeper/redis';
import { type SqliteDatabase, sqliteReplayStore } from 'tollkeeper/sqlite';
import { manualClock, type ReplayStoresUnderTest, replayStoreContract } from 'tollkeeper/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  describeWith,
  type RunningRedisCluster,
  type RunningServer,
  startPostgres,
  startRedis,
  startRedisCluster,
  tempFolder,
} from '../support/index.js';
import { assertion, assertionForm, issuerFixture } from './issuer-fixture.js';

const LIFE = 3_600;
const soon = () => Date.now() / 1_000 + LIFE;

function contract(make: () => Promise<ReplayStoresUnderTest>): void {
  for (const { name, run } of replayStoreContract(make)) it(name, run);
}

/** What two replicas of an issuer say to one assertion, sent to both at once, and to either again. */
async function acrossReplicas(stores: readonly ReplayStore[]): Promise<number[]> {
  const replicas = await Promise.all(stores.map((replayStore) => issuerFixture({ replayStore })));
  const form = { grant_type: 'client_credentials', ...assertionForm(await assertion()) };
  const ask = () => Promise.all(replicas.map(async (replica) => (await replica.post('/oauth/token', form, {})).status));
  const statuses = [...(await ask()).sort(), ...(await ask())];
  for (const replica of replicas) await replica.close();
  return statuses;
}

describe('the replay store contract on memory', () => {
  contract(async () => {
    const store = memoryReplayStore();
    return { stores: [store, store] };
  });
});

describe('the replay store contract on SQLite', () => {
  contract(async () => {
    const folder = tempFolder('replays');
    const databases = [0, 1].map(() => new Database(join(folder.path, 'replays.db')) as unknown as OpenDatabase);
    for (const db of databases) db.exec('PRAGMA journal_mode = WAL; PRAGMA busy_timeout = 5000');
    const [here, there] = databases.map((db) => sqliteReplayStore(db)) as [Migrated, Migrated];
    await here.migrate();
    await there.migrate();
    return {
      stores: [here, there],
      async end() {
        for (const db of databases) db.close();
        folder.remove();
      },
    };
  });

  it('is pruned as it is used, 100 at a time, and takes an expired id anew', async () => {
    const clock = manualClock();
    const db = new Database(':memory:') as unknown as OpenDatabase;
    const store = sqliteReplayStore(db, { clock });
    await store.migrate();
    const now = () => clock.now() / 1_000;
    for (let index = 0; index < 150; index++) await store.take(`id ${index}`, now() + 10);
    clock.advance(69);
    expect(await store.take('id 0', now() + 10)).toBe(false);
    clock.advance(2);
    expect(await store.take('id 149', now() + 10)).toBe(true);
    expect((db.prepare('SELECT count(*) AS n FROM tollkeeper_replays').get() as { n: number }).n).toBeLessThan(52);
    db.close();
  });
});

type OpenDatabase = SqliteDatabase & { close(): void };
type Migrated = ReplayStore & { migrate(): Promise<void> };

describeWith('redis', 'the replay store contract on Redis', () => {
  let server: RunningServer;
  beforeAll(async () => {
    server = await startRedis();
  });
  afterAll(() => server?.stop());

  const withIoredis = async (): Promise<Required<ReplayStoresUnderTest>> => {
    const clients = [new Redis(server.url), new Redis(server.url)] as const;
    const prefix = randomUUID();
    return {
      stores: [redisReplayStore(clients[0], { prefix }), redisReplayStore(clients[1], { prefix })],
      async end() {
        for (const client of clients) client.disconnect();
      },
    };
  };

  describe('with ioredis', () => contract(withIoredis));
  describe('with node-redis', () =>
    contract(async () => {
      const clients = [createClient({ url: server.url }), createClient({ url: server.url })] as const;
      for (const client of clients) await client.connect();
      const prefix = randomUUID();
      return {
        stores: [redisReplayStore(clients[0], { prefix }), redisReplayStore(clients[1], { prefix })],
        async end() {
          for (const client of clients) client.destroy();
        },
      };
    }));

  it('lets an assertion be used once at one of two replicas', async () => {
    const { stores, end } = await withIoredis();
    expect(await acrossReplicas(stores)).toEqual([200, 401, 401, 401]);
    await end();
  });

  it('has Redis forget an id a minute after its expiry, and stores no id in the clear', async () => {
    const client = new Redis(server.url);
    const prefix = randomUUID();
    await redisReplayStore(client, { prefix }).take('the id', soon());
    const [key = ''] = await client.keys(`${prefix}*`);
    expect(key).not.toContain('the id');
    const seconds = await client.ttl(key);
    expect(seconds).toBeGreaterThan(LIFE);
    expect(seconds).toBeLessThanOrEqual(LIFE + 61);
    client.disconnect();
  });

  it('keeps an id also where its issuer sees it as expired: it errs on the safe side', async () => {
    const { stores, end } = await withIoredis();
    expect(await stores[0].take('past', Date.now() / 1_000 - 30)).toBe(true);
    expect(await stores[1].take('past', Date.now() / 1_000 - 30)).toBe(false);
    await end();
  });

  it('lets nobody in while Redis is away: 503', async () => {
    const own = await startRedis();
    const client = new Redis(own.url, { maxRetriesPerRequest: 0, retryStrategy: () => null });
    client.on('error', () => {});
    const replica = await issuerFixture({ replayStore: redisReplayStore(client) });
    const ask = async () =>
      replica.post('/oauth/token', { grant_type: 'client_credentials', ...assertionForm(await assertion()) }, {});
    expect((await ask()).status).toBe(200);
    await own.stop();
    const refused = await ask();
    expect(refused.status).toBe(503);
    expect(refused.headers.get('retry-after')).toBe('5');
    expect(await refused.json()).toMatchObject({ error: 'temporarily_unavailable' });
    await replica.close();
    client.disconnect();
  });
});

describeWith('redis', 'the replay store contract on a Redis cluster', () => {
  let cluster: RunningRedisCluster;
  beforeAll(async () => {
    cluster = await startRedisCluster();
  });
  afterAll(() => cluster?.stop());

  describe('with ioredis', () =>
    contract(async () => {
      const clients = [new Cluster([...cluster.nodes]), new Cluster([...cluster.nodes])] as const;
      const prefix = randomUUID();
      return {
        stores: [redisReplayStore(clients[0], { prefix }), redisReplayStore(clients[1], { prefix })],
        async end() {
          for (const client of clients) client.disconnect();
        },
      };
    }));
  describe('with node-redis', () =>
    contract(async () => {
      const rootNodes = cluster.nodes.map(({ host, port }) => ({ url: `redis://${host}:${port}` }));
      const clients = [createCluster({ rootNodes }), createCluster({ rootNodes })] as const;
      for (const client of clients) await client.connect();
      const prefix = randomUUID();
      return {
        stores: [redisReplayStore(clients[0], { prefix }), redisReplayStore(clients[1], { prefix })],
        async end() {
          for (const client of clients) client.destroy();
        },
      };
    }));
});

describeWith('postgres', 'the replay store contract on PostgreSQL', () => {
  let server: RunningServer;
  beforeAll(async () => {
    server = await startPostgres();
  });
  afterAll(() => server?.stop());

  const withPools = async () => {
    const schema = `s${randomUUID().replaceAll('-', '')}`;
    const pools = [0, 1].map(
      () => new pg.Pool({ connectionString: server.url, options: `-c search_path=${schema}`, max: 5 }),
    );
    const [one, other] = pools as [pg.Pool, pg.Pool];
    await one.query(`CREATE SCHEMA ${schema}`);
    const stores = [postgresReplayStore(one), postgresReplayStore(other)] as const;
    // Every replica may migrate as it starts.
    await Promise.all(stores.map((store) => store.migrate()));
    const end = async (): Promise<void> => {
      await Promise.all(pools.map((pool) => pool.end()));
    };
    return { stores, end, pool: one };
  };
  contract(withPools);

  it('lets an assertion be used once at one of two replicas', async () => {
    const { stores, end } = await withPools();
    expect(await acrossReplicas(stores)).toEqual([200, 401, 401, 401]);
    await end();
  });

  it('is pruned as it is used, 100 at a time, and takes an expired id anew, once', async () => {
    const { stores, end, pool } = await withPools();
    for (let index = 0; index < 150; index++) await stores[0].take(`id ${index}`, soon());
    await pool.query("UPDATE tollkeeper_replays SET expires_at = now() - interval '1 second'");
    const answers = await Promise.all([...stores, ...stores].map((store) => store.take('id 149', soon())));
    expect(answers.filter(Boolean)).toHaveLength(1);
    for (let index = 0; index < 3; index++) await stores[1].take(`new ${index}`, soon());
    expect((await pool.query('SELECT * FROM tollkeeper_replays')).rowCount).toBe(4);
    await end();
  });

  it('rejects before migrate(), which lets nobody in', async () => {
    const pool = new pg.Pool({ connectionString: server.url });
    await expect(postgresReplayStore(pool).take('a', soon())).rejects.toThrow('tollkeeper_replays');
    await pool.end();
  });
});

describe('the replay store contract', () => {
  it.each<[string, () => ReplayStore]>([
    ['takes everything', () => ({ take: () => true })],
    [
      'asks first and writes later',
      () => {
        const held = new Set<string>();
        return {
          async take(id) {
            const known = held.has(id);
            await new Promise(setImmediate);
            held.add(id);
            return !known;
          },
        };
      },
    ],
    [
      'forgets at once what is short-lived',
      () => {
        const store = memoryReplayStore();
        return { take: (id, expiresAt) => expiresAt - Date.now() / 1_000 < 2 || store.take(id, expiresAt) };
      },
    ],
    [
      'cuts ids off',
      () => {
        const store = memoryReplayStore();
        return { take: (id, expiresAt) => store.take(id.slice(0, 255), expiresAt) };
      },
    ],
    [
      'makes room for new ones',
      () => {
        const held: string[] = [];
        return {
          take(id) {
            if (held.includes(id)) return false;
            held.push(id);
            if (held.length > 200) held.shift();
            return true;
          },
        };
      },
    ],
  ])('refuses a store that %s', async (_, make) => {
    const outcomes = await Promise.allSettled(
      replayStoreContract(async () => {
        const store = make();
        return { stores: [store, store] };
      }).map(({ run }) => run()),
    );
    expect(outcomes.some(({ status }) => status === 'rejected')).toBe(true);
  });
});

describe('the options of the replay stores', () => {
  it.each<[string, () => unknown, RegExp]>([
    ['Redis without a client', () => redisReplayStore({} as never), /redis must be an ioredis or node-redis client/],
    [
      'Redis with an empty prefix',
      () => redisReplayStore({ call: async () => 'OK', duplicate: () => 0 }, { prefix: '' }),
      /prefix/,
    ],
    ['PostgreSQL without a pool', () => postgresReplayStore({} as never), /pool must be a Pool of pg/],
    ['SQLite without a database', () => sqliteReplayStore(undefined as never), /db must be an open SQLite database/],
    [
      'a misspelt option',
      () => redisReplayStore({ call: async () => 'OK', duplicate: () => 0 }, { prefxi: 'a' } as never),
      /prefix/,
    ],
  ])('are refused: %s', (_, make, message) => {
    expect(make).toThrow(TypeError);
    expect(make).toThrow(message);
  });
});

import { createRequire } from 'node:module';
import { memoryRevocationStore, type RevocationStore } from 'tollkeeper';
import { postgresRevocationStore } from 'tollkeeper/postgres';
import { redisRevocationStore } from 'tollkeeper/redis';
import { type SqliteDatabase, sqliteRevocationStore } from 'tollkeeper/sqlite';
import { type RevocationStoresUnderTest, revocationStoreContract } from 'tollkeeper/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  describeWith,
  type RunningRedisCluster,
  type RunningServer,
  startPostgres,
  startRedis,
  startRedisCluster,
} from '../support/index.js';
import {
  ioredisClusterStores,
  ioredisStores,
  nodeRedisClusterStores,
  nodeRedisStores,
  openLibsql,
  postgresStores,
  sqliteStores,
} from './open-stores.js';

function contract(make: () => Promise<RevocationStoresUnderTest>): void {
  for (const { name, run } of revocationStoreContract(make)) it(name, run);
}

describe('the revocation contract on memory', () => {
  contract(async () => {
    const store = memoryRevocationStore();
    return { stores: [store, store] };
  });
});

describe('the revocation contract on SQLite through libsql', () => {
  contract(() => sqliteStores(openLibsql));
});

const { DatabaseSync } = (() => {
  try {
    return createRequire(import.meta.url)('node:sqlite') as { DatabaseSync: new (path: string) => never };
  } catch {
    return { DatabaseSync: undefined };
  }
})();

describe.skipIf(DatabaseSync === undefined)('the revocation contract on SQLite through node:sqlite', () => {
  contract(() =>
    sqliteStores((path) => new (DatabaseSync as new (path: string) => SqliteDatabase & { close(): void })(path)),
  );
});

describeWith('redis', 'the revocation contract on Redis', () => {
  let server: RunningServer;
  beforeAll(async () => {
    server = await startRedis();
  });
  afterAll(() => server?.stop());

  describe('with ioredis', () => contract(() => ioredisStores(server.url)));
  describe('with node-redis', () => contract(() => nodeRedisStores(server.url)));
});

describeWith('redis', 'the revocation contract on a Redis cluster', () => {
  let cluster: RunningRedisCluster;
  beforeAll(async () => {
    cluster = await startRedisCluster();
  });
  afterAll(() => cluster?.stop());

  describe('with ioredis', () => contract(() => ioredisClusterStores(cluster.nodes)));
  describe('with node-redis', () => contract(() => nodeRedisClusterStores(cluster.nodes)));
});

describeWith('postgres', 'the revocation contract on PostgreSQL', () => {
  let server: RunningServer;
  beforeAll(async () => {
    server = await startPostgres();
  });
  afterAll(() => server?.stop());

  contract(() => postgresStores(server.url));
});

describe('the revocation contract', () => {
  /** A store that works, on SQLite, with something spoilt. */
  async function spoilt(
    spoil: (store: RevocationStore) => Partial<RevocationStore>,
  ): Promise<RevocationStoresUnderTest> {
    const { stores, end } = await sqliteStores(openLibsql);
    const [one, other] = stores.map((store) => ({ ...store, ...spoil(store) }));
    return { stores: [one, other] as RevocationStoresUnderTest['stores'], end };
  }

  it.each<[string, string, (store: RevocationStore) => Partial<RevocationStore>]>([
    [
      'skips an entry of every page',
      'gives everything without a cursor, and with one only what came after',
      (store) => ({
        read: async (cursor, signal) => {
          const page = await store.read(cursor, signal);
          return { ...page, entries: page.entries.slice(1) };
        },
      }),
    ],
    [
      'lets the last write of a watermark win',
      'keeps the maximum of the watermarks that several processes set',
      (store) => ({
        append: (entry, signal) =>
          store.append({ ...entry, before: entry.target.includes('tenant') ? 1_000 : entry.before }, signal),
      }),
    ],
    [
      'continues from whatever cursor it is given',
      'does not continue from a cursor that it does not know',
      (store) => ({
        read: async (cursor, signal) => ({ ...(await store.read(cursor, signal)), continued: cursor !== undefined }),
      }),
    ],
    [
      'takes entries and forgets them',
      'keeps the later expiry of a denial that is repeated',
      () => ({ append: async () => {} }),
    ],
  ])('refuses a store that %s', async (_, name, spoil) => {
    const refusing = revocationStoreContract(() => spoilt(spoil)).find((each) => each.name === name);
    await expect(refusing?.run()).rejects.toThrow();
  });
});

describe('the options of the stores', () => {
  it.each<[string, () => unknown, RegExp]>([
    [
      'Redis without a client',
      () => redisRevocationStore({} as never),
      /redis must be an ioredis or node-redis client/,
    ],
    ['Redis with nothing', () => redisRevocationStore(undefined as never), /redis must be/],
    ['Redis with an empty prefix', () => redisRevocationStore({} as never, { prefix: '' }), /redis must be.*prefix/],
    ['Redis with a typo', () => redisRevocationStore({} as never, { prefx: 'x' } as never), /did you mean "prefix"/],
    ['PostgreSQL without a pool', () => postgresRevocationStore({} as never), /pool must be a Pool of pg/],
    ['PostgreSQL with a typo', () => postgresRevocationStore({} as never, { listn: true } as never), /"listen"/],
    ['PostgreSQL with a word', () => postgresRevocationStore({} as never, { listen: 'no' } as never), /listen must be/],
    ['SQLite without a database', () => sqliteRevocationStore({} as never), /db must be an open SQLite database/],
  ])('%s are refused', (_, make, message) => {
    expect(make).toThrow(TypeError);
    expect(make).toThrow(message);
  });

  it('may do without hints on PostgreSQL', () => {
    const pool = { query: async () => ({ rows: [], rowCount: 0 }), connect: () => Promise.reject(new Error('unused')) };
    expect(postgresRevocationStore(pool, { listen: false }).subscribe).toBeUndefined();
    expect(postgresRevocationStore(pool).subscribe).toBeTypeOf('function');
  });

  it('leave the reason of a denial beside it', async () => {
    const { stores, end } = await sqliteStores(openLibsql);
    const signal = new AbortController().signal;
    await stores[0].append({ key: 'k', target: 't', before: 1, expiresAt: 4_294_967_295, reason: 'left' }, signal);
    expect((await stores[1].read(undefined, signal)).entries).toEqual([
      { key: 'k', target: 't', before: 1, expiresAt: 4_294_967_295, reason: 'left' },
    ]);
    await end();
  });
});

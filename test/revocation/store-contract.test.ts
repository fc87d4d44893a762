import { createRequire } from 'node:module';
import { memoryRevocationStore, type RevocationStore } from 'tollkeeper';
import type { SqliteDatabase } from 'tollkeeper/sqlite';
import { type RevocationStoresUnderTest, revocationStoreContract } from 'tollkeeper/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { describeWith, type RunningServer, startPostgres, startRedis } from '../support/index.js';
import { ioredisStores, nodeRedisStores, openLibsql, postgresStores, sqliteStores } from './open-stores.js';

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

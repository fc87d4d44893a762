import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import pg from 'pg';
import { createRevocations, type RevocationStore, type Revocations } from 'tollkeeper';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { describeWith, type RunningServer, startPostgres, startRedis } from '../support/index.js';
import { identity } from './identity.js';
import { ioredisStores, nodeRedisStores, type OpenStores, postgresStores } from './open-stores.js';

const POLL_SECONDS = 0.2;
const STALE_SECONDS = 2;
/** Beyond one poll: a read, and what a client takes to connect again (2 s between attempts at most). */
const RETURN_MS = POLL_SECONDS * 1_000 + 5_000;

const stranger = identity({ tokenId: 'stranger' });

interface Source {
  readonly server: RunningServer;
  open(): Promise<OpenStores>;
  /** Loses all entries, as an operator or an eviction would. */
  empty(): Promise<void>;
  /** Ends every connection that listens for hints. */
  dropListeners(): Promise<void>;
}

function outages(source: () => Source): void {
  const ends: (() => Promise<unknown>)[] = [];
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end();
  });

  function watch(store: RevocationStore, pollSeconds = POLL_SECONDS): Revocations {
    const revocations = createRevocations({
      store,
      pollSeconds,
      maxStalenessSeconds: Math.max(pollSeconds, STALE_SECONDS),
    });
    ends.push(() => revocations.close());
    return revocations;
  }

  async function pair(pollSeconds?: number): Promise<[Revocations, Revocations, OpenStores]> {
    const opened = await source().open();
    ends.push(() => opened.end());
    const both = opened.stores.map((store) => watch(store, pollSeconds)) as [Revocations, Revocations];
    await Promise.all(both.map((each) => each.ready()));
    return [...both, opened];
  }

  it('goes on with the last view while the server hangs, then answers unknown, and is back after it', async () => {
    const [here, there] = await pair();
    await here.revoke({ tokenId: 'bad' });
    await until(() => there.check(identity({ tokenId: 'bad' })) === 'revoked');
    const { server } = source();
    server.pause();
    const stopped = performance.now();
    try {
      let staleAfter = 0;
      while (staleAfter === 0) {
        for (const each of [here, there]) expect(each.check(identity({ tokenId: 'bad' }))).toBe('revoked');
        if (there.check(stranger) === 'unknown') staleAfter = performance.now() - stopped;
        await sleep(5);
      }
      // The last view is as old as one poll when the server stops. The rest is for a machine that is busy.
      expect(staleAfter).toBeGreaterThan((STALE_SECONDS - POLL_SECONDS) * 1_000 - 1_000);
      expect(staleAfter).toBeLessThan(STALE_SECONDS * 1_000 + 1_500);
      // Nobody gets out of it: a denial that cannot be written holds here.
      await expect(here.revoke({ tokenId: 'worse' })).rejects.toThrow();
      expect(here.check(identity({ tokenId: 'worse' }))).toBe('revoked');
    } finally {
      server.resume();
    }
    await until(() => here.check(stranger) === 'live' && there.check(stranger) === 'live', RETURN_MS);
    for (const each of [here, there]) expect(each.check(identity({ tokenId: 'bad' }))).toBe('revoked');
  });

  it('is back after the server was killed and started again, and keeps what it knows', async () => {
    const [here, there] = await pair();
    await here.revoke({ tokenId: 'bad' });
    await until(() => there.check(identity({ tokenId: 'bad' })) === 'revoked');
    const { server } = source();
    await server.kill();
    await until(() => there.check(stranger) === 'unknown', STALE_SECONDS * 1_000 + 1_000);
    expect(there.check(identity({ tokenId: 'bad' }))).toBe('revoked');
    await server.restart();
    await until(() => here.check(stranger) === 'live' && there.check(stranger) === 'live', RETURN_MS);
    for (const each of [here, there]) expect(each.check(identity({ tokenId: 'bad' }))).toBe('revoked');
    await here.revoke({ tokenId: 'worse' });
    await until(() => there.check(identity({ tokenId: 'worse' })) === 'revoked', RETURN_MS);
  });

  it('is there as soon as a server comes up that was down at the start', async () => {
    const { server } = source();
    const opened = await source().open();
    ends.push(() => opened.end());
    await server.kill();
    const late = watch(opened.stores[0]);
    expect(late.check(stranger)).toBe('unknown');
    await sleep(300);
    expect(late.check(stranger)).toBe('unknown');
    await server.restart();
    await until(() => late.check(stranger) === 'live', RETURN_MS);
  });

  it('keeps its denials when the server has lost them, verifies the rest anew, and goes on', async () => {
    const [here, there] = await pair();
    await here.revoke({ tokenId: 'bad' });
    await here.revoke({ tenant: 't1' });
    await until(() => there.check(identity({ tenant: 't1' })) === 'revoked');
    const decidedAt = there.version;
    await source().empty();
    await until(() => there.check(stranger, decidedAt) === 'changed');
    for (const each of [here, there]) {
      expect(each.check(identity({ tokenId: 'bad' }))).toBe('revoked');
      expect(each.check(identity({ tenant: 't1' }))).toBe('revoked');
    }
    await here.revoke({ tokenId: 'worse' });
    await until(() => there.check(identity({ tokenId: 'worse' })) === 'revoked');
  });

  it('holds by polling alone when no hint arrives', async () => {
    const opened = await source().open();
    ends.push(() => opened.end());
    const [here, there] = opened.stores.map(({ append, read }) => watch({ append, read })) as [
      Revocations,
      Revocations,
    ];
    await Promise.all([here.ready(), there.ready()]);
    let worst = 0;
    for (let round = 0; round < 10; round++) {
      await here.revoke({ tokenId: `j${round}` });
      const written = performance.now();
      await until(() => there.check(identity({ tokenId: `j${round}` })) === 'revoked');
      worst = Math.max(worst, performance.now() - written);
    }
    console.log(`worst lag by polling every ${POLL_SECONDS * 1_000} ms: ${worst.toFixed(0)} ms`);
    expect(worst).toBeLessThan(POLL_SECONDS * 1_000 + 5_000);
  });

  it('hears hints again after the connection that listens was lost', async () => {
    const [here, there] = await pair(3_600);
    await here.revoke({ tokenId: 'j1' });
    await until(() => there.check(identity({ tokenId: 'j1' })) === 'revoked');
    await source().dropListeners();
    // What is written while nobody listens is read when somebody listens again.
    await here.revoke({ tokenId: 'j2' });
    await until(() => there.check(identity({ tokenId: 'j2' })) === 'revoked', RETURN_MS);
    await here.revoke({ tokenId: 'j3' });
    await until(() => there.check(identity({ tokenId: 'j3' })) === 'revoked', RETURN_MS);
  });
}

async function until(condition: () => boolean, withinMs = 5_000): Promise<void> {
  const end = performance.now() + withinMs;
  while (!condition()) {
    expect(performance.now(), `it did not happen within ${withinMs} ms`).toBeLessThan(end);
    await sleep(5);
  }
}

describeWith('redis', 'an outage of Redis', () => {
  let server: RunningServer;
  let prefix = '';
  beforeAll(async () => {
    server = await startRedis();
  });
  afterAll(() => server?.stop());

  async function admin(work: (redis: Redis) => Promise<unknown>): Promise<void> {
    const redis = new Redis(server.url);
    await work(redis);
    redis.disconnect();
  }
  const source = (open: typeof ioredisStores): Source => ({
    server,
    open: () => {
      prefix = randomUUID();
      return open(server.url, prefix);
    },
    empty: () => admin((redis) => redis.flushall()),
    dropListeners: () => admin((redis) => redis.call('CLIENT', 'KILL', 'TYPE', 'pubsub')),
  });

  describe('with ioredis', () => outages(() => source(ioredisStores)));
  describe('with node-redis', () => outages(() => source(nodeRedisStores)));

  it('is noticed when only some of the keys were evicted', async () => {
    for (const lost of ['entries', 'versions', 'head']) {
      const opened = await ioredisStores(server.url, randomUUID());
      const evicted = randomUUID();
      const stores = await ioredisStores(server.url, evicted);
      const revocations = createRevocations({ store: stores.stores[0], pollSeconds: 0.05 });
      await revocations.revoke({ tokenId: 'bad' });
      await revocations.ready();
      await sleep(100);
      const decidedAt = revocations.version;
      expect(revocations.check(stranger, decidedAt)).toBe('live');
      await admin((redis) => redis.del(`${evicted}:{revocations}:${lost}`));
      await until(() => revocations.check(stranger, decidedAt) === 'changed');
      expect(revocations.check(identity({ tokenId: 'bad' }))).toBe('revoked');
      await revocations.revoke({ tokenId: 'worse' });
      const late = createRevocations({ store: stores.stores[1], pollSeconds: 0.05 });
      await late.ready();
      expect(late.check(identity({ tokenId: 'worse' }))).toBe('revoked');
      await Promise.all([revocations.close(), late.close()]);
      await Promise.all([opened.end(), stores.end()]);
    }
  });

  it('that loses the last versions, as a failover does, hides nothing that comes after', async () => {
    const mine = randomUUID();
    const stores = await ioredisStores(server.url, mine);
    const [here, there] = stores.stores.map((store) => createRevocations({ store, pollSeconds: 0.05 })) as [
      Revocations,
      Revocations,
    ];
    for (const tokenId of ['a', 'b', 'c']) await here.revoke({ tokenId });
    await there.ready();
    await admin((redis) => redis.hset(`${mine}:{revocations}:head`, 'version', 1));
    await here.revoke({ tokenId: 'new' });
    await until(() => there.check(identity({ tokenId: 'new' })) === 'revoked');
    await Promise.all([here.close(), there.close()]);
    await stores.end();
  });

  it('of memory leaves reading possible', async () => {
    const stores = await ioredisStores(server.url);
    const revocations = createRevocations({ store: stores.stores[0], pollSeconds: 0.05, maxStalenessSeconds: 0.5 });
    await revocations.ready();
    await admin((redis) => redis.config('SET', 'maxmemory', '1mb'));
    try {
      await expect(revocations.revoke({ tokenId: 'bad' })).rejects.toThrow('OOM');
      expect(revocations.check(identity({ tokenId: 'bad' }))).toBe('revoked');
      await sleep(700);
      expect(revocations.check(stranger)).toBe('live');
    } finally {
      await admin((redis) => redis.config('SET', 'maxmemory', '0'));
      await revocations.close();
      await stores.end();
    }
  });
});

describeWith('postgres', 'an outage of PostgreSQL', () => {
  let server: RunningServer;
  let schema = '';
  beforeAll(async () => {
    server = await startPostgres({ durable: true });
  });
  afterAll(() => server?.stop());

  async function admin(sql: string): Promise<void> {
    const client = new pg.Client(server.url);
    client.on('error', () => {});
    await client.connect();
    await client.query(sql);
    await client.end();
  }

  outages(() => ({
    server,
    open: () => {
      schema = `s${randomUUID().replaceAll('-', '')}`;
      return postgresStores(server.url, schema);
    },
    empty: () =>
      admin(
        `TRUNCATE ${schema}.tollkeeper_revocations;
         UPDATE ${schema}.tollkeeper_revocation_head SET epoch = gen_random_uuid(), version = 0`,
      ),
    dropListeners: () =>
      admin(
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()`,
      ),
  }));

  it('that puts back an older state is noticed', async () => {
    const name = `s${randomUUID().replaceAll('-', '')}`;
    const opened = await postgresStores(server.url, name);
    const [here, there] = opened.stores.map((store) => createRevocations({ store, pollSeconds: 0.05 })) as [
      Revocations,
      Revocations,
    ];
    await here.revoke({ tokenId: 'kept' });
    await admin(`CREATE TABLE ${name}.backup AS SELECT * FROM ${name}.tollkeeper_revocation_head`);
    await here.revoke({ tokenId: 'lost' });
    await there.ready();
    await until(() => there.check(identity({ tokenId: 'lost' })) === 'revoked');
    const decidedAt = there.version;
    await admin(
      `DELETE FROM ${name}.tollkeeper_revocations WHERE target LIKE '%lost%';
       UPDATE ${name}.tollkeeper_revocation_head SET version = (SELECT version FROM ${name}.backup)`,
    );
    await until(() => there.check(stranger, decidedAt) === 'changed');
    await here.revoke({ tokenId: 'new' });
    await until(() => there.check(identity({ tokenId: 'new' })) === 'revoked');
    expect(there.check(identity({ tokenId: 'lost' }))).toBe('revoked');
    await Promise.all([here.close(), there.close()]);
    await opened.end();
  });

  it('of the tables themselves is a failure that says what to do', async () => {
    const opened = await postgresStores(server.url, 'emptied');
    await admin('DELETE FROM emptied.tollkeeper_revocation_head');
    const signal = new AbortController().signal;
    const [store] = opened.stores;
    await expect(store.read(undefined, signal)).rejects.toThrow('call migrate()');
    const entry = { key: 'k', target: 't', before: 1, expiresAt: 1 };
    await expect(store.append(entry, signal)).rejects.toThrow('call migrate()');
    await opened.end();
  });
});

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Cluster, Redis } from 'ioredis';
import pg from 'pg';
import { describe, expect, it } from 'vitest';
import {
  describeWith,
  freePort,
  hasRedis,
  type RunningServer,
  serve,
  startNats,
  startPostgres,
  startProcess,
  startRedis,
  startRedisCluster,
  tempFolder,
} from './support/index.js';

/** Whether a promise is still pending after a moment. */
const hangs = (promise: Promise<unknown>) => Promise.race([promise.then(() => false), sleep(200).then(() => true)]);

/** A process that ended and that nobody waited for is a zombie: Z. */
const isAlive = (pid: number) => existsSync(`/proc/${pid}`) && !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));

async function withServer(starting: Promise<RunningServer>, use: (server: RunningServer) => Promise<void>) {
  const server = await starting;
  try {
    await use(server);
  } finally {
    await server.stop();
  }
  expect(isAlive(server.pid)).toBe(false);
}

describeWith('redis', 'startRedis', () => {
  it('keeps its data through a crash only when asked to', async () => {
    for (const persist of [true, false]) {
      await withServer(startRedis({ persist }), async (server) => {
        const redis = new Redis(server.port, server.host, { lazyConnect: true, retryStrategy: () => 50 });
        redis.on('error', () => {});
        await redis.set('key', 'value');
        const before = server.pid;
        await server.kill();
        expect(isAlive(before)).toBe(false);
        await server.restart();
        expect(server.pid).not.toBe(before);
        expect(await redis.get('key')).toBe(persist ? 'value' : null);
        redis.disconnect();
      });
    }
  });

  it('hangs while it is paused, and answers when it is resumed', async () => {
    await withServer(startRedis(), async (server) => {
      const redis = new Redis(server.port, server.host);
      await redis.ping();
      server.pause();
      const answer = redis.ping();
      expect(await hangs(answer)).toBe(true);
      server.resume();
      expect(await answer).toBe('PONG');
      redis.disconnect();
    });
  });

  it('starts many at once on different ports', async () => {
    const servers = await Promise.all(Array.from({ length: 8 }, () => startRedis()));
    expect(new Set(servers.map(({ port }) => port)).size).toBe(8);
    await Promise.all(servers.map((server) => server.stop()));
  });

  it('says what the server said when it does not start', async () => {
    await expect(startRedis({ args: ['--no-such-option', 'x'] })).rejects.toThrow(
      /redis-server did not start: [\s\S]*FATAL/,
    );
  });

  it('forms a cluster that serves every slot', async () => {
    const cluster = await startRedisCluster();
    const client = new Cluster(cluster.nodes.map(({ host, port }) => ({ host, port })));
    const keys = Array.from({ length: 50 }, (_, index) => `key-${index}`);
    await Promise.all(keys.map((key) => client.set(key, key)));
    expect(await Promise.all(keys.map((key) => client.get(key)))).toEqual(keys);
    client.disconnect();
    await cluster.stop();
    for (const node of cluster.nodes) expect(isAlive(node.pid)).toBe(false);
  });
});

describeWith('postgres', 'startPostgres', () => {
  const query = async (url: string, text: string) => {
    const client = new pg.Client({ connectionString: url });
    client.on('error', () => {});
    await client.connect();
    try {
      return (await client.query(text)).rows;
    } finally {
      await client.end();
    }
  };

  it('keeps committed data through a crash and a restart', async () => {
    await withServer(startPostgres({ durable: true }), async (server) => {
      await query(server.url, 'create table t (n int)');
      await query(server.url, 'insert into t values (7)');
      await server.kill();
      await expect(query(server.url, 'select 1')).rejects.toThrow(/ECONNREFUSED/);
      await server.restart();
      expect(await query(server.url, 'select n from t')).toEqual([{ n: 7 }]);
      await server.restart();
      expect(await query(server.url, 'select n from t')).toEqual([{ n: 7 }]);
      expect(await query(server.url, 'show fsync')).toEqual([{ fsync: 'on' }]);
    });
  });

  it('hangs while it is paused, on open connections too', async () => {
    await withServer(startPostgres(), async (server) => {
      const client = new pg.Client({ connectionString: server.url });
      client.on('error', () => {});
      await client.connect();
      server.pause();
      const answer = client.query('select 1 as n');
      expect(await hangs(answer)).toBe(true);
      server.resume();
      expect((await answer).rows).toEqual([{ n: 1 }]);
      await client.end();
    });
  });
});

describeWith('nats', 'startNats', () => {
  it('greets with JetStream, after a restart too', async () => {
    const { connect } = await import('node:net');
    const greeting = (port: number) =>
      new Promise<string>((resolve, reject) => {
        const socket = connect(port, '127.0.0.1');
        socket.once('error', reject);
        socket.once('data', (data) => {
          socket.destroy();
          resolve(String(data));
        });
      });
    await withServer(startNats(), async (server) => {
      expect(await greeting(server.port)).toMatch(/^INFO .*"jetstream":true/);
      await server.kill();
      await expect(greeting(server.port)).rejects.toThrow(/ECONNREFUSED/);
      await server.restart();
      expect(await greeting(server.port)).toMatch(/^INFO .*"jetstream":true/);
    });
  });
});

describe('startProcess', () => {
  const file = new URL('./fixtures/support/echo-process.ts', import.meta.url);

  it('runs TypeScript with the public names, passes messages, and ends it by a signal', async () => {
    const child = await startProcess(file, { args: ['one'], env: { WORD: 'two' } });
    expect(child.ready).toEqual({ args: ['one'], word: 'two', library: 'function' });
    const echo = new Promise((resolve) => child.onMessage(resolve));
    child.send({ n: 1 });
    expect(await echo).toEqual({ echo: { n: 1 }, pid: child.pid });
    await child.kill();
    expect(await child.exited).toEqual({ code: null, signal: 'SIGKILL' });
    expect(isAlive(child.pid)).toBe(false);
  });

  it.runIf(hasRedis && process.platform === 'linux')('ends its servers with it, even when it is killed', async () => {
    const parent = await startProcess<{ pid: number }>(new URL('./fixtures/support/server-owner.ts', import.meta.url));
    expect(isAlive(parent.ready.pid)).toBe(true);
    await parent.kill();
    await expect.poll(() => isAlive(parent.ready.pid)).toBe(false);
  });

  it('rejects with the output when the child ends before it is ready', async () => {
    const folder = tempFolder('process');
    const broken = join(folder.path, 'broken.ts');
    writeFileSync(broken, 'console.log("out of order"); process.exit(3);\n');
    await expect(startProcess(broken)).rejects.toThrow(/ended before it was ready:\nout of order/);
    folder.remove();
    expect(existsSync(dirname(broken))).toBe(false);
  });
});

describe('serve and freePort', () => {
  it('serves a handler on the loopback address until it is closed', async () => {
    const served = await serve((_req, res) => res.end('hello'));
    expect(await (await fetch(`${served.url}/`)).text()).toBe('hello');
    await served.close();
    await expect(fetch(served.url)).rejects.toThrow();
  });

  it('chooses ports below the ephemeral range', async () => {
    for (let round = 0; round < 20; round += 1) {
      const port = await freePort();
      expect(port).toBeGreaterThanOrEqual(12_000);
      expect(port).toBeLessThan(22_000);
    }
  });
});

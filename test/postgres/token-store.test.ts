import pg from 'pg';
import { postgresTokenStore } from 'tollkeeper/postgres';
import { tokenStoreContract } from 'tollkeeper/testing';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { describeWith, type RunningServer, startPostgres } from '../support/index.js';
import { issuedApp, pepper, registryApp } from '../tokens/registry-app.js';

describeWith('postgres', 'postgresTokenStore', () => {
  let server: RunningServer;
  let admin: pg.Pool;
  let serial = 0;
  beforeAll(async () => {
    server = await startPostgres();
    admin = new pg.Pool({ connectionString: server.url });
    admin.on('error', () => {});
  });
  afterAll(async () => {
    await admin?.end();
    await server?.stop();
  });

  /** Pools of some processes on one schema of their own. */
  async function pools(count: number) {
    const schema = `tokens_${++serial}`;
    await admin.query(`CREATE SCHEMA ${schema}`);
    const opened = Array.from({ length: count }, () => {
      const pool = new pg.Pool({ connectionString: server.url, options: `-c search_path=${schema}`, max: 4 });
      pool.on('error', () => {});
      return pool;
    });
    return { schema, opened, end: async () => void (await Promise.all(opened.map((pool) => pool.end()))) };
  }

  async function fresh() {
    const { schema, opened, end } = await pools(1);
    const store = postgresTokenStore(opened[0] as pg.Pool);
    await store.migrate();
    return { schema, pool: opened[0] as pg.Pool, store, end };
  }

  it('refuses what is no pool', () => {
    for (const pool of [undefined, null, {}, server.url, pg.Pool]) {
      expect(() => postgresTokenStore(pool as never)).toThrow(/postgresTokenStore: pool must be a Pool of pg/);
    }
  });

  for (const { name, run } of tokenStoreContract(fresh)) it(name, run);

  it('is not ready before migrate(), which several processes may call at once', async () => {
    const { opened, end } = await pools(4);
    const stores = opened.map((pool) => postgresTokenStore(pool));
    await expect(stores[0]?.ready?.()).rejects.toThrow('call migrate() first');
    await Promise.all(stores.map((store) => store.migrate()));
    await stores[3]?.migrate();
    for (const store of stores) await store.ready?.();
    await end();
  });

  it('decides between processes that rotate, rename, move and delete at the same time', async () => {
    const { opened, end } = await pools(2);
    const [one, other] = opened.map((pool) => postgresTokenStore(pool));
    await one?.migrate();
    const here = await issuedApp({ store: one as never });
    const there = registryApp({ store: other as never });
    for (let round = 0; round < 5; round++) {
      const { record } = await here.registry.issueToken({ clientId: here.client.id, scopes: [] });
      const rotated = await Promise.allSettled(
        [here, there, here, there].map(({ registry }) => registry.rotateToken(record.id, { overlapSeconds: 9 })),
      );
      expect(rotated.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
      const named = await Promise.allSettled(
        [here, there].map(({ registry }) => registry.createClient({ name: `same ${round}` })),
      );
      expect(named.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
    }
    await end();
  });

  it('answers 503 while the server is down, and serves again when it is back', async () => {
    const own = await startPostgres({ durable: true });
    const pool = new pg.Pool({ connectionString: own.url, max: 2, connectionTimeoutMillis: 1_000 });
    pool.on('error', () => {});
    const store = postgresTokenStore(pool);
    await store.migrate();
    const { ask, registry, client, token } = await issuedApp({ store });
    const { token: unknown } = await registry.issueToken({ clientId: client.id, scopes: [] });
    expect((await ask(token)).status).toBe(200);
    await own.kill();
    expect((await ask(token)).status).toBe(200);
    const res = await ask(unknown);
    expect([res.status, res.body.code]).toEqual([503, 'verifier_unavailable']);
    expect(JSON.stringify(res.body)).not.toContain(unknown.slice(30, 73));
    await expect(registry.createClient({ name: 'x' })).rejects.toThrow();
    await own.restart();
    expect((await ask(unknown)).status).toBe(200);
    await registry.close();
    await pool.end();
    await own.stop();
  });

  it('holds no raw token and no pepper', async () => {
    const { pool, store, end } = await fresh();
    const { registry, client, token } = await issuedApp({ store });
    const tokens = [token];
    for (let count = 0; count < 10; count++) {
      const issued = await registry.issueToken({ clientId: client.id, scopes: ['scan:read'] });
      tokens.push((await registry.rotateToken(issued.record.id)).token, issued.token);
    }
    let dump = '';
    for (const table of ['tollkeeper_clients', 'tollkeeper_tokens']) {
      dump += JSON.stringify((await pool.query(`SELECT * FROM ${table}`)).rows);
    }
    for (const raw of tokens) {
      expect(dump).toContain(raw.slice(13, 29));
      expect(dump).not.toContain(raw.slice(30, 73));
    }
    for (const form of ['hex', 'base64', 'base64url'] as const) {
      expect(dump).not.toContain(Buffer.from(pepper.secret).toString(form));
    }
    await end();
  });

  it('finds a token by an index, however many there are', async () => {
    const { pool, end } = await fresh();
    await pool.query(`
      INSERT INTO tollkeeper_tokens (id, version, client_id, pepper_id, mac, created_at, updated_at, record)
      SELECT lpad(n::text, 16, 'x'), 1, 'cl_' || n % 5000, 'p1', 'm', 0, 0, '{}' FROM generate_series(1, 20000) n`);
    await pool.query('ANALYZE tollkeeper_tokens');
    const plan = async (text: string, values: unknown[]) =>
      JSON.stringify((await pool.query(`EXPLAIN ${text}`, values)).rows);
    const ids = Array.from({ length: 100 }, (_, n) => String(n).padStart(16, 'x'));
    expect(await plan('SELECT * FROM tollkeeper_tokens WHERE id = ANY($1)', [ids])).toMatch(
      /Index Scan.*tollkeeper_tokens_id_key/,
    );
    const list = 'SELECT * FROM tollkeeper_tokens WHERE client_id = $1 AND position > $2 ORDER BY position LIMIT 9';
    expect(await plan(list, ['cl_7', 0])).toMatch(/Index Scan (using|on) tollkeeper_tokens_client/);
    await end();
  });
});

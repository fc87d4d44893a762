import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import Libsql from 'libsql';
import { type SqliteDatabase, sqliteTokenStore } from 'tollkeeper/sqlite';
import { tokenStoreContract } from 'tollkeeper/testing';
import { describe, expect, it } from 'vitest';
import { tempFolder } from '../support/temp-folder.js';
import { issuedApp, pepper, registryApp } from '../tokens/registry-app.js';

type Database = SqliteDatabase & { close(): void };

/** The drivers that this Node has: libsql everywhere, `node:sqlite` from Node 22.13 on. */
const drivers: [string, (path: string) => Database][] = [['libsql', (path) => new Libsql(path) as never]];
const builtin = process.getBuiltinModule?.('node:sqlite' as never) as
  | { DatabaseSync: new (path: string) => Database }
  | undefined;
if (builtin !== undefined) drivers.push(['node:sqlite', (path) => new builtin.DatabaseSync(path)]);

it('sqliteTokenStore refuses what is no database', () => {
  for (const db of [undefined, null, {}, 'tokens.db', Libsql]) {
    expect(() => sqliteTokenStore(db as never)).toThrow(/sqliteTokenStore: db must be an open SQLite database/);
  }
});

describe.each(drivers)('sqliteTokenStore on %s', (_, open) => {
  async function fresh() {
    const db = open(':memory:');
    const store = sqliteTokenStore(db);
    await store.migrate();
    return { db, store, end: async () => db.close() };
  }

  for (const { name, run } of tokenStoreContract(fresh)) it(name, run);

  it('is not ready before migrate(), which may be repeated', async () => {
    const db = open(':memory:');
    const store = sqliteTokenStore(db);
    await expect(store.ready?.()).rejects.toThrow('call migrate() first');
    await Promise.all([store.migrate(), sqliteTokenStore(db).migrate()]);
    await store.migrate();
    await store.ready?.();
    db.close();
  });

  it('keeps everything through a restart, and its files hold no raw token and no pepper', async () => {
    const folder = tempFolder('tokens');
    const path = join(folder.path, 'tokens.db');
    const db = open(path);
    db.exec('PRAGMA journal_mode = WAL');
    const store = sqliteTokenStore(db);
    await store.migrate();
    const { registry, client, token, ask } = await issuedApp({ store }, { groups: ['3', '1'], description: 'ci' });
    const tokens = [token];
    for (let count = 0; count < 20; count++) {
      const issued = await registry.issueToken({ clientId: client.id, scopes: ['scan:read'] });
      tokens.push((await registry.rotateToken(issued.record.id)).token, issued.token);
    }
    expect((await ask(token)).status).toBe(200);
    await registry.close();
    db.close();
    const files = readdirSync(folder.path).map((name) => readFileSync(join(folder.path, name)));
    const whole = Buffer.concat(files);
    for (const raw of tokens) {
      expect(whole.includes(raw.slice(13, 29))).toBe(true);
      expect(whole.includes(raw.slice(30, 73))).toBe(false);
      expect(whole.includes(raw.slice(-20))).toBe(false);
    }
    const secret = Buffer.from(pepper.secret);
    for (const form of [secret, secret.toString('hex'), secret.toString('base64'), secret.toString('base64url')]) {
      expect(whole.includes(form)).toBe(false);
    }
    const again = open(path);
    const { ask: askAgain, registry: restarted } = registryApp({ store: sqliteTokenStore(again) });
    const res = await askAgain(token);
    expect([res.status, res.body.groups, res.body.plan]).toEqual([200, ['3', '1'], 'pro']);
    expect((await restarted.listTokens({ clientId: client.id })).items).toHaveLength(41);
    again.close();
    folder.remove();
  });

  it('lets one of two processes win, and both wait for each other', async () => {
    const folder = tempFolder('tokens');
    const path = join(folder.path, 'tokens.db');
    const databases = [open(path), open(path)] as const;
    for (const db of databases) db.exec('PRAGMA journal_mode = WAL; PRAGMA busy_timeout = 5000');
    const [one, other] = [sqliteTokenStore(databases[0]), sqliteTokenStore(databases[1])];
    await one.migrate();
    await other.migrate();
    const { registry, record } = await issuedApp({ store: one });
    const second = registryApp({ store: other });
    const outcomes = await Promise.allSettled([
      registry.rotateToken(record.id, { overlapSeconds: 9 }),
      second.registry.rotateToken(record.id, { overlapSeconds: 9 }),
    ]);
    expect(outcomes.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
    for (const db of databases) db.close();
    folder.remove();
  });

  it('finds a token by an index, however many there are', async () => {
    const { db, end } = await fresh();
    const plan = (text: string, ...values: unknown[]) =>
      (db.prepare(`EXPLAIN QUERY PLAN ${text}`).all(...values) as { detail: string }[]).map(({ detail }) => detail);
    expect(
      plan('SELECT * FROM tollkeeper_tokens WHERE id IN (SELECT value FROM json_each(?))', '["a"]').join(),
    ).toMatch(/SEARCH .*tollkeeper_tokens.* USING INDEX .*\(id=\?\)/);
    const list = 'SELECT * FROM tollkeeper_tokens WHERE client_id = ? AND position > ? ORDER BY position LIMIT 9';
    expect(plan(list, 'c', 0)).toEqual([expect.stringMatching(/SEARCH .*tollkeeper_tokens_client/)]);
    await end();
  });
});

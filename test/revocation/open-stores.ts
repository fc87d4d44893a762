import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { Cluster, Redis } from 'ioredis';
import Database from 'libsql';
import pg from 'pg';
import { createClient, createCluster } from 'redis';
import type { RevocationStore } from 'tollkeeper';
import { postgresRevocationStore } from 'tollkeeper/postgres';
import { redisRevocationStore } from 'tollkeeper/redis';
import { type SqliteDatabase, sqliteRevocationStore } from 'tollkeeper/sqlite';
import { tempFolder } from '../support/index.js';

/** Stores on one empty source, each with a client of its own, and what ends them. */
export interface OpenStores {
  readonly stores: [RevocationStore, RevocationStore];
  end(): Promise<void>;
}

export async function ioredisStores(url: string, prefix: string = randomUUID()): Promise<OpenStores> {
  const clients = [new Redis(url), new Redis(url)] as const;
  for (const client of clients) client.on('error', () => {});
  return {
    stores: [redisRevocationStore(clients[0], { prefix }), redisRevocationStore(clients[1], { prefix })],
    async end() {
      for (const client of clients) client.disconnect();
    },
  };
}

export async function nodeRedisStores(url: string, prefix: string = randomUUID()): Promise<OpenStores> {
  const clients = [createClient({ url }), createClient({ url })] as const;
  for (const client of clients) {
    client.on('error', () => {});
    await client.connect();
  }
  return {
    stores: [redisRevocationStore(clients[0], { prefix }), redisRevocationStore(clients[1], { prefix })],
    async end() {
      for (const client of clients) client.destroy();
    },
  };
}

type Nodes = readonly { readonly host: string; readonly port: number }[];

export async function ioredisClusterStores(nodes: Nodes, prefix: string = randomUUID()): Promise<OpenStores> {
  const clients = [new Cluster([...nodes]), new Cluster([...nodes])] as const;
  for (const client of clients) client.on('error', () => {});
  return {
    stores: [redisRevocationStore(clients[0], { prefix }), redisRevocationStore(clients[1], { prefix })],
    async end() {
      for (const client of clients) client.disconnect();
    },
  };
}

export async function nodeRedisClusterStores(nodes: Nodes, prefix: string = randomUUID()): Promise<OpenStores> {
  const rootNodes = nodes.map(({ host, port }) => ({ url: `redis://${host}:${port}` }));
  const clients = [createCluster({ rootNodes }), createCluster({ rootNodes })] as const;
  for (const client of clients) {
    client.on('error', () => {});
    await client.connect();
  }
  return {
    stores: [redisRevocationStore(clients[0], { prefix }), redisRevocationStore(clients[1], { prefix })],
    async end() {
      for (const client of clients) client.destroy();
    },
  };
}

export async function postgresStores(
  url: string,
  schema = `s${randomUUID().replaceAll('-', '')}`,
): Promise<OpenStores> {
  const pools = [0, 1].map(() => new pg.Pool({ connectionString: url, options: `-c search_path=${schema}`, max: 5 }));
  for (const pool of pools) pool.on('error', () => {});
  const [one, other] = pools as [pg.Pool, pg.Pool];
  await one.query(`CREATE SCHEMA IF NOT EXISTS ${schema}`);
  const stores: OpenStores['stores'] = [postgresRevocationStore(one), postgresRevocationStore(other)];
  // Every replica may migrate as it starts.
  await Promise.all([postgresRevocationStore(one).migrate(), postgresRevocationStore(other).migrate()]);
  return {
    stores,
    async end() {
      await Promise.all(pools.map((pool) => pool.end()));
    },
  };
}

export async function sqliteStores(open: (path: string) => SqliteDatabase & { close(): void }): Promise<OpenStores> {
  const folder = tempFolder('sqlite');
  const databases = [0, 1].map(() => {
    const db = open(join(folder.path, 'revocations.db'));
    db.exec('PRAGMA journal_mode = WAL; PRAGMA busy_timeout = 5000; PRAGMA synchronous = OFF');
    return db;
  });
  const [one, other] = databases.map((db) => sqliteRevocationStore(db));
  await one?.migrate();
  await other?.migrate();
  return {
    stores: [one, other] as OpenStores['stores'],
    async end() {
      for (const db of databases) db.close();
      folder.remove();
    },
  };
}

export function openLibsql(path: string): SqliteDatabase & { close(): void } {
  return new Database(path) as unknown as SqliteDatabase & { close(): void };
}

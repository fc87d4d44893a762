import express from 'express';
import { Redis } from 'ioredis';
import pg from 'pg';
import {
  authenticate,
  createRevocations,
  createTokenRegistry,
  opaqueTokenVerifier,
  requireScope,
  staticTokenVerifier,
} from 'tollkeeper';
import { adminRouter } from 'tollkeeper/admin';
import { postgresTokenStore } from 'tollkeeper/postgres';
import { redisRevocationStore } from 'tollkeeper/redis';
import { serve } from '../support/serve.js';

/** One replica of an API, as a process of its own: tokens in PostgreSQL, revocations through Redis. */
export interface TokenReplicaSettings {
  readonly postgres: string;
  readonly redis: string;
  readonly pepper: string;
  readonly admin: string;
  readonly hints: boolean;
  readonly pollSeconds: number;
  readonly maxStalenessSeconds: number;
  readonly cacheSeconds: number;
}

const settings = JSON.parse(process.argv[2] as string) as TokenReplicaSettings;
const pool = new pg.Pool({ connectionString: settings.postgres, max: 4, connectionTimeoutMillis: 2_000 });
pool.on('error', () => {});
const redis = new Redis(settings.redis);
redis.on('error', () => {});
const { append, read, subscribe } = redisRevocationStore(redis);
const revocations = createRevocations({
  store: settings.hints && subscribe !== undefined ? { append, read, subscribe } : { append, read },
  pollSeconds: settings.pollSeconds,
  maxStalenessSeconds: settings.maxStalenessSeconds,
});
const registry = createTokenRegistry({
  store: postgresTokenStore(pool),
  peppers: { current: { id: 'p1', secret: settings.pepper } },
  prefix: 'acme',
  revocations,
});
await registry.ready();

const root = { subject: { kind: 'user', id: 'root' }, authId: 'root', scopes: ['clients:admin'] } as const;
const admins = staticTokenVerifier({ tokens: [{ token: settings.admin, identity: root }] });
const app = express();
app.use(
  '/admin',
  adminRouter({ registry, guard: [authenticate({ verifiers: [admins] }), requireScope('clients:admin')] }),
);
app.get(
  '/',
  authenticate({ verifiers: [opaqueTokenVerifier({ registry })], cache: { ttlSeconds: settings.cacheSeconds } }),
  ({ identity }, res) => {
    res.json({ scopes: [...(identity?.scopes ?? [])], groups: identity?.groups, plan: identity?.plan });
  },
);
const { url } = await serve(app);
console.log(`ready ${JSON.stringify({ url })}`);

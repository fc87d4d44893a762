// An API for scan results. Admins manage API clients (a customer, an instance) and tokens under them; a token has scopes and
// ranked clearance groups, of which the best one that has an item decides. What admins change holds on the next request, in
// every replica: tokens live in PostgreSQL, and changes are told through Redis.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import express from 'express';
import { Redis } from 'ioredis';
import pg from 'pg';
import {
  authenticate,
  createPipeline,
  createQuota,
  createRevocations,
  createTokenRegistry,
  enforceQuota,
  identityOf,
  meter,
  opaqueTokenVerifier,
  requireScope,
  shutdown,
  staticTokenVerifier,
} from 'tollkeeper';
import { adminRouter } from 'tollkeeper/admin';
import { postgresLedger, postgresTokenStore } from 'tollkeeper/postgres';
import { redisQuotaStore, redisRevocationStore } from 'tollkeeper/redis';

export interface DosSettings {
  readonly databaseUrl: string;
  readonly redisUrl: string;
  /** The secret of the HMACs, as hexadecimal digits: at least 32 bytes. A short one or a placeholder does not start. */
  readonly pepper: string;
  readonly adminToken: string;
  readonly spoolDirectory: string;
}

/** Which group has cleared what: item → group → conclusion. */
const CLEARANCES: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  'pkg:a': { '1': 'MIT', '2': 'Apache-2.0', '3': 'BSD-3-Clause' },
  'pkg:b': { '2': 'GPL-2.0-only' },
};

export async function startDos({ databaseUrl, redisUrl, pepper, adminToken, spoolDirectory }: DosSettings) {
  const redis = new Redis(redisUrl);
  const pool = new pg.Pool({ connectionString: databaseUrl, max: 5 });
  for (const driver of [redis, pool]) driver.on('error', () => {});

  const store = postgresTokenStore(pool);
  const ledger = postgresLedger(pool);
  await store.migrate();
  await ledger.migrate();
  const revocations = createRevocations({ store: redisRevocationStore(redis), pollSeconds: 1 });
  const registry = createTokenRegistry({
    store,
    revocations,
    prefix: 'dos',
    peppers: { current: { id: '2026-11', secret: Buffer.from(pepper, 'hex') } },
  });
  const pipeline = createPipeline({ sinks: [ledger], spool: { directory: spoolDirectory }, source: 'dos' });
  const quota = createQuota({
    store: redisQuotaStore(redis, { deadlineSeconds: 1 }),
    plans: {
      small: [
        { name: 'per-client', per: 'client', unit: 'requests', limit: 5, window: { kind: 'gcra', periodSeconds: 60 } },
      ],
      large: [
        {
          name: 'per-client',
          per: 'client',
          unit: 'requests',
          limit: 100_000,
          window: { kind: 'gcra', periodSeconds: 60 },
        },
      ],
    },
    defaultPlan: 'large',
  });

  const app = express();
  const admin = { subject: { kind: 'user', id: 'admin' }, authId: 'admin', scopes: ['clients:admin'] } as const;
  // Both kinds of caller come through one chain: a client's token is known at the admin API, and may not use it.
  const authenticated = authenticate({
    verifiers: [
      opaqueTokenVerifier({ registry }),
      staticTokenVerifier({ tokens: [{ token: adminToken, identity: admin }] }),
    ],
  });
  app.use('/admin', adminRouter({ registry, ledger, guard: [authenticated, requireScope('clients:admin')] }));

  const api = express.Router();
  api.use(authenticated);
  const counted = (type: string) => [
    enforceQuota({ quota }),
    meter({ pipeline, type, require: ['authId', 'clientId'] }),
  ];
  api.get('/scans/:item', requireScope('scan:read'), ...counted('scan'), (req, res) => {
    res.json({ item: req.params.item, files: 12 });
  });
  api.get(
    '/clearances/:item',
    requireScope('clearance:read'),
    ...counted('clearance'),
    (req: express.Request, res: express.Response) => {
      const cleared = CLEARANCES[req.params.item as string] ?? {};
      const { groups } = identityOf(req);
      // The rank is the order of the groups: the best one that has the item wins.
      const group = groups.find((each) => Object.hasOwn(cleared, each));
      res.json({ groups, group: group ?? null, conclusion: group === undefined ? null : cleared[group] });
    },
  );
  app.use('/v1', api);

  await Promise.all([registry.ready(), revocations.ready(), pipeline.ready()]);
  const server = createServer(app);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const stop = async () => {
    await shutdown({ server, parts: [pipeline, quota, registry, revocations], drainSeconds: 2 });
    redis.disconnect();
    await pool.end();
  };
  return { url, stop };
}

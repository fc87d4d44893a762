// A hosted verdict API: one read-only route, which knows each caller, holds each to a plan and accounts for each request.
// Replicas share limits and revocations through Redis, and the books through PostgreSQL.
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
  enforceQuota,
  identityOf,
  jwtVerifier,
  limitAddress,
  meter,
  requireSubject,
  shutdown,
  staticTokenVerifier,
} from 'tollkeeper';
import { postgresLedger } from 'tollkeeper/postgres';
import { redisQuotaStore, redisRevocationStore } from 'tollkeeper/redis';

export const AUDIENCE = 'https://api.openscore.example';

export interface OpenScoreSettings {
  readonly databaseUrl: string;
  readonly redisUrl: string;
  /** The platform that signs the users' tokens: `sub`, `org`, `plan`, `exp`. */
  readonly platform: { readonly issuer: string; readonly jwksUri: string };
  /** The one shared token of before: valid until everybody has moved. */
  readonly sharedToken: string;
  readonly spoolDirectory: string;
}

export async function startOpenScore(settings: OpenScoreSettings) {
  const { platform, sharedToken } = settings;
  const redis = new Redis(settings.redisUrl);
  const pool = new pg.Pool({ connectionString: settings.databaseUrl, max: 4 });
  // Outages are answered by the parts; the drivers only must not end the process.
  for (const driver of [redis, pool]) driver.on('error', () => {});

  const revocations = createRevocations({ store: redisRevocationStore(redis), pollSeconds: 1 });
  const store = redisQuotaStore(redis, { deadlineSeconds: 1 });
  const quota = createQuota({
    store,
    plans: {
      free: [
        { name: 'per-minute', per: 'subject', unit: 'requests', limit: 3, window: { kind: 'gcra', periodSeconds: 60 } },
      ],
      pro: [
        {
          name: 'per-minute',
          per: 'subject',
          unit: 'requests',
          limit: 1_000,
          window: { kind: 'gcra', periodSeconds: 60 },
        },
      ],
    },
    defaultPlan: 'free',
  });
  const ledger = postgresLedger(pool);
  await ledger.migrate();
  const pipeline = createPipeline({
    sinks: [ledger],
    spool: { directory: settings.spoolDirectory },
    source: 'open-score',
  });

  const app = express();
  app.use(
    // Guessing is bounded by address before anybody is known; X-Forwarded-For counts for nothing, since no proxy is named.
    limitAddress({ store, limit: 200, periodSeconds: 60 }),
    authenticate({
      realm: 'open-score',
      revocations,
      verifiers: [
        jwtVerifier({
          issuer: platform.issuer,
          audience: AUDIENCE,
          algorithms: ['ES256'],
          keys: { jwksUri: platform.jwksUri },
        }),
        staticTokenVerifier({
          tokens: [
            {
              token: sharedToken,
              identity: { subject: { kind: 'service', id: 'shared' }, authId: 'shared', plan: 'pro' },
            },
          ],
        }),
      ],
    }),
  );
  app.post('/v0/verdict', enforceQuota({ quota }), meter({ pipeline, type: 'verdict' }), (req, res) => {
    const { subject, tenant } = identityOf(req);
    res.json({ verdict: 'plausible', for: subject.id, organization: tenant });
  });
  app.get('/v0/quota', quota.handler());
  // Room for what comes: an organization's admins see its usage.
  app.get('/v0/usage', requireSubject('user'), async (req, res) => {
    const [to, from] = [new Date(Date.now() + 1_000), new Date(Date.now() - 86_400_000)];
    const filter = { tenant: identityOf(req).tenant as string };
    const { rows } = await ledger.usage({ from, to, groupBy: ['subject'], filter });
    res.json(rows.map(({ key, events }) => ({ subject: key.subject, requests: events })));
  });

  await Promise.all([revocations.ready(), pipeline.ready()]);
  const server = createServer(app);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const stop = async () => {
    await shutdown({ server, parts: [pipeline, quota, revocations], drainSeconds: 2 });
    redis.disconnect();
    await pool.end();
  };
  return { url, revocations, ledger, stop };
}

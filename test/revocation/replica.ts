import express from 'express';
import { Redis } from 'ioredis';
import pg from 'pg';
import { authenticate, createRevocations, jwtVerifier, type RevocationStore } from 'tollkeeper';
import { postgresRevocationStore } from 'tollkeeper/postgres';
import { redisRevocationStore } from 'tollkeeper/redis';
import { serve } from '../support/serve.js';

/** One replica of an API, as a process of its own. */
export interface ReplicaSettings {
  readonly url: string;
  readonly secret: string;
  readonly hints: boolean;
  readonly pollSeconds: number;
  readonly maxStalenessSeconds: number;
}

const settings = JSON.parse(process.argv[2] as string) as ReplicaSettings;

function openStore(): RevocationStore {
  if (settings.url.startsWith('redis:')) {
    const redis = new Redis(settings.url);
    redis.on('error', () => {});
    return redisRevocationStore(redis);
  }
  const pool = new pg.Pool({ connectionString: settings.url });
  pool.on('error', () => {});
  return postgresRevocationStore(pool);
}

const { append, read, subscribe } = openStore();
const { pollSeconds, maxStalenessSeconds } = settings;
const revocations = createRevocations({
  store: settings.hints && subscribe !== undefined ? { append, read, subscribe } : { append, read },
  pollSeconds,
  maxStalenessSeconds,
});
const verifier = jwtVerifier({
  issuer: 'https://idp.example',
  audience: 'https://api.example',
  algorithms: ['HS256'],
  keys: { secret: settings.secret },
});

const app = express();
app.post('/revoke', express.json(), (req, res) => {
  revocations.revoke(req.body).then(
    () => res.sendStatus(204),
    () => res.sendStatus(500),
  );
});
app.get('/', authenticate({ verifiers: [verifier], revocations }), (req, res) => {
  res.json(req.identity?.tokenId);
});
const { url } = await serve(app);
console.log(`ready ${JSON.stringify({ url })}`);

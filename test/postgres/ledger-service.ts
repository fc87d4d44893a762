/** A metered service in a process of its own, whose ledger is in PostgreSQL: for tests that kill both. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import pg from 'pg';
import { createPipeline, meter, usageOf } from 'tollkeeper';
import { postgresLedger } from 'tollkeeper/postgres';
import { asIdentity } from 'tollkeeper/testing';

const { DATABASE_URL, SPOOL = '' } = process.env;
const pool = new pg.Pool({ connectionString: DATABASE_URL, max: 4, connectionTimeoutMillis: 2_000 });
pool.on('error', () => {});
const pipeline = createPipeline({ sinks: [postgresLedger(pool)], spool: { directory: SPOOL }, source: 'service' });
await pipeline.ready();

const authenticated = asIdentity({ subject: { kind: 'service', id: 's1' }, authId: 'key-1', tenant: 'acme' });
const metered = meter({ pipeline, type: 'request', durability: 'intent' });
const server = createServer((req, res) => {
  authenticated(req, res, () =>
    metered(req, res, () => {
      usageOf(req).add('units', 3);
      res.end(usageOf(req).eventId);
    }),
  );
});
await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));

process.once('message', async () => {
  server.close();
  server.closeAllConnections();
  const result = await pipeline.close({ deliverSeconds: 60 });
  await pool.end();
  process.send?.(result, () => process.exit(0));
});

console.log(`ready ${JSON.stringify({ port: (server.address() as AddressInfo).port })}`);

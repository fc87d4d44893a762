// A metered service in a process of its own, for tests that kill it. Its ledger is a SQLite file.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import Database from 'libsql';
import { createPipeline, meter, type Sink, usageOf } from 'tollkeeper';
import { sqliteLedger } from 'tollkeeper/sqlite';
import { asIdentity } from 'tollkeeper/testing';

export interface ServerSettings {
  readonly directory: string;
  readonly ledger: string;
  readonly durability: 'intent' | 'completion';
  readonly maxBytes?: number;
  /** The ledger is down: nothing is delivered. */
  readonly ledgerDown?: boolean;
}

export interface ServerReady {
  readonly port: number;
  readonly source: string;
}

const settings = JSON.parse(process.argv[2] ?? '') as ServerSettings;

const db = new Database(settings.ledger);
db.exec('PRAGMA journal_mode = WAL; PRAGMA busy_timeout = 10000');
const ledger = sqliteLedger(db);
await ledger.migrate();
const sink: Sink =
  settings.ledgerDown === true
    ? {
        name: ledger.name,
        write: () => Promise.reject(new Error('the ledger is down')),
      }
    : ledger;

const { directory, maxBytes } = settings;
const pipeline = createPipeline({
  sinks: [sink],
  spool: maxBytes === undefined ? { directory } : { directory, maxBytes },
  source: 'service',
});
await pipeline.ready();

const authenticated = asIdentity({ subject: { kind: 'service', id: 's1' }, authId: 'key-1' });
const metered = meter({ pipeline, type: 'request', durability: settings.durability });
const server = createServer((req: IncomingMessage, res: ServerResponse) => {
  authenticated(req, res, () =>
    metered(req, res, () => {
      usageOf(req).add('units', 3);
      const id = usageOf(req).eventId;
      // Some answers take longer than a group of the spool.
      if (req.url === '/slow') setTimeout(() => res.end(id), 10);
      else res.end(id);
    }),
  );
});
await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));

process.on('message', async (message: { ask: 'stats' | 'close' | 'flush' }) => {
  if (message.ask === 'close') {
    server.close();
    server.closeAllConnections();
    const result = await pipeline.close({ deliverSeconds: 30 });
    process.send?.({ answer: message.ask, ...result }, () => process.exit(0));
    return;
  }
  if (message.ask === 'flush') await pipeline.flush();
  process.send?.({ answer: message.ask, ...pipeline.stats() });
});

console.log(`ready ${JSON.stringify({ port: (server.address() as AddressInfo).port })}`);

// A metered service in a process of its own, whose sink hangs or writes a file. It ends in order at SIGTERM.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { createPipeline, jsonlSink, meter, type Sink, shutdown, usageOf } from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';

export interface TerminatedSettings {
  readonly directory: string;
  readonly file: string;
  readonly hangs: boolean;
}

const { directory, file, hangs } = JSON.parse(process.argv[2] ?? '') as TerminatedSettings;
const taking = jsonlSink(file);
const sink: Sink = hangs ? { name: taking.name, write: () => new Promise(() => {}) } : taking;
const pipeline = createPipeline({ sinks: [sink], spool: { directory }, source: 'service' });
await pipeline.ready();
const authenticated = asIdentity({ subject: { kind: 'service', id: 's1' }, authId: 'key-1' });
const metered = meter({ pipeline, type: 'stream' });
const server = createServer((req: IncomingMessage, res: ServerResponse) => {
  authenticated(req, res, () =>
    metered(req, res, () => {
      usageOf(req).add('output_tokens', 7);
      // A stream without an end.
      res.write(usageOf(req).eventId);
    }),
  );
});
await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
process.once('SIGTERM', () => {
  shutdown({ server, parts: [pipeline], drainSeconds: 0.5, deliverSeconds: 0.5 }).then(({ undelivered }) => {
    console.log(`undelivered ${undelivered}`);
    process.exit(0);
  });
});
console.log(`ready ${JSON.stringify({ port: (server.address() as AddressInfo).port })}`);

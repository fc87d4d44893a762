import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import Libsql from 'libsql';
import { type CloudEvent, cloudEventsSink, createPipeline, type UsageEvent } from 'tollkeeper';
import { type SqliteDatabase, sqliteLedger } from 'tollkeeper/sqlite';
import { expect, it } from 'vitest';
import { tempFolder } from '../support/index.js';

const EVENTS = 50;
const LOST = 3;

it('an acknowledgement that is lost after the commit is a resend, and the ledger counts nothing twice', async () => {
  const folder = tempFolder('lost-acknowledgement');
  const db = new Libsql(':memory:') as unknown as SqliteDatabase & { close(): void };
  const ledger = sqliteLedger(db);
  await ledger.migrate();
  let requests = 0;
  let received = 0;
  const collector = createServer(async (req, res) => {
    const body = JSON.parse(Buffer.concat(await req.toArray()).toString()) as CloudEvent[];
    const events = body.map(({ id, source, type, time, data }) => ({ ...data, id, source, type, time }) as UsageEvent);
    await ledger.write(events, new AbortController().signal);
    requests += 1;
    received += events.length;
    // Committed, and the sender never hears of it.
    if (requests <= LOST) req.socket.destroy();
    else res.writeHead(204).end();
  });
  await new Promise<void>((resolve) => collector.listen(0, '127.0.0.1', resolve));
  const { port } = collector.address() as AddressInfo;
  const pipeline = createPipeline({
    sinks: [cloudEventsSink({ url: `http://127.0.0.1:${port}/`, mode: 'batch', limits: { lingerSeconds: 0 } })],
    spool: { directory: folder.path },
    source: 'sender',
    // The shortest of waits between two attempts.
    random: (bytes) => new Uint8Array(bytes),
  });
  for (let index = 0; index < EVENTS; index++) {
    await pipeline.record({ type: 'job', authId: 'key', quantities: { rows: index } });
  }
  await pipeline.flush();
  await pipeline.close();
  await new Promise((resolve) => collector.close(resolve));

  expect(requests).toBeGreaterThan(LOST);
  expect(received).toBeGreaterThan(EVENTS);
  const from = new Date(Date.now() - 3_600_000);
  const to = new Date(Date.now() + 3_600_000);
  const [row] = (await ledger.usage({ from, to, groupBy: ['authId'] })).rows;
  expect(row).toMatchObject({ events: EVENTS, quantities: { rows: BigInt((EVENTS * (EVENTS - 1)) / 2) } });
  const [source] = await ledger.audit();
  expect(source).toMatchObject({ count: EVENTS, missing: [] });
  expect(await ledger.verify()).toEqual([]);
  db.close();
  folder.remove();
});

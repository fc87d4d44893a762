import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createPipeline, isAccessError, type Pipeline } from 'tollkeeper';
import { cpuOfRequests, memoryOverEvents } from './metered-requests.js';
import { argument, environment, printTable, writeResults } from './report.js';

/**
 * What metering itself adds to a request, and its memory; what the spool takes in, and how long it holds while no sink takes
 * anything; then what metering adds over HTTP, beside an analytics middleware (`bench/http.ts` with its own arguments).
 */
const events = argument('events', 50_000);
const maxMebibytes = argument('max-mebibytes', 16);
const requests = argument('requests', 100_000);
const requestRounds = argument('request-rounds', 3);
const memoryEvents = argument('memory-events', 5_000_000);
const folder = mkdtempSync(join(tmpdir(), 'tollkeeper-bench-metering-'));
const draft = {
  type: 'report',
  authId: 'key-1',
  subject: { kind: 'user', id: 'user-1' },
  issuer: 'https://idp.example',
  verifier: 'jwt',
  tenant: 'tenant-1',
  clientId: 'client-1',
  plan: 'pro',
  quantities: { requests: 1, output_tokens: 512 },
  dimensions: { model: 'm-7b', padding: 'x'.repeat(180) },
} as never;

async function record(pipeline: Pipeline, count: number): Promise<void> {
  for (let index = 0; index < count; index += 500) {
    await Promise.all(Array.from({ length: Math.min(500, count - index) }, () => pipeline.record(draft)));
  }
}

console.log(environment());
const added = await cpuOfRequests(folder, requestRounds, requests);
printTable(added);
const memory = await memoryOverEvents(folder, memoryEvents);
printTable(memory);

const rows: Record<string, unknown>[] = [];
const taking = createPipeline({
  sinks: [{ name: 'null', limits: { maxEvents: 2_000 }, async write() {} }],
  source: 'bench',
  spool: { directory: join(folder, 'taking') },
});
await taking.ready();
await record(taking, Math.min(events, 2_000));
const before = process.cpuUsage();
const started = performance.now();
await record(taking, events);
const seconds = (performance.now() - started) / 1_000;
const { user, system } = process.cpuUsage(before);
rows.push({
  what: 'durable events taken in, 500 at once',
  result: `${Math.round(events / seconds).toLocaleString('en')} events/s`,
});
rows.push({ what: 'CPU of one of them, delivery included', result: `${((user + system) / events).toFixed(1)} µs` });
await taking.close();

// Nothing is delivered: the spool fills until it refuses, before any handler would run.
const holding = createPipeline({
  sinks: [{ name: 'down', write: () => Promise.reject(new Error('down')) }],
  source: 'bench',
  spool: { directory: join(folder, 'holding'), maxBytes: maxMebibytes * 1024 * 1024 },
});
await holding.ready();
let taken = 0;
for (let refused = false; !refused; ) {
  await Promise.all(
    Array.from({ length: 200 }, () =>
      holding.record(draft).then(
        () => {
          taken += 1;
        },
        (error) => {
          if (!isAccessError(error)) throw error;
          refused = true;
        },
      ),
    ),
  );
}
const { bytes } = holding.stats();
rows.push({
  what: `events kept before 503 at maxBytes of ${maxMebibytes} MiB`,
  result: `${taken.toLocaleString('en')} (${Math.round(bytes / taken)} bytes each)`,
});
rows.push({ what: 'which is, at 100 events/s', result: `${(taken / 100 / 60).toFixed(1)} minutes of outage` });
await holding.close({ deliverSeconds: 0.1 });
rmSync(folder, { recursive: true, force: true });
printTable(rows);
writeResults('metering', { added, memory, rows });

if (!process.argv.includes('--group=metering')) process.argv.push('--group=metering');
await import('./http.js');

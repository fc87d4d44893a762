import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer, get, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { createPipeline, memorySink, meter, type Sink, type UsageEvent } from 'tollkeeper';
import { asIdentity, manualClock } from 'tollkeeper/testing';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { startProcess, tempFolder } from '../support/index.js';
import type { TerminatedSettings } from './terminated-server.js';

const MIB = 1024 * 1024;

let folder: ReturnType<typeof tempFolder>;
beforeEach(() => {
  folder = tempFolder('outage');
});
afterEach(() => folder.remove());

/** Bytes that are in use after collections, buffers included: those are freed some time after they are found. */
async function memoryInUse(): Promise<number> {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  let least = Number.POSITIVE_INFINITY;
  for (let time = 0; time < 5; time++) {
    collect();
    await new Promise((resolve) => setTimeout(resolve, 50));
    const { heapUsed, external } = process.memoryUsage();
    least = Math.min(least, heapUsed + external);
  }
  return least;
}

it('an hour without its sink costs disk and no memory; then all is delivered, in order', async () => {
  const PER_SECOND = 20;
  const SECONDS = 3_600;
  const STEP_SECONDS = 20;
  const clock = manualClock();
  let isDown = true;
  let last = 0;
  let outOfOrder = 0;
  const ids = new Set<string>();
  const sink: Sink = {
    name: 'ledger',
    limits: { maxEvents: 1_000, lingerSeconds: 0 },
    async write(events) {
      if (isDown) throw new Error('down');
      for (const { id, seq } of events) {
        if (seq !== last + 1) outOfOrder++;
        last = seq;
        ids.add(id);
      }
    },
  };
  // Short waits: the hour is the clock's, the backoff would be the machine's.
  const random = (bytes: number) => new Uint8Array(bytes);
  const pipeline = createPipeline({ sinks: [sink], spool: { directory: folder.path }, source: 's', clock, random });
  await pipeline.ready();
  const events = PER_SECOND * STEP_SECONDS;
  const filling = 'x'.repeat(300);
  let early = 0;
  for (let second = 0; second < SECONDS; second += STEP_SECONDS) {
    await Promise.all(
      Array.from({ length: events }, () =>
        pipeline.record({ type: 'job', authId: 'key-1', quantities: { units: 1 }, dimensions: { filling } } as never),
      ),
    );
    clock.advance(STEP_SECONDS);
    // From the 2 MiB on that stay in memory for sinks that keep up.
    if (second === SECONDS / 10) early = await memoryInUse();
  }
  const grown = (await memoryInUse()) - early;
  console.log(`an hour's outage: memory grew by ${(grown / MIB).toFixed(1)} MiB`);
  const { bytes, oldestAgeSeconds, sinks } = pipeline.stats();
  const total = PER_SECOND * SECONDS;
  expect(sinks.ledger?.backlog).toBe(total);
  expect(oldestAgeSeconds).toBe(SECONDS);
  expect(bytes).toBeGreaterThan(32 * MIB);
  expect(grown).toBeLessThan(8 * MIB);
  isDown = false;
  await pipeline.flush();
  expect([ids.size, last, outOfOrder]).toEqual([total, total, 0]);
  expect(await pipeline.close()).toEqual({ undelivered: 0 });
}, 180_000);

it('a wall clock that jumps an hour forth and back leaves ids unique, the order by seq, and durations real', async () => {
  let jumpedMs = 0;
  const clock = { now: () => Date.now() + jumpedMs, monotonic: () => performance.now() };
  const sink = memorySink();
  const pipeline = createPipeline({ sinks: [sink], spool: { directory: folder.path }, source: 's', clock });
  const authenticated = asIdentity({ subject: { kind: 'user', id: 'u' }, authId: 'k' });
  const metered = meter({ pipeline, type: 'call' });
  const server = createServer((req, res) =>
    authenticated(req, res, () =>
      metered(req, res, () => {
        // In the middle of each request.
        jumpedMs = req.url === '/forth' ? 3_600_000 : -3_600_000;
        res.end();
      }),
    ),
  ).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const paths = ['/forth', '/back', '/back', '/forth', '/forth', '/back'];
  for (const path of paths) expect((await fetch(`http://127.0.0.1:${port}${path}`)).status).toBe(200);
  await vi.waitFor(() => expect(pipeline.stats().written).toBe(paths.length), { timeout: 20_000 });
  await pipeline.flush();
  expect(new Set(sink.events.map(({ id }) => id)).size).toBe(paths.length);
  expect(sink.events.map(({ seq }) => seq)).toEqual(paths.map((_, index) => index + 1));
  const times = sink.events.map(({ time }) => Date.parse(time));
  expect(times[2]).toBeLessThan((times[1] as number) - 3_600_000);
  for (const { durationMs } of sink.events) {
    expect(durationMs).toBeGreaterThanOrEqual(0);
    expect(durationMs).toBeLessThan(600_000);
  }
  server.close();
  server.closeAllConnections();
  await pipeline.close();
});

it('SIGTERM in the middle of a stream, with a sink that hangs: it exits by its deadlines, and the event is replayed', async () => {
  const file = join(folder.path, 'events.jsonl');
  const start = (hangs: boolean) => {
    const settings: TerminatedSettings = { directory: join(folder.path, 'spool'), file, hangs };
    return startProcess<{ port: number }>(new URL('./terminated-server.ts', import.meta.url), {
      args: [JSON.stringify(settings)],
    });
  };
  const first = await start(true);
  const [response] = (await once(
    get({ host: '127.0.0.1', port: first.ready.port }).on('error', () => {}),
    'response',
  )) as [IncomingMessage];
  response.on('error', () => {});
  const [id] = (await once(response, 'data')) as [Buffer];
  // Rejects after the test's time if it hangs: half a second each to drain and to deliver, and a few to close.
  await first.kill('SIGTERM');
  expect(await first.exited).toEqual({ code: 0, signal: null });
  expect(first.output()).toContain('undelivered 1');
  const second = await start(false);
  const lines = async () => (await readFile(file, 'utf8').catch(() => '')).split('\n').filter((line) => line !== '');
  await vi.waitFor(async () => expect(await lines()).toHaveLength(1), { timeout: 30_000, interval: 50 });
  await second.kill('SIGTERM');
  const events = (await lines()).map((line) => JSON.parse(line) as UsageEvent);
  expect(events).toHaveLength(1);
  expect(events[0]).toMatchObject({
    id: id.toString(),
    outcome: 'server_error',
    status: 200,
    billable: true,
    quantities: { output_tokens: { value: 7, basis: 'reported' } },
  });
}, 120_000);

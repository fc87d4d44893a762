import cluster from 'node:cluster';
import { mkdir, readdir } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { join } from 'node:path';
import express from 'express';
import {
  createPipeline,
  type MeterOptions,
  memorySink,
  meter,
  type Pipeline,
  type Sink,
  type SpoolOptions,
} from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type Served, serve, startProcess, tempFolder } from '../support/index.js';
import { failing, interceptFiles } from './disk-faults.js';
import { describeWithSmallDisk, type SmallDisk, smallDisk } from './small-disk.js';
import { until } from './spool-fixture.js';

let folder: ReturnType<typeof tempFolder>;
const cleanups: (() => unknown)[] = [];
beforeEach(() => {
  folder = tempFolder('spool-http');
});
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  folder.remove();
});

interface Service extends Served {
  readonly pipeline: Pipeline;
  /** Paths of the requests whose handler ran. */
  readonly handled: string[];
  /** Ends the answers that wait on `/slow`. */
  finish(): void;
}

async function startService(
  sinks: readonly Sink[],
  spool: SpoolOptions,
  options: Partial<MeterOptions> = {},
): Promise<Service> {
  const pipeline = createPipeline({ sinks, spool, source: 'service' });
  const handled: string[] = [];
  const open: ServerResponse[] = [];
  const app = express();
  app.use(
    asIdentity({ subject: { kind: 'service', id: 's1' }, authId: 'key-1' }),
    meter({ pipeline, type: 'request', ...options }),
  );
  app.use((req: IncomingMessage, res: ServerResponse) => {
    handled.push(req.url ?? '');
    if (req.url === '/slow') open.push(res);
    else res.end('served');
  });
  const served = await serve(app);
  const finish = (): void => {
    for (const res of open.splice(0)) res.end('served');
  };
  cleanups.push(() => pipeline.close({ deliverSeconds: 0.5 }), served.close);
  return { ...served, pipeline, handled, finish };
}

async function get(service: Served, path = '/'): Promise<{ status: number; retryAfter: string | null; code?: string }> {
  const response = await fetch(service.url + path);
  const text = await response.text();
  const code = response.status === 200 ? {} : { code: (JSON.parse(text) as { code: string }).code };
  return { status: response.status, retryAfter: response.headers.get('retry-after'), ...code };
}

const REFUSED = { status: 503, retryAfter: '5', code: 'metering_unavailable' };
const SERVED = { status: 200, retryAfter: null };

const down: Sink = { name: 'ledger', write: () => Promise.reject(new Error('down')) };

describe('createPipeline with a spool', () => {
  test.each([
    ['no object', 'memroy', "spool must be { directory } or 'memory'"],
    ['no directory', {}, 'spool.directory must be a string'],
    ['an unknown option', { directory: 'x', fsnyc: 'os' }, 'unknown option "spool.fsnyc" (did you mean "fsync"?)'],
    ['an unknown policy', { directory: 'x', fsync: 'never' }, 'spool.fsync must be one of'],
    ['less than 1 MiB', { directory: 'x', maxBytes: 1000 }, 'spool.maxBytes must be an integer from 1048576'],
  ])('refuses %s', (_what, spool, message) => {
    const options = { sinks: [memorySink()], spool: spool as SpoolOptions, source: 's' };
    expect(() => createPipeline(options)).toThrow(TypeError);
    expect(() => createPipeline(options)).toThrow(message);
  });

  test('does nothing before it is used, and makes its directory then', async () => {
    const directory = join(folder.path, 'a', 'b');
    const service = await startService([memorySink()], { directory });
    expect(await readdir(folder.path)).toEqual([]);
    expect(await get(service)).toEqual(SERVED);
    expect(await readdir(directory)).toHaveLength(1);
  });

  test('keeps what a sink did not take, and the next start delivers it, byte for byte', async () => {
    const directory = join(folder.path, 'spool');
    const first = await startService([down], { directory });
    for (let index = 0; index < 5; index++) expect(await get(first)).toEqual(SERVED);
    expect(await first.pipeline.close({ deliverSeconds: 0.2 })).toEqual({ undelivered: 5 });
    const ledger = { ...memorySink({ name: 'ledger' }) };
    const second = await startService([ledger], { directory });
    await second.pipeline.ready();
    await until(() => ledger.events.length === 5);
    expect(ledger.events.map(({ seq, outcome }) => [seq, outcome])).toEqual(
      [1, 2, 3, 4, 5].map((seq) => [seq, 'complete']),
    );
    await until(async () => (await readdir(directory)).length === 1);
    await until(() => second.pipeline.stats().sinks.ledger?.backlog === 0);
    await second.pipeline.close();
    expect(await readdir(directory)).toEqual([]);
  });

  test('refuses with 503 before the handler runs while sinks leave it full, and admits when they are back', async () => {
    let isDown = true;
    const ledger = memorySink({ name: 'ledger' });
    const sink: Sink = {
      ...ledger,
      write: (events, signal) => (isDown ? Promise.reject(new Error('down')) : ledger.write(events, signal)),
    };
    const dimensions = { filling: 'x'.repeat(3_000) };
    const service = await startService(
      [sink],
      { directory: join(folder.path, 'spool'), maxBytes: 1024 * 1024 },
      { dimensions },
    );
    const slow = get(service, '/slow');
    await until(() => service.handled.includes('/slow'));
    let answer = SERVED as Awaited<ReturnType<typeof get>>;
    let served = 0;
    while (answer.status === 200 && served < 1000) {
      answer = await get(service);
      if (answer.status === 200) served++;
    }
    expect(answer).toEqual({ ...REFUSED, retryAfter: '30' });
    const { bytes } = service.pipeline.stats();
    expect(bytes).toBeGreaterThanOrEqual((1024 * 1024 * 15) / 16);
    expect(bytes).toBeLessThan(1024 * 1024);
    expect(service.handled).toHaveLength(served + 1);
    // What was admitted before is taken all the same.
    service.finish();
    expect(await slow).toEqual(SERVED);
    isDown = false;
    await until(async () => (await get(service)).status === 200, 60_000);
    await service.pipeline.flush();
    const ids = ledger.events.map(({ id }) => id);
    expect(ids.length).toBe(service.handled.length);
    expect(ledger.events.every(({ outcome }) => outcome === 'complete')).toBe(true);
  }, 90_000);

  test.each(['intent', 'completion'] as const)(
    'refuses with 503 while fsync fails, and recovers by itself (%s)',
    async (durability) => {
      const ledger = memorySink({ name: 'ledger' });
      const service = await startService([ledger], { directory: join(folder.path, 'spool') }, { durability });
      expect(await get(service)).toEqual(SERVED);
      const slow = get(service, '/slow');
      await until(() => service.handled.includes('/slow'));
      const heal = await interceptFiles('datasync', failing('EIO', Number.POSITIVE_INFINITY));
      cleanups.push(heal);
      service.finish();
      expect(await slow).toEqual(SERVED);
      await until(async () => (await get(service)).status === 503);
      const handled = service.handled.length;
      expect(await get(service)).toEqual(REFUSED);
      expect(service.handled).toHaveLength(handled);
      heal();
      await until(async () => (await get(service)).status === 200);
      await service.pipeline.flush();
      expect(ledger.events).toHaveLength(service.handled.length);
      expect(new Set(ledger.events.map(({ id }) => id)).size).toBe(service.handled.length);
    },
  );
});

describeWithSmallDisk('a full disk under a service', () => {
  let disk: SmallDisk;
  beforeEach(() => {
    disk = smallDisk(4);
  });

  test('gives 503 with Retry-After and no handler runs; it recovers, and the requests admitted before are all there', async () => {
    cleanups.push(() => disk.remove());
    const ledger = memorySink({ name: 'ledger' });
    const service = await startService([ledger], { directory: join(disk.path, 'spool') });
    expect(await get(service)).toEqual(SERVED);
    const slow = Array.from({ length: 20 }, () => get(service, '/slow'));
    await until(() => service.handled.length === 21);
    disk.fill();
    await until(async () => (await get(service)).status === 503);
    const handled = service.handled.length;
    for (let round = 0; round < 5; round++) expect(await get(service)).toEqual(REFUSED);
    expect(service.handled).toHaveLength(handled);
    service.finish();
    expect(await Promise.all(slow)).toEqual(slow.map(() => SERVED));
    disk.free();
    await until(async () => (await get(service)).status === 200);
    await service.pipeline.flush();
    expect(ledger.events).toHaveLength(service.handled.length);
    expect(ledger.events.filter(({ outcome }) => outcome !== 'complete')).toEqual([]);
    expect(service.pipeline.stats()).toMatchObject({ lost: 0, corrupt: 0 });
  });
});

describe('a worker of node:cluster', () => {
  test('that dies is adopted by its peer, although the primary lives', async () => {
    expect(cluster.isPrimary).toBe(true);
    const directory = join(folder.path, 'cluster');
    await mkdir(directory);
    const primary = await startProcess<{ adoptedAfterMs: number; ids: string[] }>(
      new URL('./clustered-service.ts', import.meta.url),
      { args: [directory] },
    );
    cleanups.push(() => primary.kill());
    expect(primary.ready.adoptedAfterMs).toBeLessThan(5_000);
    expect(primary.ready.ids).toEqual(['job-of-the-dead']);
  }, 60_000);
});

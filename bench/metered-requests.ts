import { EventEmitter } from 'node:events';
import { appendFile, appendFileSync } from 'node:fs';
import { join } from 'node:path';
import { createPipeline, type Middleware, meter, type Pipeline, type Sink } from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';
import { median } from './report.js';

/**
 * Requests without HTTP: a handler that ends the response at once, 32 requests at a time, the next ones when all are
 * answered. What is left is what metering itself costs, with the thread pool's share of writing and fsync in it.
 */
const signedIn: Middleware = asIdentity({
  subject: { kind: 'user', id: 'user-12345678' },
  authId: 'key-1234567890',
  tenant: 'tenant-123456',
  clientId: 'client-1234567',
  tokenId: 'token-0123456789abcdef',
  plan: 'pro',
});
const PER_TICK = 32;
/** Nobody waits for `completion`: the requests wait for the spool now and then, as callers' answers would have them do. */
const CATCH_UP_EVERY = 2_048;

const socket = new EventEmitter();

class Response extends EventEmitter {
  writableEnded = false;
  writableFinished = false;
  destroyed = false;
  headersSent = false;
  statusCode = 200;
  readonly req: object;

  constructor(req: object) {
    super();
    this.req = req;
  }

  setHeader(): void {}

  end(): void {
    this.headersSent = true;
    this.writableEnded = true;
    this.writableFinished = true;
    this.emit('close');
  }
}

/** One request through a middleware; resolves nothing, `over` is called at its end. */
function request(step: Middleware, over: () => void): void {
  const headers = { 'x-request-id': 'req-0123456789abcdef0123456789abcdef' };
  const routed = { baseUrl: '', route: { path: '/v1/accounts/:account/reports/:report' } };
  const req = { headers, rawHeaders: [], method: 'POST', url: '/', socket, aborted: false, ...routed };
  const res = new Response(req) as never as Parameters<Middleware>[1] & Response;
  signedIn(req as never, res, () =>
    step(req as never, res, () => {
      res.end();
      over();
    }),
  );
}

/** Runs so many requests and waits until all are over, and in the log where there is one. */
export async function run(step: Middleware, count: number, pipeline?: Pipeline): Promise<void> {
  const before = pipeline?.stats().written ?? 0;
  let given = 0;
  let over = 0;
  let answered = (): void => {};
  const onOver = (): void => {
    over += 1;
    if (over === given) answered();
  };
  while (given < count) {
    given += PER_TICK;
    const all = new Promise<void>((resolve) => {
      answered = resolve;
    });
    for (let index = 0; index < PER_TICK; index++) request(step, onOver);
    await all;
    if (pipeline !== undefined && given % CATCH_UP_EVERY < PER_TICK) await caughtUp();
    else await new Promise((resolve) => setImmediate(resolve));
  }
  await caughtUp();

  async function caughtUp(): Promise<void> {
    while (pipeline !== undefined && pipeline.stats().written - before < given) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
}

const taking: Sink = { name: 'null', limits: { maxEvents: 2_000, maxBytes: 4 * 1024 * 1024 }, async write() {} };
const hanging: Sink = { name: 'null', write: () => new Promise(() => {}) };

function metered(durability: 'intent' | 'completion', spool: { directory: string } | 'memory', sink: Sink) {
  const pipeline = createPipeline({ sinks: [sink], source: 'bench', spool });
  return { pipeline, step: meter({ pipeline, type: 'api.request', durability }) };
}

/** A line of JSON for each request, as one writes it without a library. */
function line(req: Parameters<Middleware>[0], res: Parameters<Middleware>[1]): string {
  const { subject, ...identity } = req.identity ?? ({} as never);
  const { authId, tenant, clientId, tokenId, plan, issuer, verifier } = identity;
  return `${JSON.stringify({
    id: crypto.randomUUID(),
    source: 'bench/00000000-0000-4000-8000-000000000000',
    type: 'api.request',
    time: new Date().toISOString(),
    ...{ authId, subject, issuer, verifier, tenant, clientId, tokenId, plan },
    requestId: req.headers['x-request-id'],
    method: req.method,
    route: (req as { route?: { path: string } }).route?.path,
    status: res.statusCode,
    outcome: 'complete',
    billable: true,
    durationMs: 0.1,
    quantities: { requests: { value: 1, basis: 'measured' } },
    dimensions: {},
  })}\n`;
}

/** CPU of the process for a request, beside the same request without metering. */
export async function cpuOfRequests(folder: string, rounds: number, count: number) {
  const file = join(folder, 'obvious.jsonl');
  const ways: { what: string; step: Middleware; pipeline?: Pipeline }[] = [
    { what: 'not metered', step: (_req, _res, next) => next() },
    { what: 'meter, in memory, delivered', ...metered('completion', 'memory', taking) },
    {
      what: 'meter, durable, completion',
      ...metered('completion', { directory: join(folder, 'completion') }, hanging),
    },
    {
      what: 'meter, durable, completion, delivered',
      ...metered('completion', { directory: join(folder, 'delivered') }, taking),
    },
    { what: 'meter, durable, intent', ...metered('intent', { directory: join(folder, 'intent') }, hanging) },
    {
      what: 'the obvious way: appendFile of a line, no fsync',
      step(req, res, next) {
        res.on('close', () => appendFile(file, line(req, res), () => {}));
        next();
      },
    },
    {
      what: 'the obvious way: appendFileSync of a line, no fsync',
      step(req, res, next) {
        res.on('close', () => appendFileSync(file, line(req, res)));
        next();
      },
    },
  ];
  for (const { step, pipeline } of ways) {
    await pipeline?.ready();
    await run(step, Math.min(count, 20_000), pipeline);
  }
  const samples = ways.map(() => [] as number[]);
  for (let round = 0; round < rounds; round++) {
    for (const [index, { step, pipeline }] of ways.entries()) {
      const before = process.cpuUsage();
      await run(step, count, pipeline);
      const { user, system } = process.cpuUsage(before);
      samples[index]?.push((user + system) / count);
    }
  }
  const floor = median(samples[0] as number[]);
  const rows = ways.map(({ what, pipeline }, index) => {
    const { bytes = 0, written = 0 } = pipeline?.stats() ?? {};
    // A spool that delivers deletes what it has delivered.
    const kept = what.endsWith('delivered') || pipeline === undefined ? '' : Math.round(bytes / written);
    const added = median(samples[index] as number[]) - floor;
    return { what, 'added CPU µs/request': index === 0 ? '' : added.toFixed(1), 'bytes on disk': kept };
  });
  for (const { pipeline } of ways) await pipeline?.close({ deliverSeconds: 0.1 });
  return rows;
}

/** Memory while events flow through the spool to a sink, which shall be flat. */
export async function memoryOverEvents(folder: string, total: number) {
  const { pipeline, step } = metered('completion', { directory: join(folder, 'memory') }, taking);
  await pipeline.ready();
  const rows: Record<string, unknown>[] = [];
  const parts = 6;
  for (let part = 0; part < parts; part++) {
    // The first, short part warms up.
    await run(step, part === 0 ? total / 50 : total / (parts - 1), pipeline);
    await pipeline.flush();
    globalThis.gc?.();
    const { rss, heapUsed, external } = process.memoryUsage();
    const mib = (bytes: number): string => (bytes / 1024 / 1024).toFixed(1);
    const events = pipeline.stats().written.toLocaleString('en');
    rows.push({ events, 'heap MiB': mib(heapUsed), 'external MiB': mib(external), 'rss MiB': mib(rss) });
  }
  const { lost, delivered, written } = pipeline.stats();
  if (lost > 0 || delivered !== written) throw new Error(`of ${written} events ${delivered} were delivered`);
  await pipeline.close();
  return rows;
}

import { createServer } from 'node:http';
import connect from 'connect';
import express from 'express';
import express4 from 'express4';
import request from 'supertest';
import {
  authenticate,
  createPipeline,
  edgeVerifier,
  identityOf,
  type MemorySink,
  type MeterOptions,
  type Middleware,
  memoryLedger,
  memorySink,
  meter,
  type Pipeline,
  requireScope,
  shutdown,
  usageOf,
} from 'tollkeeper';
import { asIdentity, manualClock } from 'tollkeeper/testing';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { frameworks } from '../support/frameworks.js';
import { rawGet, withoutDate } from '../support/raw-request.js';
import { serve } from '../support/serve.js';

let sink: MemorySink;
let pipeline: Pipeline;
beforeEach(() => {
  sink = memorySink();
  pipeline = createPipeline({ sinks: [sink], spool: 'memory', source: 'test' });
});
afterEach(async () => {
  await pipeline.close();
});

const caller = {
  subject: { kind: 'user', id: 'ann' },
  authId: 'key-1',
  issuer: 'iss',
  tenant: 'acme',
  clientId: 'c1',
  tokenId: 't1',
  plan: 'pro',
} as const;
const signedIn = (overrides: object = {}) => asIdentity({ ...caller, ...overrides });

function app(
  options: Partial<MeterOptions> = {},
  { before = signedIn() as Middleware, handler = ((_req, res) => void res.json('in')) as express.RequestHandler } = {},
) {
  const handled = vi.fn(handler);
  return Object.assign(express().use(before, meter({ pipeline, type: 'call', ...options }), handled), { handled });
}

async function events(count = 1) {
  await vi.waitFor(() => expect(pipeline.stats().written).toBe(count));
  await pipeline.flush();
  return sink.events;
}

describe('meter', () => {
  it('writes one event with the attribution of the caller, in the form that sinks are promised', async () => {
    const before = Date.now();
    const handler: express.RequestHandler = (req, res) => {
      usageOf(req).add('output_tokens', 500);
      usageOf(req).add('output_tokens', 12, { basis: 'estimated' });
      usageOf(req).set({ model: 'm-7b', hot: true });
      res.set('x-event', usageOf(req).eventId).json('in');
    };
    const res = await request(app({ resource: () => ({ type: 'repo', id: 'r1' }) }, { handler }))
      .post('/')
      .set('x-request-id', 'req 1');
    expect([res.status, res.headers['x-request-id']]).toEqual([200, 'req 1']);
    const [event] = await events();
    expect(event).toEqual({
      id: res.headers['x-event'],
      source: expect.stringMatching(/^test\/[0-9a-f-]{36}$/),
      seq: 1,
      type: 'call',
      time: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
      authId: 'key-1',
      subject: { kind: 'user', id: 'ann' },
      issuer: 'iss',
      verifier: expect.any(String),
      tenant: 'acme',
      clientId: 'c1',
      tokenId: 't1',
      plan: 'pro',
      resource: { type: 'repo', id: 'r1' },
      requestId: 'req 1',
      method: 'POST',
      status: 200,
      outcome: 'complete',
      billable: true,
      durationMs: expect.any(Number),
      quantities: { requests: { value: 1, basis: 'measured' }, output_tokens: { value: 512, basis: 'estimated' } },
      dimensions: { model: 'm-7b', hot: true },
    });
    expect(event?.id).toMatch(/^[A-Za-z0-9._-]{1,64}$/);
    expect(Date.parse(event?.time as string)).toBeGreaterThanOrEqual(before);
  });

  it('leaves absent what is absent, and counts without gaps', async () => {
    const plain = asIdentity({ subject: { kind: 'user', id: 'u' }, authId: 'k' });
    const server = app({}, { before: plain });
    for (let i = 0; i < 5; i++) await request(server).get('/');
    const all = await events(5);
    expect(all.map(({ seq }) => seq)).toEqual([1, 2, 3, 4, 5]);
    expect(new Set(all.map(({ id }) => id)).size).toBe(5);
    for (const name of ['tenant', 'clientId', 'tokenId', 'plan', 'resource', 'requestId', 'claims', 'corrects']) {
      expect(all[0]).not.toHaveProperty(name);
    }
  });

  it.each([
    ['Express 5', () => express()],
    ['Express 4', () => express4()],
  ])('names the mounted pattern as the route, never the URL: %s', async (_name, make) => {
    const server = make();
    const router = express.Router({ mergeParams: true });
    router.get('/users/:id', meter({ pipeline, type: 'call' }), (_req, res) => void res.end());
    server.use(signedIn() as never);
    server.use('/orgs/:org', router);
    server.get('/plain', meter({ pipeline, type: 'call' }) as never, (_req, res) => void res.end());
    await request(server).get('/orgs/acme/users/7?token=secret');
    await request(server).get('/plain?x=1');
    expect((await events(2)).map(({ route }) => route)).toEqual(['/orgs/:org/users/:id', '/plain']);
    expect(JSON.stringify(sink.events)).not.toContain('secret');
  });

  it('gives the same answers, byte for byte, on Express 4, Express 5, Connect and bare node:http', async () => {
    const answers: string[][] = [];
    for (const { listen } of frameworks) {
      const steps = [
        signedIn(),
        meter({
          pipeline,
          type: 'call',
          resource: (req) => ({ type: 'r', id: req.headers['x-id'] as string }),
          require: ['authId', 'resource.id'],
        }),
      ];
      const served = await serve(listen(steps, (req, res) => res.end(identityOf(req).authId)));
      answers.push(
        await Promise.all(
          [['x-id: 1', 'x-request-id: abc'], [], ['x-id: 1', `x-request-id: ${'x'.repeat(201)}`]].map(async (headers) =>
            withoutDate(await rawGet(served.port, headers)),
          ),
        ),
      );
      await served.close();
    }
    expect(answers[0]?.map((answer) => answer.slice(9, 12))).toEqual(['200', '400', '400']);
    for (const list of answers) expect(list).toEqual(answers[0]);
  });

  describe('the billing gate', () => {
    it('names every missing field at once, before the handler, and writes no event', async () => {
      const server = app(
        {
          require: ['authId', 'tenant', 'clientId', 'resource.type', 'resource.id'],
          resource: () => ({ type: ' ', id: 'r' }),
        },
        {
          before: asIdentity({ subject: { kind: 'user', id: 'u' }, authId: 'k' }),
        },
      );
      const res = await request(server).get('/');
      expect([res.status, res.body.code]).toEqual([400, 'missing_billing_fields']);
      expect(res.body.missing).toEqual([{ field: 'tenant' }, { field: 'clientId' }, { field: 'resource.type' }]);
      expect(server.handled).not.toHaveBeenCalled();
      expect(pipeline.stats()).toMatchObject({ written: 0, inFlight: 0 });
    });

    it('names the header that would supply a field, where a trusted edge leaves one out', async () => {
      const edge = edgeVerifier({
        prefix: 'x-saturn-',
        trust: { peers: ['127.0.0.1', '::1'] },
        map: { authId: 'x-saturn-auth-id', 'resource.id': 'x-saturn-resource-id' },
      });
      const server = app({ require: ['authId', 'resource.id'] }, { before: authenticate({ verifiers: [edge] }) });
      expect((await request(server).get('/')).body.missing).toEqual([
        { field: 'authId', header: 'x-saturn-auth-id' },
        { field: 'resource.id', header: 'x-saturn-resource-id' },
      ]);
      expect((await request(server).get('/').set('x-saturn-resource-id', 'r')).body.missing).toEqual([
        { field: 'authId', header: 'x-saturn-auth-id' },
      ]);
      expect((await request(server).get('/').set('x-saturn-auth-id', 'k')).body.missing).toEqual([
        { field: 'resource.id', header: 'x-saturn-resource-id' },
      ]);
      expect(server.handled).not.toHaveBeenCalled();
      await request(server)
        .get('/')
        .set('x-saturn-auth-id', 'k')
        .set('x-saturn-resource-id', 'r')
        .set('x-saturn-foo', 'Bar');
      expect((await events())[0]).toMatchObject({
        authId: 'k',
        resource: { id: 'r' },
        claims: { 'x-saturn-auth-id': 'k', 'x-saturn-resource-id': 'r', 'x-saturn-foo': 'Bar' },
      });
    });

    it.each(['', 'x'.repeat(201), 'ümlaut'])(
      'refuses a request id that is not 1 to 200 printable ASCII characters: %j',
      async (id) => {
        const server = app();
        const served = await serve(server);
        const answer = await rawGet(served.port, [`x-request-id: ${id}`]);
        await served.close();
        expect(answer).toMatch(/^HTTP\/1.1 400/);
        expect(answer).not.toMatch(/x-request-id/i);
        expect(server.handled).not.toHaveBeenCalled();
      },
    );

    it('takes another header for the request id, or none', async () => {
      await request(app({ requestIdHeader: 'X-Trace' }))
        .get('/')
        .set('x-trace', 'a')
        .set('x-request-id', 'b');
      const off = await request(app({ requestIdHeader: false }))
        .get('/')
        .set('x-request-id', 'ü'.repeat(300));
      expect(off.status).toBe(200);
      expect((await events(2)).map(({ requestId }) => requestId)).toEqual(['a', undefined]);
    });
  });

  it('refuses in the wrong order: twice, without an identity, and with a gate behind it', async () => {
    const handler = vi.fn();
    const m = () => meter({ pipeline, type: 'call' });
    const twice = await request(express().use(signedIn(), m(), m(), handler)).get('/');
    expect([twice.status, twice.body.code]).toEqual([500, 'middleware_order']);
    const anonymous = await request(express().use(m(), handler)).get('/');
    expect([anonymous.status, anonymous.body.code]).toEqual([401, 'missing_credentials']);
    for (const late of [
      requireScope('a:read'),
      authenticate({ verifiers: [{ name: 'n', accepts: () => true, verify: () => caller }] }),
    ]) {
      const res = await request(express().use(signedIn(), m(), late, handler)).get('/');
      expect([res.status, res.body.code]).toEqual([500, 'middleware_order']);
    }
    expect(handler).not.toHaveBeenCalled();
    // The requests that were admitted before the mistake was noticed are accounted for.
    expect((await events(3)).map(({ status, billable }) => [status, billable])).toEqual([
      [500, false],
      [500, false],
      [500, false],
    ]);
  });

  it.each([
    [
      'resource throws',
      {
        resource: () => {
          throw undefined;
        },
      },
    ],
    ['resource is a promise', { resource: async () => ({ type: 'a', id: 'b' }) }],
    ['resource is no text', { resource: () => ({ type: 'a', id: 5 }) }],
    ['resource is a string', { resource: () => 'x' }],
    [
      'quantities throw',
      {
        quantities: () => {
          throw new Error('x');
        },
      },
    ],
    ['quantities are a promise', { quantities: async () => ({}) }],
    ['quantities are negative', { quantities: () => ({ a: -1 }) }],
    ['dimensions are null', { dimensions: () => null }],
    ['dimensions are nested', { dimensions: () => ({ a: {} }) }],
    ['the attribution is too large', { resource: () => ({ type: 'a', id: 'x'.repeat(70_000) }) }],
  ])('refuses, and never serves, when %s', async (_name, options) => {
    const server = app(options as never);
    const { status } = await request(server).get('/');
    expect(status).toBeGreaterThanOrEqual(400);
    expect(server.handled).not.toHaveBeenCalled();
    expect(pipeline.stats().inFlight).toBe(0);
  });

  it('takes quantities and dimensions at admission, fixed or from the request', async () => {
    await request(app({ quantities: { units: 2 }, dimensions: { region: 'eu' } })).get('/');
    await request(
      app({ quantities: (req) => ({ units: Number(req.headers['x-units']) }), dimensions: () => ({ region: 'us' }) }),
    )
      .get('/')
      .set('x-units', '7');
    expect((await events(2)).map(({ quantities, dimensions }) => [quantities.units?.value, dimensions])).toEqual([
      [2, { region: 'eu' }],
      [7, { region: 'us' }],
    ]);
  });

  it('lets the app decide about billing, and keeps the default where that fails', async () => {
    const seen: unknown[] = [];
    await request(
      app({
        billable: (event) => {
          seen.push(event.status, event.quantities.requests?.value);
          return false;
        },
      }),
    ).get('/');
    await request(
      app({
        billable: () => {
          throw new Error('x');
        },
      }),
    ).get('/');
    await request(app({ billable: (() => 'yes') as never })).get('/');
    expect((await events(3)).map(({ billable }) => billable)).toEqual([false, true, true]);
    expect(seen).toEqual([200, 1]);
    expect(pipeline.stats().callbackFailures).toBe(2);
  });

  it('refuses amounts that are no safe integers, where they are reported', async () => {
    const errors: unknown[] = [];
    const handler: express.RequestHandler = (req, res) => {
      const usage = usageOf(req);
      const attempts = [
        () => usage.add('a', -1),
        () => usage.add('a', 1.5),
        () => usage.add('a', Number.NaN),
        () => usage.add('__proto__', 1),
        () => usage.add('', 1),
        () => usage.add('a', 1, { basis: 'guessed' as never }),
        () => usage.set({ a: {} as never }),
        () => {
          usage.add('b', Number.MAX_SAFE_INTEGER);
          usage.add('b', 1);
        },
      ];
      for (const attempt of attempts) {
        try {
          attempt();
        } catch (error) {
          errors.push(error);
        }
      }
      usage.checkpoint();
      res.end();
    };
    await request(app({}, { handler })).get('/');
    expect(errors.length).toBe(8);
    for (const error of errors) expect(error).toBeInstanceOf(RangeError);
    expect((await events())[0]?.quantities).toEqual({
      requests: { value: 1, basis: 'measured' },
      b: { value: Number.MAX_SAFE_INTEGER, basis: 'reported' },
    });
  });

  it('answers 503 with Retry-After while the pipeline is closing, and counts what it lets through when told to', async () => {
    await pipeline.close();
    const refusing = app();
    const res = await request(refusing).get('/');
    expect([res.status, res.body.code]).toEqual([503, 'metering_unavailable']);
    expect(Number(res.headers['retry-after'])).toBeGreaterThan(0);
    expect(refusing.handled).not.toHaveBeenCalled();
    const allowing = app({ onUnavailable: 'dangerouslyAllow' });
    expect((await request(allowing).get('/')).status).toBe(200);
    expect(pipeline.stats().unmetered).toBe(1);
  });

  it('throws a TypeError that lists every problem of the options', () => {
    const options = {
      type: '',
      require: ['authId', 'user'],
      measure: 'bytes',
      durability: 'intent',
      requestIdHeader: 'a b',
      onUnavailable: 'allow',
      quantities: { a: -1 },
      dimensions: { a: {} },
      billable: 1,
      resource: 1,
      requires: [],
    };
    const message = (() => {
      try {
        meter({ pipeline, ...options } as never);
        return '';
      } catch (error) {
        return (error as Error).message;
      }
    })();
    for (const part of [
      '"requires" (did you mean "require"?)',
      'type must',
      'require may hold',
      'measure must be an array',
      'needs a spool on disk',
      'requestIdHeader',
      'onUnavailable',
      'quantities:',
      'dimensions:',
      'billable must',
      'resource must',
    ]) {
      expect(message).toContain(part);
    }
    expect(() => meter({ pipeline: {}, type: 'x' } as never)).toThrow('pipeline must come from createPipeline');
  });
});

describe('the pipeline', () => {
  it('records and corrects outside a request, with only what is given', async () => {
    const { id } = await pipeline.record({
      type: 'job',
      authId: 'k',
      tenant: 'acme',
      quantities: { minutes: 5 },
      dimensions: { kind: 'nightly' },
    } as never);
    const correction = await pipeline.correct(id, { minutes: -2 }, { reason: 'recount' });
    const [job, fix] = await events(2);
    expect(job).toMatchObject({
      id,
      type: 'job',
      authId: 'k',
      outcome: 'complete',
      billable: true,
      quantities: { minutes: { value: 5, basis: 'reported' } },
    });
    expect(job).not.toHaveProperty('status');
    expect(job?.quantities).not.toHaveProperty('requests');
    expect(fix).toMatchObject({
      id: correction.id,
      corrects: id,
      reason: 'recount',
      quantities: { minutes: { value: -2, basis: 'reported' } },
    });
    for (const name of ['authId', 'subject', 'tenant', 'status', 'durationMs']) expect(fix).not.toHaveProperty(name);
    await expect(pipeline.record({ type: 'job' } as never)).rejects.toThrow();
    await expect(pipeline.correct('', { a: 1 }, { reason: 'x' })).rejects.toThrow();
    await expect(pipeline.correct(id, { a: 0.5 }, { reason: 'x' })).rejects.toThrow(RangeError);
  });

  it('tells a ledger until when its totals are final, and that the source is closed', async () => {
    const ledger = memoryLedger();
    const books = createPipeline({ sinks: [ledger], spool: 'memory', source: 'books' });
    let finish = (): void => {};
    const server = express().use(signedIn(), meter({ pipeline: books, type: 'call' }), (req, res) => {
      if (req.url === '/slow') finish = () => res.end();
      else res.end();
    });
    await request(server).get('/');
    const slow = request(server)
      .get('/slow')
      .then(({ status }) => status);
    await vi.waitFor(() => expect(books.stats()).toMatchObject({ written: 1, inFlight: 1 }));
    const from = new Date(Date.now() - 60_000);
    const to = new Date(Date.now() + 60_000);
    await books.flush();
    const during = await ledger.usage({ from, to, groupBy: [] });
    expect(during.openSources.length).toBe(1);
    expect(during.completeThrough?.getTime()).toBeLessThanOrEqual(Date.now());
    finish();
    expect(await slow).toBe(200);
    await vi.waitFor(() => expect(books.stats().written).toBe(2));
    const before = Date.now();
    await books.flush();
    const after = await ledger.usage({ from, to, groupBy: [] });
    expect(after.completeThrough?.getTime()).toBeGreaterThanOrEqual(before);
    expect(await books.close()).toEqual({ undelivered: 0 });
    expect(await ledger.usage({ from, to, groupBy: [] })).toMatchObject({ completeThrough: to, openSources: [] });
    expect(await ledger.audit()).toMatchObject([{ state: 'closed', last: 2, count: 2, missing: [] }]);
  });

  it('closes in order: no new connections, requests drain, events are delivered, the rest closes', async () => {
    const closed: string[] = [];
    let finish = (): void => {};
    const handler = express().use(signedIn(), meter({ pipeline, type: 'call' }), (_req, res) => {
      finish = () => res.end('done');
    });
    const server = createServer(handler).listen(0, '127.0.0.1');
    await new Promise((resolve) => server.once('listening', resolve));
    const { port } = server.address() as { port: number };
    const slow = fetch(`http://127.0.0.1:${port}`).then((res) => res.text());
    await vi.waitFor(() => expect(pipeline.stats().inFlight).toBe(1));
    const part = { close: async () => void closed.push('part') };
    const ended = shutdown({ server, parts: [part, pipeline], drainSeconds: 5, deliverSeconds: 5 });
    await expect(fetch(`http://127.0.0.1:${port}`)).rejects.toThrow();
    expect(closed).toEqual([]);
    finish();
    expect(await slow).toBe('done');
    expect(await ended).toEqual({ undelivered: 0 });
    expect(closed).toEqual(['part']);
    expect(sink.events.length).toBe(1);
  });

  it('says how many events it could not deliver', async () => {
    const stuck = createPipeline({
      sinks: [{ name: 'stuck', write: () => new Promise<never>(() => {}) }],
      spool: 'memory',
      source: 's',
    });
    for (let i = 0; i < 3; i++) await stuck.record({ type: 'job', authId: 'k', quantities: {} } as never);
    expect(await stuck.close({ deliverSeconds: 0.05 })).toEqual({ undelivered: 3 });
    expect(await stuck.close()).toEqual({ undelivered: 3 });
  });

  it('takes time from its clock', async () => {
    const clock = manualClock(Date.parse('2026-03-01T10:00:00.250Z'));
    const timed = createPipeline({ sinks: [sink], spool: 'memory', source: 'clock', clock });
    await timed.record({ type: 'job', authId: 'k', quantities: {} } as never);
    await timed.flush();
    expect(sink.events[0]?.time).toBe('2026-03-01T10:00:00.250Z');
    await timed.close();
  });

  it('throws a TypeError that lists every problem of the options', () => {
    const sinks = [
      { name: 'a b', write() {} },
      { name: 'x' },
      { name: 'ok', role: 'other', limits: { maxEvents: 0, max: 1 }, write() {} },
      { name: 'ok', write() {} },
    ];
    const message = (() => {
      try {
        createPipeline({ sinks, spool: 'disk', source: 'a b', sorce: 1 } as never);
        return '';
      } catch (error) {
        return (error as Error).message;
      }
    })();
    for (const part of [
      '"sorce" (did you mean "source"?)',
      'sinks[0].name',
      'sinks[1] is no sink',
      'sinks[2].role',
      'maxEvents',
      '"sinks[2].limits.max"',
      'two sinks are named "ok"',
      'source must',
      'spool',
    ]) {
      expect(message).toContain(part);
    }
    expect(() => createPipeline({ sinks: [], spool: 'memory', source: 's' })).toThrow('at least one sink');
  });

  it('knows only its own sinks', async () => {
    expect(() => pipeline.resume('nobody')).toThrow(TypeError);
    await expect(pipeline.forget('memory')).rejects.toThrow('is configured');
    await pipeline.forget('gone');
    await expect(pipeline.flush(AbortSignal.abort(new Error('enough')))).rejects.toThrow('enough');
  });

  it('runs on Connect too', async () => {
    const server = connect()
      .use(signedIn())
      .use(meter({ pipeline, type: 'call' }))
      .use((_req, res) => void res.end());
    await request(server).get('/path?x=1');
    expect((await events())[0]).not.toHaveProperty('route');
  });
});

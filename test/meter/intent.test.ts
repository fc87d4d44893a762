import { once } from 'node:events';
import { createServer } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import express from 'express';
import request from 'supertest';
import { createPipeline, type MemorySink, memorySink, meter, type Pipeline, usageOf } from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { tempFolder } from '../support/index.js';

describe('meter with a spool on disk', () => {
  let folder: ReturnType<typeof tempFolder>;
  let sink: MemorySink;
  let pipeline: Pipeline;
  beforeEach(() => {
    folder = tempFolder('intent');
    sink = memorySink();
    pipeline = createPipeline({ sinks: [sink], source: 'test', spool: { directory: folder.path } });
  });
  afterEach(async () => {
    await pipeline.close();
    folder.remove();
  });
  const caller = asIdentity({ subject: { kind: 'user', id: 'ü"\\' }, authId: 'k', claims: { a: 1 } });

  it('waits until the spool is open, makes the intent durable, and writes one event', async () => {
    const app = express().use(
      caller,
      meter({ pipeline, type: 'call', resource: () => ({ type: 't', id: 'ü"\n' }) }),
      (req, res) => {
        usageOf(req).add('tokens', 5);
        usageOf(req).set({ model: 'm' });
        usageOf(req).checkpoint();
        usageOf(req).add('tokens', 1);
        res.json(usageOf(req).eventId);
      },
    );
    const answers = await Promise.all(Array.from({ length: 10 }, () => request(app).get('/').set('x-request-id', 'r')));
    expect(answers.map(({ status }) => status)).toEqual(new Array(10).fill(200));
    await vi.waitFor(() => expect(pipeline.stats().written).toBe(10));
    await pipeline.flush();
    expect(new Set(sink.events.map(({ id }) => id))).toEqual(new Set(answers.map(({ body }) => body)));
    expect(sink.events[0]).toMatchObject({
      subject: { kind: 'user', id: 'ü"\\' },
      resource: { type: 't', id: 'ü"\n' },
      requestId: 'r',
      quantities: { tokens: { value: 6 } },
      dimensions: { model: 'm' },
      outcome: 'complete',
    });
    expect(await pipeline.close()).toEqual({ undelivered: 0 });
  });

  it('takes completion where it is asked for, and by default where no sink bills', async () => {
    const observing = createPipeline({
      sinks: [{ name: 'seen', role: 'observational', async write() {} }],
      source: 'o',
      spool: { directory: `${folder.path}/o` },
    });
    await observing.ready();
    for (const [one, options] of [
      [pipeline, { durability: 'completion' }],
      [observing, {}],
    ] as const) {
      await one.ready();
      const app = express().use(caller, meter({ pipeline: one, type: 'call', ...options }), (req, res) => {
        usageOf(req).checkpoint();
        res.end();
      });
      expect((await request(app).get('/')).status).toBe(200);
      await vi.waitFor(() => expect(one.stats().written).toBe(1));
    }
    await observing.close();
  });

  it('serves nobody who left before the intent was durable', async () => {
    await pipeline.ready();
    let handled = 0;
    const run = meter({ pipeline, type: 'call' });
    const server = createServer((req, res) => {
      caller(req, res, () => {
        run(req, res, () => {
          handled += 1;
          res.end();
        });
        req.socket.destroy();
      });
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const socket = connect((server.address() as AddressInfo).port, '127.0.0.1');
    socket.on('error', () => {});
    socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
    await once(socket, 'close');
    await new Promise((resolve) => setTimeout(resolve, 60));
    expect([handled, pipeline.stats().inFlight]).toEqual([0, 0]);
    expect(await pipeline.close()).toEqual({ undelivered: 0 });
    expect(sink.events).toEqual([]);
    server.close();
  });

  it('answers 503 when the spool cannot be opened', async () => {
    const broken = createPipeline({ sinks: [sink], source: 'test', spool: { directory: '/dev/null/spool' } });
    const handler = vi.fn();
    const app = express().use(caller, meter({ pipeline: broken, type: 'call' }), handler);
    const res = await request(app).get('/');
    expect([res.status, res.body.code]).toEqual([503, 'metering_unavailable']);
    expect(handler).not.toHaveBeenCalled();
    await broken.close({ deliverSeconds: 0.1 });
  });

  it('writes what is still under way as unknown when it closes', async () => {
    await pipeline.ready();
    const app = express().use(caller, meter({ pipeline, type: 'call' }), (req) => usageOf(req).add('tokens', 3));
    request(app)
      .get('/')
      .end(() => {});
    await vi.waitFor(() => expect(pipeline.stats().inFlight).toBe(1));
    expect(await pipeline.close()).toEqual({ undelivered: 0 });
    expect(sink.events).toMatchObject([{ outcome: 'unknown', billable: false, quantities: { tokens: { value: 3 } } }]);
    expect(sink.events[0]).not.toHaveProperty('status');
  });
});

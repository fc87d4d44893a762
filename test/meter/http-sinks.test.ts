import { existsSync } from 'node:fs';
import { appendFile, readFile } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { join } from 'node:path';
import {
  cloudEventsSink,
  createPipeline,
  jsonlSink,
  memoryLedger,
  memorySink,
  openMeterSink,
  replayDeadLetters,
  type Sink,
  SinkError,
  toCloudEvent,
  type UsageEvent,
} from 'tollkeeper';
import { sinkContract, usageEvent } from 'tollkeeper/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { brokerSink } from '../../examples/custom-sink.js';
import { type Served, serve, tempFolder } from '../support/index.js';

const TOKEN = 'secret-token-of-the-sink';
const signal = new AbortController().signal;
const open: Served[] = [];
afterEach(async () => {
  for (const served of open.splice(0)) await served.close();
});

interface Seen {
  readonly path: string;
  readonly headers: IncomingMessage['headers'];
  readonly body: string;
}

/** A server that refuses what a receiver of CloudEvents refuses, written from the published format. */
async function receiver(
  answer: (seen: Seen, res: ServerResponse) => void = (_seen, res) => void res.writeHead(204).end(),
) {
  const seen: Seen[] = [];
  const ids: string[] = [];
  const served = await serve(async (req, res) => {
    let body = '';
    for await (const chunk of req) body += chunk;
    const request = { path: req.url as string, headers: req.headers, body };
    seen.push(request);
    if (req.method !== 'POST') return void res.writeHead(405).end();
    if (req.headers.authorization !== `Bearer ${TOKEN}`) return void res.writeHead(401).end();
    const events = eventsOf(request);
    if (events === undefined) return void res.writeHead(415).end();
    for (const { id, source, type, specversion, time } of events) {
      const complete =
        [id, source, type].every((text) => typeof text === 'string' && text !== '') && specversion === '1.0';
      if (!complete || Number.isNaN(Date.parse(String(time)))) return void res.writeHead(400).end();
    }
    answer(request, res);
    if (res.statusCode < 300) ids.push(...events.map(({ id }) => id as string));
  });
  open.push(served);
  return { ...served, seen, ids };
}

function eventsOf({ headers, body }: Seen): Record<string, unknown>[] | undefined {
  const type = headers['content-type'];
  if (type === 'application/cloudevents+json') return [JSON.parse(body)];
  if (type === 'application/cloudevents-batch+json') return JSON.parse(body);
  if (type !== 'application/json' || headers['ce-specversion'] === undefined) return undefined;
  const attribute = (name: string) => decodeURIComponent(String(headers[`ce-${name}`]));
  return [
    {
      ...Object.fromEntries(['id', 'source', 'type', 'specversion', 'time'].map((name) => [name, attribute(name)])),
      data: JSON.parse(body),
    },
  ];
}

describe('the sinks of the package, and one of the app’s own, keep the contract', () => {
  const makers: [
    string,
    () => Promise<{ sink: Sink; received?: () => Promise<string[]>; end?: () => Promise<void> }>,
  ][] = [
    [
      'memorySink',
      async () => {
        const sink = memorySink();
        return { sink, received: async () => sink.events.map(({ id }) => id) };
      },
    ],
    [
      'memoryLedger',
      async () => {
        const sink = memoryLedger();
        return {
          sink,
          received: async () => {
            const ids: string[] = [];
            for await (const { id } of sink.events({})) ids.push(id);
            return ids;
          },
        };
      },
    ],
    [
      'jsonlSink',
      async () => {
        const folder = tempFolder('jsonl');
        const path = join(folder.path, 'x.jsonl');
        const received = async () =>
          existsSync(path)
            ? (await readFile(path, 'utf8'))
                .split('\n')
                .filter(Boolean)
                .map((line) => (JSON.parse(line) as UsageEvent).id)
            : [];
        return { sink: jsonlSink(path), received, end: async () => folder.remove() };
      },
    ],
    ...(['single', 'batch', 'binary'] as const).map(
      (mode): [string, () => Promise<{ sink: Sink; received: () => Promise<string[]> }>] => [
        `cloudEventsSink, ${mode}`,
        async () => {
          const server = await receiver();
          return { sink: cloudEventsSink({ url: server.url, mode, token: TOKEN }), received: async () => server.ids };
        },
      ],
    ),
    [
      'openMeterSink',
      async () => {
        const server = await receiver();
        return { sink: openMeterSink({ url: server.url, token: TOKEN }), received: async () => server.ids };
      },
    ],
    [
      'brokerSink',
      async () => {
        const keys: string[] = [];
        return {
          sink: brokerSink(
            { send: async (_topic, messages) => void keys.push(...messages.map(({ key }) => key)) },
            'usage',
          ),
          received: async () => keys,
        };
      },
    ],
  ];
  for (const [name, make] of makers) {
    describe(name, () => {
      for (const { name: title, run } of sinkContract(make)) it(title, run);
    });
  }

  it.each([
    [
      'loses every third event',
      (sink: ReturnType<typeof memorySink>): Sink => ({
        ...sink,
        write: (events, stop) =>
          sink.write(
            events.filter(({ seq }) => seq % 3 !== 0),
            stop,
          ),
      }),
    ],
    [
      'answers a duplicate as an error',
      (sink: ReturnType<typeof memorySink>): Sink => ({
        ...sink,
        write: async (events, stop) => {
          if (events.some(({ id }) => sink.events.some((known) => known.id === id))) throw new Error('already exists');
          await sink.write(events, stop);
        },
      }),
    ],
    [
      'gives fewer verdicts than events',
      (sink: ReturnType<typeof memorySink>): Sink => ({
        ...sink,
        write: async (events, stop) => {
          await sink.write(events, stop);
          return [{ outcome: 'delivered' }];
        },
      }),
    ],
  ])('and a sink that %s does not', async (_name, broken) => {
    const cases = sinkContract(async () => {
      const sink = memorySink();
      return { sink: broken(sink), received: async () => sink.events.map(({ id }) => id) };
    });
    const results = await Promise.allSettled(cases.map(({ run }) => run()));
    expect(results.some(({ status }) => status === 'rejected')).toBe(true);
  });
});

describe('cloudEventsSink', () => {
  const event = usageEvent({ id: 'e1', seq: 1, type: 'a "call"', authId: 'kü y', dimensions: { model: 'm' } });

  it('writes the published forms', async () => {
    const server = await receiver();
    const make = (mode: 'single' | 'batch' | 'binary') =>
      cloudEventsSink({ url: `${server.url}/hook`, mode, token: TOKEN });
    await make('single').write([event], signal);
    await make('batch').write([event], signal);
    await make('binary').write([event], signal);
    const [single, batch, binary] = server.seen as [Seen, Seen, Seen];
    expect(single.headers['content-type']).toBe('application/cloudevents+json');
    expect(JSON.parse(single.body)).toEqual(toCloudEvent(event));
    expect(toCloudEvent(event)).toMatchObject({
      specversion: '1.0',
      id: 'e1',
      source: 'test/1',
      type: 'a "call"',
      subject: 'kü y',
      datacontenttype: 'application/json',
      data: { seq: 1, tenant: 't' },
    });
    expect(batch.headers['content-type']).toBe('application/cloudevents-batch+json');
    expect(JSON.parse(batch.body)).toEqual([toCloudEvent(event)]);
    expect(binary.headers).toMatchObject({
      'content-type': 'application/json',
      'ce-specversion': '1.0',
      'ce-id': 'e1',
      'ce-type': 'a%20%22call%22',
      'ce-subject': 'k%C3%BC%20y',
    });
    expect(JSON.parse(binary.body)).toEqual(toCloudEvent(event).data);
    expect(toCloudEvent({ ...event, authId: undefined })).not.toHaveProperty('subject');
    // Half a surrogate pair is no reason to try for ever.
    expect(await make('binary').write([{ ...event, authId: 'a\ud800' }], signal)).toEqual([{ outcome: 'delivered' }]);
  });

  it.each([
    [401, { action: 'pause' }],
    [403, { action: 'pause' }],
    [302, { action: 'pause' }],
    [410, { action: 'stop' }],
    [415, { action: 'stop' }],
    [429, { action: 'retry', afterSeconds: 7 }],
    [503, { action: 'retry', afterSeconds: 7, ambiguous: false }],
    [500, { action: 'retry', ambiguous: true }],
    [502, { action: 'retry', ambiguous: true }],
    [504, { action: 'retry', ambiguous: true }],
  ])('takes a %i for what it means, and tells no secret', async (status, expected) => {
    const server = await receiver(
      (_seen, res) => void res.writeHead(status, { 'retry-after': '7', location: '/elsewhere' }).end(TOKEN),
    );
    for (const mode of ['single', 'batch'] as const) {
      const error = await Promise.resolve(
        cloudEventsSink({ url: server.url, mode, token: TOKEN }).write([event], signal),
      ).catch((cause: unknown) => cause);
      expect(error).toMatchObject({ code: 'sink_error', ...expected });
      expect(String((error as Error).message)).not.toContain(TOKEN);
    }
    expect(server.seen.every(({ path }) => path === '/')).toBe(true);
  });

  it('rejects the one event that is refused, and halves a batch', async () => {
    const server = await receiver((_seen, res) => void res.writeHead(422).end());
    const sink = (mode: 'single' | 'batch') => cloudEventsSink({ url: server.url, mode, token: TOKEN });
    expect(await sink('single').write([event], signal)).toEqual([
      { outcome: 'reject', reason: 'the server answered 422' },
    ]);
    expect(await sink('batch').write([event], signal)).toEqual([
      { outcome: 'reject', reason: 'the server answered 422' },
    ]);
    await expect(sink('batch').write([event, usageEvent({ seq: 2 })], signal)).rejects.toMatchObject({
      action: 'split',
    });
  });

  it('rejects what is larger than 64 KiB, and sends the rest', async () => {
    const server = await receiver();
    const large = usageEvent({ id: 'large', seq: 2, claims: { a: 'x'.repeat(70_000) } });
    for (const mode of ['single', 'batch'] as const) {
      const verdicts = await cloudEventsSink({ url: server.url, mode, token: TOKEN }).write([event, large], signal);
      expect(verdicts?.map(({ outcome }) => outcome)).toEqual(['delivered', 'reject']);
    }
    expect(
      await cloudEventsSink({ url: server.url, mode: 'batch', token: TOKEN }).write([large], signal),
    ).toMatchObject([{ outcome: 'reject' }]);
  });

  it('tells a refused connection from a broken one', async () => {
    const gone = await serve((_req, res) => void res.end());
    await gone.close();
    await expect(cloudEventsSink({ url: gone.url, mode: 'single' }).write([event], signal)).rejects.toMatchObject({
      ambiguous: false,
    });
    const breaking = await serve((req) => void req.socket.destroy());
    open.push(breaking);
    await expect(cloudEventsSink({ url: breaking.url, mode: 'single' }).write([event], signal)).rejects.toMatchObject({
      ambiguous: true,
    });
  });

  it('reads Retry-After as a date, and passes over nonsense', async () => {
    for (const [header, check] of [
      [new Date(Date.now() + 60_000).toUTCString(), (seconds?: number) => (seconds as number) > 50],
      ['soon', (seconds?: number) => seconds === undefined],
    ] as const) {
      const server = await receiver((_seen, res) => void res.writeHead(503, { 'retry-after': header }).end());
      const error = await Promise.resolve(
        cloudEventsSink({ url: server.url, mode: 'single', token: TOKEN }).write([event], signal),
      ).catch((cause: unknown) => cause);
      expect(check((error as { afterSeconds?: number }).afterSeconds)).toBe(true);
    }
  });

  it('throws a TypeError that lists every problem of the options', () => {
    expect(() => cloudEventsSink({ url: 'ftp://x', token: 'a b', fetch: 1, extra: 1 } as never)).toThrow(
      /"extra".*url must.*mode is missing.*token must.*fetch must/,
    );
    expect(() => cloudEventsSink({ url: 'https://u:p@x', mode: 'single' })).toThrow('without credentials');
    expect(() => cloudEventsSink({ url: 5, mode: 'all' } as never)).toThrow(/url must.*mode must/);
  });
});

describe('openMeterSink', () => {
  it('posts to the one path with the exact media type, a subject and an object of data', async () => {
    const server = await receiver();
    await openMeterSink({ url: server.url, token: TOKEN }).write(
      [usageEvent({ seq: 1, quantities: { tokens: { value: 5, basis: 'reported' } }, dimensions: { model: 'm' } })],
      signal,
    );
    const [seen] = server.seen;
    expect([seen?.path, seen?.headers['content-type']]).toEqual([
      '/api/v1/events',
      'application/cloudevents-batch+json',
    ]);
    expect(JSON.parse(seen?.body as string)).toEqual([
      {
        specversion: '1.0',
        id: expect.any(String),
        source: 'test/1',
        type: 'call',
        time: '2026-03-01T10:00:00.000Z',
        subject: 't',
        datacontenttype: 'application/json',
        data: { model: 'm', authId: 'k1', tenant: 't', outcome: 'complete', billable: true, tokens: 5 },
      },
    ]);
  });

  it('rejects an event without a subject, and sends the rest; a batch taken in part is sent again whole', async () => {
    let first = true;
    const server = await receiver((_seen, res) => {
      res.writeHead(first ? 500 : 204).end();
      first = false;
    });
    const sink = openMeterSink({
      url: server.url,
      token: TOKEN,
      subject: ({ authId }) => (authId === 'none' ? undefined : authId),
    });
    const events = [usageEvent({ seq: 1 }), usageEvent({ seq: 2, authId: 'none' }), usageEvent({ seq: 3 })];
    await expect(sink.write(events, signal)).rejects.toMatchObject({ action: 'retry' });
    expect((await sink.write(events, signal))?.map(({ outcome }) => outcome)).toEqual([
      'delivered',
      'reject',
      'delivered',
    ]);
    expect(server.seen[0]?.body).toBe(server.seen[1]?.body);
    expect(await sink.write([events[1] as UsageEvent], signal)).toMatchObject([{ outcome: 'reject' }]);
  });

  it('throws a TypeError that lists every problem of the options', () => {
    expect(() => openMeterSink({ url: 'https://x/path', subject: 1 } as never)).toThrow(
      /url must.*token must.*subject must/,
    );
  });
});

describe('replayDeadLetters', () => {
  it('gives rejected events to their sink once more, and keeps what it will still not have', async () => {
    const folder = tempFolder('replay');
    let strict = true;
    const got: number[] = [];
    const sink: Sink = {
      name: 'picky',
      limits: { lingerSeconds: 0, maxEvents: 2 },
      async write(events) {
        return events.map(({ seq }) => {
          if (strict || seq === 2) return { outcome: 'reject', reason: 'no' };
          got.push(seq);
          return { outcome: 'delivered' };
        });
      },
    };
    for (const spool of ['memory', { directory: folder.path }] as const) {
      strict = true;
      got.length = 0;
      const pipeline = createPipeline({ sinks: [sink], source: 'test', spool });
      for (let index = 0; index < 3; index++)
        await pipeline.record({ type: 'job', authId: 'k', quantities: {} } as never);
      await pipeline.flush();
      await vi.waitFor(() => expect(pipeline.stats().rejected).toBe(3));
      strict = false;
      expect(await replayDeadLetters({ pipeline, sink: 'picky' })).toEqual({ delivered: 2, kept: 1 });
      expect(got.sort()).toEqual([1, 3]);
      expect(await replayDeadLetters({ pipeline, sink: 'picky' })).toEqual({ delivered: 0, kept: 1 });
      await expect(replayDeadLetters({ pipeline, sink: 'nobody' })).rejects.toThrow(TypeError);
      await pipeline.close();
    }
    folder.remove();
  });

  it('loses no letter behind a line that a crash cut off, and gives none twice', async () => {
    const folder = tempFolder('torn');
    let strict = true;
    const got: number[] = [];
    const sink: Sink = {
      name: 's',
      limits: { lingerSeconds: 0 },
      async write(events) {
        if (strict) return events.map(() => ({ outcome: 'reject', reason: 'no' }));
        got.push(...events.map(({ seq }) => seq));
        return undefined;
      },
    };
    const pipeline = createPipeline({ sinks: [sink], source: 'test', spool: { directory: folder.path } });
    const record = () => pipeline.record({ type: 'job', authId: 'k', quantities: {} } as never);
    await record();
    await pipeline.flush();
    await appendFile(join(folder.path, 'dead-letters', 's.jsonl'), '{"at":"2026-03-01T00:0');
    await record();
    await pipeline.flush();
    strict = false;
    const [one, two] = await Promise.all([
      replayDeadLetters({ pipeline, sink: 's' }),
      replayDeadLetters({ pipeline, sink: 's' }),
    ]);
    expect([one, two]).toEqual([
      { delivered: 2, kept: 0 },
      { delivered: 0, kept: 0 },
    ]);
    expect(got.sort()).toEqual([1, 2]);
    await pipeline.close();
    folder.remove();
  });

  it('keeps the one letter that its batch is refused for, and no other', async () => {
    let strict = true;
    const got: number[] = [];
    const sink: Sink = {
      name: 's',
      limits: { lingerSeconds: 0 },
      async write(events) {
        if (strict) return events.map(() => ({ outcome: 'reject', reason: 'no' }));
        if (events.some(({ seq }) => seq === 41)) throw new SinkError('422', { action: 'split' });
        got.push(...events.map(({ seq }) => seq));
        return undefined;
      },
    };
    const pipeline = createPipeline({ sinks: [sink], source: 'test', spool: 'memory' });
    await Promise.all(
      Array.from({ length: 100 }, () => pipeline.record({ type: 'job', authId: 'k', quantities: {} } as never)),
    );
    await pipeline.flush();
    strict = false;
    expect(await replayDeadLetters({ pipeline, sink: 's' })).toEqual({ delivered: 99, kept: 1 });
    expect(new Set(got).size).toBe(99);
    expect(got).not.toContain(41);
    await pipeline.close();
  });

  it('keeps everything when the sink fails', async () => {
    let mode: 'reject' | 'fail' = 'reject';
    const sink: Sink = {
      name: 's',
      limits: { lingerSeconds: 0 },
      async write(events) {
        if (mode === 'fail') throw new Error('down');
        return events.map(() => ({ outcome: 'reject', reason: 'no' }));
      },
    };
    const pipeline = createPipeline({ sinks: [sink], source: 'test', spool: 'memory' });
    await pipeline.record({ type: 'job', authId: 'k', quantities: {} } as never);
    await pipeline.flush();
    mode = 'fail';
    expect(await replayDeadLetters({ pipeline, sink: 's' })).toEqual({ delivered: 0, kept: 1 });
    await pipeline.close();
    await expect(replayDeadLetters({ pipeline: {} as never, sink: '' })).rejects.toThrow(TypeError);
  });
});

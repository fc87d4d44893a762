import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import http2 from 'node:http2';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { Readable, pipeline as streamPipeline } from 'node:stream';
import compression from 'compression';
import {
  createPipeline,
  type MemorySink,
  type MeterOptions,
  memorySink,
  meter,
  type Pipeline,
  usageOf,
} from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

type Handler = (req: IncomingMessage, res: ServerResponse) => void;

let sink: MemorySink;
let pipeline: Pipeline;
let server: Server | http2.Http2Server;
let handled = 0;
let responses: ServerResponse[] = [];

beforeEach(() => {
  sink = memorySink();
  pipeline = createPipeline({ sinks: [sink], spool: 'memory', source: 'test' });
  handled = 0;
  responses = [];
});
afterEach(async () => {
  server.close();
  (server as Partial<Server>).closeAllConnections?.();
  await pipeline.close();
});

/** A listener of the identity, then what is given, then meter, then the handler. */
function listener(
  handler: Handler,
  options: Partial<MeterOptions> = {},
  around: { before?: unknown; after?: unknown } = {},
) {
  const steps = [
    asIdentity({ subject: { kind: 'user', id: 'u' }, authId: 'k' }),
    around.before,
    meter({ pipeline, type: 'call', ...options }),
    around.after,
  ].filter((step) => step !== undefined) as ((req: IncomingMessage, res: ServerResponse, next: () => void) => void)[];
  return (req: IncomingMessage, res: ServerResponse) => {
    const run = (index: number): void => {
      const step = steps[index];
      if (step !== undefined) return step(req, res, () => run(index + 1));
      handled += 1;
      responses.push(res);
      handler(req, res);
    };
    run(0);
  };
}

async function listen(
  handler: Handler,
  options?: Partial<MeterOptions>,
  around?: { before?: unknown; after?: unknown },
) {
  server = createServer(listener(handler, options, around)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

async function open(port: number, text: string): Promise<{ socket: Socket; received: () => string }> {
  const socket = connect(port, '127.0.0.1');
  let received = '';
  socket.setEncoding('latin1').on('data', (chunk) => {
    received += chunk;
  });
  socket.on('error', () => {});
  await once(socket, 'connect');
  socket.write(text);
  return { socket, received: () => received };
}

const get = (path = '/', more = '') => `GET ${path} HTTP/1.1\r\nHost: x\r\n${more}\r\n`;

/** Exactly this many events come, and none after. */
async function events(count: number) {
  await vi.waitFor(() => expect(pipeline.stats().written).toBe(count), { timeout: 5_000, interval: 5 });
  await new Promise((resolve) => setTimeout(resolve, 30));
  await pipeline.flush();
  expect(pipeline.stats()).toMatchObject({ written: count, inFlight: 0 });
  return sink.events.map(({ outcome, status, billable, quantities }) => ({ outcome, status, billable, quantities }));
}

const requests = { requests: { value: 1, basis: 'measured' } };
const complete = (status: number) => ({ outcome: 'complete', status, billable: true, quantities: requests });
const aborted = (status: number) => ({ outcome: 'client_aborted', status, billable: true, quantities: requests });

describe('one event per admitted request, over HTTP/1.1', () => {
  it.each([
    ['GET', 200],
    ['HEAD', 200],
    ['GET', 204],
    ['GET', 304],
    ['POST', 201],
  ])('%s that ends with %i', async (method, status) => {
    const port = await listen((_req, res) => {
      res.statusCode = status;
      res.end(status === 200 || status === 201 ? 'body' : undefined);
    });
    await fetch(`http://127.0.0.1:${port}`, { method, ...(method === 'POST' ? { body: 'x' } : {}) }).then((res) =>
      res.text(),
    );
    expect(await events(1)).toEqual([complete(status)]);
  });

  it('keep-alive: one for each request of a connection', async () => {
    const port = await listen((_req, res) => res.end('ok'));
    const { socket } = await open(port, get());
    for (let i = 0; i < 2; i++) {
      await once(socket, 'data');
      socket.write(get());
    }
    await once(socket, 'data');
    expect(await events(3)).toEqual([complete(200), complete(200), complete(200)]);
    socket.destroy();
  });

  it('pipelined: one for each, in whatever order they end', async () => {
    const port = await listen((req, res) => {
      setTimeout(() => res.end('ok'), req.url === '/slow' ? 30 : 0);
    });
    const { socket } = await open(port, get('/slow') + get('/fast') + get('/fast'));
    expect(await events(3)).toEqual([complete(200), complete(200), complete(200)]);
    socket.destroy();
  });

  it('pipelined behind an abort: the ones behind are told by the socket alone', async () => {
    const port = await listen((req, res) => {
      if (req.url !== '/first') res.end('ok');
    });
    const { socket } = await open(port, get('/first') + get('/second') + get('/third'));
    await vi.waitFor(() => expect(handled).toBe(3));
    socket.destroy();
    const all = await events(3);
    expect(all.map(({ outcome }) => outcome)).toEqual(['client_aborted', 'client_aborted', 'client_aborted']);
  });

  it('an abort before the headers is a 499', async () => {
    const port = await listen(() => {});
    const { socket } = await open(port, get());
    await vi.waitFor(() => expect(handled).toBe(1));
    socket.destroy();
    expect(await events(1)).toEqual([aborted(499)]);
  });

  it('an abort in the middle of a stream keeps its status, and bills what was used', async () => {
    const port = await listen((req, res) => {
      res.writeHead(200, { 'content-type': 'text/event-stream' });
      usageOf(req).add('output_tokens', 3);
      res.write('data: 1\n\n');
    });
    const { socket, received } = await open(port, get());
    await vi.waitFor(() => expect(received()).toContain('data: 1'));
    socket.destroy();
    expect(await events(1)).toEqual([
      { ...aborted(200), quantities: { ...requests, output_tokens: { value: 3, basis: 'reported' } } },
    ]);
  });

  it('a late end() after an abort changes nothing, and late usage is counted', async () => {
    let late = (): void => {};
    const port = await listen((req, res) => {
      const usage = usageOf(req);
      late = () => {
        usage.add('output_tokens', 100);
        res.end('late');
      };
    });
    const { socket } = await open(port, get());
    await vi.waitFor(() => expect(handled).toBe(1));
    socket.destroy();
    expect(await events(1)).toEqual([aborted(499)]);
    late();
    expect(await events(1)).toEqual([aborted(499)]);
    expect(pipeline.stats().lateUsage).toBe(1);
  });

  it('a client that is gone while ended bytes are unsent has aborted', async () => {
    const port = await listen((_req, res) => {
      res.end(Buffer.alloc(64 * 1024 * 1024));
    });
    const { socket } = await open(port, get());
    socket.pause();
    await vi.waitFor(() => expect(handled).toBe(1));
    socket.destroy();
    expect((await events(1)).map(({ outcome }) => outcome)).toEqual(['client_aborted']);
  });

  it('a POST is not over when its body is: the request closes first', async () => {
    let finish = (): void => {};
    const port = await listen((req, res) => {
      req.resume();
      finish = () => res.end('ok');
    });
    const { socket } = await open(port, 'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi');
    await vi.waitFor(() => expect(handled).toBe(1));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(pipeline.stats()).toMatchObject({ written: 0, inFlight: 1 });
    finish();
    expect(await events(1)).toEqual([complete(200)]);
    socket.destroy();
  });

  it.each([500, 502, 503])('a %i is a server error and is not billed', async (status) => {
    const port = await listen((_req, res) => {
      res.statusCode = status;
      res.end();
    });
    await fetch(`http://127.0.0.1:${port}`);
    expect(await events(1)).toEqual([{ outcome: 'server_error', status, billable: false, quantities: requests }]);
  });

  it('a connection that is gone at admission is not served at all', async () => {
    let release = (): void => {};
    const wait = (_req: unknown, _res: unknown, next: () => void) => {
      release = next;
    };
    const port = await listen((_req, res) => res.end(), {}, { before: wait });
    const { socket } = await open(port, get());
    await new Promise((resolve) => setTimeout(resolve, 30));
    socket.destroy();
    await new Promise((resolve) => setTimeout(resolve, 30));
    release();
    expect(await events(0)).toEqual([]);
    expect(handled).toBe(0);
  });
});

async function listen2(handler: Handler, options?: Partial<MeterOptions>): Promise<http2.ClientHttp2Session> {
  server = http2.createServer(listener(handler, options) as never).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const session = http2.connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  session.on('error', () => {});
  return session;
}

describe('one event per admitted request, over HTTP/2', () => {
  it('complete, for each stream', async () => {
    const session = await listen2((_req, res) => res.end('ok'));
    await Promise.all(
      [1, 2, 3].map(async () => {
        const stream = session.request({ ':path': '/' });
        stream.resume();
        await once(stream, 'end');
      }),
    );
    expect(await events(3)).toEqual([complete(200), complete(200), complete(200)]);
    session.destroy();
  });

  it.each([
    ['before the headers', false, 499],
    ['in the stream', true, 200],
  ])('aborted %s', async (_name, started, status) => {
    const session = await listen2((_req, res) => {
      if (started) res.write('x');
    });
    const stream = session.request({ ':path': '/' });
    stream.on('error', () => {});
    await vi.waitFor(() => expect(handled).toBe(1));
    if (started) await once(stream, 'data');
    stream.close(http2.constants.NGHTTP2_CANCEL);
    expect(await events(1)).toEqual([aborted(status)]);
    session.destroy();
  });

  it('aborted with the whole session', async () => {
    const session = await listen2(() => {});
    for (let i = 0; i < 3; i++) session.request({ ':path': '/' }).on('error', () => {});
    await vi.waitFor(() => expect(handled).toBe(3));
    session.destroy();
    expect((await events(3)).map(({ outcome }) => outcome)).toEqual(new Array(3).fill('client_aborted'));
  });

  it('leaves nothing on the socket of a long session', async () => {
    const session = await listen2((_req, res) => res.end('ok'));
    const sockets: object[] = [];
    server.on('session', ({ socket }) => sockets.push(socket));
    for (let i = 0; i < 3; i++) {
      const stream = session.request({ ':path': '/' });
      stream.resume();
      await once(stream, 'close');
    }
    await events(3);
    const [socket] = sockets as [Record<symbol, unknown>];
    expect(socket[Symbol.for('tollkeeper.waiting')] ?? []).toEqual([]);
    session.destroy();
  });

  it('a server error', async () => {
    const session = await listen2((_req, res) => {
      res.statusCode = 502;
      res.end();
    });
    const stream = session.request({ ':path': '/' });
    stream.resume();
    await once(stream, 'end');
    expect(await events(1)).toMatchObject([{ outcome: 'server_error', status: 502, billable: false }]);
    session.destroy();
  });
});

describe('a response that is cut off by the server', () => {
  const cut = (status: number) => ({ outcome: 'server_error', status, billable: status < 500, quantities: requests });
  const failed = Object.assign(new Error('aborted'), { code: 'ECONNRESET' });
  const ways: [string, (req: IncomingMessage, res: ServerResponse) => void][] = [
    ['by res.destroy()', (_req, res) => res.destroy()],
    ['by res.destroy(error), as of an upstream that broke off', (_req, res) => res.destroy(failed)],
    [
      'by stream.pipeline, whose source fails',
      (_req, res) => {
        const source = new Readable({ read() {} });
        streamPipeline(source, res, () => {});
        setImmediate(() => source.destroy(failed));
      },
    ],
  ];
  const onHttp1: typeof ways = [
    ...ways,
    ['by req.destroy()', (req) => req.destroy()],
    ['by req.socket.destroy()', (req) => req.socket.destroy()],
    ['by server.closeAllConnections()', () => (server as Server).closeAllConnections()],
    [
      'with bytes that were unsent',
      (_req, res) => {
        res.write(Buffer.alloc(64 * 1024 * 1024));
        res.destroy();
      },
    ],
  ];

  it.each(onHttp1)('is its error and not billed, over HTTP/1.1: %s', async (_name, end) => {
    const port = await listen((req, res) => {
      if (req.url === '/before') return end(req, res);
      res.write('data: 1\n\n');
      setTimeout(() => end(req, res), 20);
      return undefined;
    });
    const { socket } = await open(port, get('/stream'));
    await once(socket, 'close');
    expect(await events(1)).toEqual([cut(200)]);
  });

  it.each(ways)('is its error and not billed, over HTTP/2: %s', async (_name, end) => {
    const session = await listen2((req, res) => {
      res.write('data: 1\n\n');
      setTimeout(() => end(req, res), 20);
    });
    const stream = session.request({ ':path': '/' }).on('error', () => {});
    stream.resume();
    await new Promise((resolve) => stream.once('close', resolve));
    expect(await events(1)).toEqual([cut(200)]);
    session.destroy();
  });

  it('before its headers is a 500', async () => {
    const port = await listen((_req, res) => res.destroy());
    const { socket } = await open(port, get());
    await once(socket, 'close');
    expect(await events(1)).toEqual([cut(500)]);
    const session = await listen2((_req, res) => res.destroy());
    const stream = session.request({ ':path': '/' }).on('error', () => {});
    stream.resume();
    await new Promise((resolve) => stream.once('close', resolve));
    expect(await events(2)).toEqual([cut(500), cut(500)]);
    session.destroy();
  });

  it('takes along what is pipelined behind it', async () => {
    const port = await listen((req, res) => {
      if (req.url === '/first') setTimeout(() => res.destroy(), 20);
      else res.end('ok');
    });
    const { socket } = await open(port, get('/first') + get('/second'));
    await once(socket, 'close');
    expect((await events(2)).map(({ outcome }) => outcome)).toEqual(['server_error', 'server_error']);
  });

  it.each([
    ['ends', (socket: Socket) => socket.end()],
    ['destroys its socket', (socket: Socket) => socket.destroy()],
    ['resets its socket', (socket: Socket) => socket.resetAndDestroy()],
  ])('is not what a client is that %s, although the handler then destroys the response', async (_name, leave) => {
    for (const post of [false, true]) {
      const port = await listen((req, res) => {
        req.on('error', () => {});
        req.on('aborted', () => res.destroy(failed));
        res.write('data: 1\n\n');
      });
      const head = post ? 'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\npart' : get();
      const { socket, received } = await open(port, head);
      await vi.waitFor(() => expect(received()).toContain('data: 1'));
      leave(socket);
      expect((await events(post ? 2 : 1)).at(-1)).toEqual(aborted(200));
      server.close();
    }
  });

  it.each([
    ['resets the stream without a code', (stream: http2.ClientHttp2Stream) => void stream.close()],
    ['destroys the stream', (stream: http2.ClientHttp2Stream) => void stream.destroy()],
    ['destroys the session', ({ session }: http2.ClientHttp2Stream) => session?.destroy()],
  ])('is not what a client over HTTP/2 is that %s', async (_name, leave) => {
    const session = await listen2((_req, res) => {
      res.write('x');
    });
    const stream = session.request({ ':path': '/' }).on('error', () => {});
    await once(stream, 'data');
    leave(stream);
    expect(await events(1)).toEqual([aborted(200)]);
    session.destroy();
  });

  it('is not what a client over HTTP/2 is whose socket is reset', async () => {
    let client: Socket | undefined;
    const session = await listen2((_req, res) => {
      res.write('x');
    });
    session.destroy();
    const { port } = server.address() as AddressInfo;
    const raw = http2.connect(`http://127.0.0.1:${port}`, {
      createConnection: () => {
        client = connect(port, '127.0.0.1');
        return client;
      },
    });
    raw.on('error', () => {});
    const stream = raw.request({ ':path': '/' }).on('error', () => {});
    await once(stream, 'data');
    client?.resetAndDestroy();
    expect(await events(1)).toEqual([aborted(200)]);
    raw.destroy();
  });
});

describe('counting bytes', () => {
  const measure: MeterOptions['measure'] = ['request_bytes', 'response_bytes'];

  it('replaces nothing on the response unless it is asked for', async () => {
    const port = await listen((_req, res) => res.end('ok'));
    await fetch(`http://127.0.0.1:${port}`);
    await events(1);
    for (const name of ['write', 'end', 'writeHead', 'setHeader'])
      expect(Object.hasOwn(responses[0] as object, name)).toBe(false);
  });

  it.each([
    ['end with a string', (res: ServerResponse) => res.end('héllo'), 6],
    ['end with an encoding', (res: ServerResponse) => res.end('00ff', 'hex'), 2],
    ['end with a callback', (res: ServerResponse) => res.end(() => {}), 0],
    [
      'write, then end with a buffer',
      (res: ServerResponse) => {
        res.write(Buffer.alloc(10), () => {});
        res.end(Buffer.alloc(5), () => {});
      },
      15,
    ],
    [
      'write with an encoding',
      (res: ServerResponse) => {
        res.write('é', 'latin1');
        res.end();
      },
      1,
    ],
  ] as const)('counts %s', async (_name, answer, bytes) => {
    const port = await listen(
      (req, res) => {
        req.resume();
        req.on('end', () => answer(res));
      },
      { measure },
    );
    await fetch(`http://127.0.0.1:${port}`, { method: 'POST', body: 'four' }).then((res) => res.arrayBuffer());
    const [event] = await events(1);
    expect(event?.quantities).toEqual({
      ...requests,
      request_bytes: { value: 4, basis: 'measured' },
      response_bytes: { value: bytes, basis: 'measured' },
    });
  });

  it('counts no body where none was sent', async () => {
    const port = await listen((_req, res) => res.end('body'), { measure });
    await fetch(`http://127.0.0.1:${port}`, { method: 'HEAD' });
    expect((await events(1))[0]?.quantities.response_bytes?.value).toBe(0);
  });

  it('leaves back-pressure and the values of write() as they are', async () => {
    const returned: boolean[] = [];
    const port = await listen(
      (_req, res) => {
        returned.push(res.write(Buffer.alloc(1024)), res.write(Buffer.alloc(4 * 1024 * 1024)));
        res.once('drain', () => res.end());
      },
      { measure },
    );
    const body = await fetch(`http://127.0.0.1:${port}`).then((res) => res.arrayBuffer());
    expect(body.byteLength).toBe(1024 + 4 * 1024 * 1024);
    expect(returned.at(-1)).toBe(false);
    expect((await events(1))[0]?.quantities.response_bytes?.value).toBe(1024 + 4 * 1024 * 1024);
  });

  it.each([
    [
      'before compression, the compressed bytes',
      { after: compression({ threshold: 0 }) },
      (bytes: number) => bytes < 2_000,
    ],
    [
      'behind compression, what the handler wrote',
      { before: compression({ threshold: 0 }) },
      (bytes: number) => bytes === 100_000,
    ],
  ])('works on both sides of compression: %s', async (_name, around, expected) => {
    const port = await listen(
      (_req, res) => {
        res.setHeader('content-type', 'text/plain');
        res.end('x'.repeat(100_000));
      },
      { measure },
      around,
    );
    const text = await fetch(`http://127.0.0.1:${port}`).then((res) => res.text());
    expect(text.length).toBe(100_000);
    const [event] = await events(1);
    expect(expected(event?.quantities.response_bytes?.value as number)).toBe(true);
  });

  it('counts a chunked request body, and leaves the count away when part of it is unknown', async () => {
    const port = await listen(
      (req, res) => {
        req.resume();
        req.on('end', () => res.end());
      },
      { measure: ['request_bytes'] },
    );
    const { socket } = await open(
      port,
      'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n',
    );
    await once(socket, 'data');
    expect((await events(1))[0]?.quantities.request_bytes).toEqual({ value: 8, basis: 'measured' });
    socket.destroy();
  });
});

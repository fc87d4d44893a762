import type { IncomingMessage, ServerResponse } from 'node:http';
import { request as httpRequest } from 'node:http';
import connect from 'connect';
import express, { type Request, type Response } from 'express';
import express4 from 'express4';
import fc from 'fast-check';
import {
  type AccessError,
  authenticate,
  createRevocations,
  createTokenRegistry,
  identityOf,
  memoryLedger,
  memoryTokenStore,
  opaqueTokenVerifier,
  requireScope,
  staticTokenVerifier,
  type TokenStore,
} from 'tollkeeper';
import { type AdminHandler, type AdminRouterOptions, adminRouter } from 'tollkeeper/admin';
import { manualClock, usageEvent } from 'tollkeeper/testing';
import { afterEach, describe, expect, it } from 'vitest';
import { rawRequest } from '../support/raw-request.js';
import { type Served, serve } from '../support/serve.js';
import { pepper } from '../tokens/registry-app.js';

const ADMIN = 'the-administrators-own-token';
const READER = 'a-token-without-that-scope';
const guard = [
  authenticate({
    verifiers: [
      staticTokenVerifier({
        tokens: [
          {
            token: ADMIN,
            identity: { subject: { kind: 'user', id: 'root' }, authId: 'root', scopes: ['clients:admin'] },
          },
          { token: READER, identity: { subject: { kind: 'user', id: 'joe' }, authId: 'joe' } },
        ],
      }),
    ],
  }),
  requireScope('clients:admin'),
];

const open: Served[] = [];
afterEach(async () => {
  for (const served of open.splice(0)) await served.close();
});

async function listen(app: Parameters<typeof serve>[0]): Promise<string> {
  const served = await serve(app);
  open.push(served);
  return served.url;
}

function registryOf(store: TokenStore = memoryTokenStore(), clock = manualClock()) {
  return createTokenRegistry({ store, peppers: { current: pepper }, prefix: 'acme', clock });
}

interface Answered {
  readonly status: number;
  readonly headers: Headers;
  // biome-ignore lint/suspicious/noExplicitAny: whatever the server answers.
  readonly body: any;
}

function asker(url: string, token: string | null = ADMIN) {
  return async (
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<Answered> => {
    const res = await fetch(url + path, {
      method,
      headers: {
        ...(token === null ? {} : { authorization: `Bearer ${token}` }),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
    });
    const text = await res.text();
    return { status: res.status, headers: res.headers, body: text === '' ? undefined : JSON.parse(text) };
  };
}

async function mounted(options: Partial<AdminRouterOptions> = {}) {
  const registry = options.registry ?? registryOf();
  const app = express();
  app.use('/admin', adminRouter({ registry, guard, ...options }));
  const url = `${await listen(app)}/admin`;
  return { registry, url, ask: asker(url) };
}

describe('adminRouter', () => {
  it('refuses to be made without a guard, and wrong options, all at once', () => {
    const registry = registryOf();
    for (const wrong of [undefined, null, {}, [], [guard[0], undefined], true]) {
      expect(() => adminRouter({ registry, guard: wrong as never })).toThrow(/adminRouter: guard must be a middleware/);
    }
    const wrong = { registry: {}, ledger: {}, maxBodyBytes: 0, onError: 1, gaurd: guard };
    expect(() => adminRouter(wrong as never)).toThrow(
      /unknown option "gaurd" \(did you mean "guard"\?\).*registry must.*guard must.*ledger must.*maxBodyBytes must.*onError must/,
    );
  });

  const routes: [string, string, unknown?][] = [
    ['GET', '/clients'],
    ['POST', '/clients', { name: 'x' }],
    ['GET', '/clients/cl_1'],
    ['PATCH', '/clients/cl_1', { name: 'x' }],
    ['DELETE', '/clients/cl_1'],
    ['GET', '/clients/cl_1/tokens'],
    ['POST', '/clients/cl_1/tokens', { scopes: [] }],
    ['GET', '/clients/cl_1/usage'],
    ['GET', '/tokens'],
    ['GET', '/tokens/1'],
    ['PATCH', '/tokens/1', {}],
    ['DELETE', '/tokens/1'],
    ['POST', '/tokens/1/rotate', {}],
    ['PUT', '/clients', {}],
    ['GET', '/clients/'],
    ['GET', '/clients?limit=1'],
  ];

  it.each(routes)('serves %s %s to nobody whom the guard does not let through', async (method, path, body) => {
    const store = memoryTokenStore();
    const touched: string[] = [];
    const watched = Object.fromEntries(
      Object.entries(store).map(([name, call]) => [
        name,
        (...args: never[]) => {
          touched.push(name);
          return (call as (...args: never[]) => unknown)(...args);
        },
      ]),
    ) as unknown as TokenStore;
    const { url } = await mounted({ registry: registryOf(watched), ledger: memoryLedger() });
    expect((await asker(url, '')(method, path, body)).status).toBe(400);
    const nobody = await fetch(url + path, { method, ...(body === undefined ? {} : { body: JSON.stringify(body) }) });
    expect([nobody.status, nobody.headers.get('www-authenticate')]).toEqual([401, 'Bearer']);
    expect((await asker(url, 'wrong-token-of-some-length')(method, path, body)).status).toBe(401);
    const reader = await asker(url, READER)(method, path, body);
    expect([reader.status, reader.body.code]).toEqual([403, 'insufficient_scope']);
    expect(touched).toEqual([]);
    expect((await asker(url)(method, path, body)).status).not.toBe(401);
  });

  it('lets the app go on where the path is not its own, without asking the guard', async () => {
    const registry = registryOf();
    const app = express();
    app.use(adminRouter({ registry, guard }), (_req: Request, res: Response) => void res.json('the app'));
    const url = await listen(app);
    for (const path of [
      '/',
      '/client',
      '/clients/a/b',
      '/clients/a/tokens/b',
      '/tokens/a/rotate/now',
      '//clients',
      '/clients/a/usage',
    ]) {
      expect((await asker(url, null)('GET', path)).body).toBe('the app');
    }
    expect((await fetch(`${url}/clients`)).status).toBe(401);
  });

  it('does the whole life of a client and its tokens', async () => {
    const { registry, ask } = await mounted();
    const created = await ask('POST', '/clients', {
      name: 'Customer',
      tenant: 't',
      plan: 'free',
      metadata: { crm: 7 },
    });
    expect(created.status).toBe(201);
    expect(created.headers.get('content-type')).toBe('application/json');
    expect(created.headers.get('cache-control')).toBe('no-store');
    const client = created.body;
    expect(created.headers.get('location')).toBe(`/admin/clients/${client.id}`);
    expect(client).toEqual(await registry.getClient(client.id));
    expect((await ask('GET', `/clients/${client.id}`)).body).toEqual(client);
    expect((await ask('PATCH', `/clients/${client.id}`, { plan: 'pro', metadata: null })).body).toMatchObject({
      plan: 'pro',
      version: 2,
      name: 'Customer',
    });

    const issued = await ask('POST', `/clients/${client.id}/tokens`, {
      scopes: ['scan:read'],
      groups: ['3', '1', '2'],
    });
    expect(issued.status).toBe(201);
    const { token, record } = issued.body;
    expect(issued.headers.get('location')).toBe(`/admin/tokens/${record.id}`);
    expect(token).toMatch(/^acme_sk_live_/);
    expect(record.groups).toEqual(['3', '1', '2']);
    expect((await ask('GET', `/tokens/${record.id}`)).body).toEqual(record);
    expect((await ask('GET', `/clients/${client.id}/tokens`)).body).toEqual({ items: [record] });
    expect((await ask('GET', `/tokens?clientId=${client.id}&limit=5`)).body).toEqual({ items: [record] });
    const same = await ask('POST', `/clients/${client.id}/tokens`, { clientId: client.id, scopes: [] });
    expect(same.status).toBe(201);

    const rotated = await ask('POST', `/tokens/${record.id}/rotate`, { overlapSeconds: 60 });
    expect([rotated.status, rotated.body.record.authId, rotated.body.record.rotatedFrom]).toEqual([
      201,
      record.authId,
      record.id,
    ]);
    const again = await ask('POST', `/tokens/${record.id}/rotate`);
    expect([again.status, again.body]).toEqual([
      409,
      {
        title: 'Conflict',
        status: 409,
        code: 'conflict',
        detail: 'the token was rotated already',
        problems: ['the token was rotated already'],
      },
    ]);
    for (let count = 0; count < 2; count++) {
      const revoked = await ask('DELETE', `/tokens/${rotated.body.record.id}`);
      expect([revoked.status, revoked.body]).toEqual([204, undefined]);
    }
    expect((await ask('GET', `/tokens/${rotated.body.record.id}`)).body.status).toBe('revoked');
    expect((await ask('DELETE', `/clients/${client.id}`)).status).toBe(204);
    expect((await ask('DELETE', `/clients/${client.id}`)).status).toBe(404);
    expect((await ask('GET', '/tokens')).body.items.map(({ status }: { status: string }) => status)).toEqual(
      Array(3).fill('revoked'),
    );
    expect(JSON.stringify((await ask('GET', '/tokens')).body)).not.toContain(token.slice(30, 73));
  });

  it('patches as told: a list replaces the whole list, [] clears it, absent keeps it', async () => {
    const { registry, ask } = await mounted();
    const client = await registry.createClient({ name: 'c' });
    const { record } = await registry.issueToken({
      clientId: client.id,
      scopes: ['a:read', 'b:read'],
      groups: ['3', '1', '2'],
    });
    const patch = async (body: object) => (await ask('PATCH', `/tokens/${record.id}`, body)).body;
    expect(await patch({ groups: ['2', '3'] })).toMatchObject({ groups: ['2', '3'], scopes: ['a:read', 'b:read'] });
    expect(await patch({ scopes: ['b:read'] })).toMatchObject({ groups: ['2', '3'], scopes: ['b:read'] });
    expect(await patch({})).toMatchObject({ groups: ['2', '3'], scopes: ['b:read'] });
    expect(await patch({ groups: [] })).toMatchObject({ groups: [], scopes: ['b:read'] });
    const wrong = await patch({ groups: ['1', '2', '1'], scopes: ['x:any'], expiresAt: 5 });
    expect(wrong).toMatchObject({ status: 400, code: 'invalid_input' });
    expect(wrong.problems).toHaveLength(3);
    expect((await registry.getToken(record.id))?.groups).toEqual([]);
  });

  it('pages lists', async () => {
    const { registry, ask } = await mounted();
    for (let index = 0; index < 5; index++) await registry.createClient({ name: `c${index}`, tenant: `t${index % 2}` });
    const names: string[] = [];
    let cursor = '';
    for (let pages = 0; pages < 5; pages++) {
      const { status, body } = await ask('GET', `/clients?limit=2${cursor}`);
      expect(status).toBe(200);
      names.push(...body.items.map(({ name }: { name: string }) => name));
      if (body.nextCursor === undefined) break;
      cursor = `&cursor=${body.nextCursor}`;
    }
    expect(names).toEqual(['c0', 'c1', 'c2', 'c3', 'c4']);
    expect((await ask('GET', '/clients?tenant=t1')).body.items).toHaveLength(2);
    for (const query of [
      'limit=0',
      'limit=x',
      'limit=1e3',
      'limit=',
      'cursor=x',
      'cursor=-1',
      'limt=5',
      '__proto__=1',
    ]) {
      expect((await ask('GET', `/clients?${query}`)).status).toBe(400);
    }
  });

  it('answers with problem details: 404, 405, 409', async () => {
    const { ask } = await mounted();
    await ask('POST', '/clients', { name: 'n' });
    const cases: [string, string, unknown, number, string][] = [
      ['GET', '/clients/cl_unknown', undefined, 404, 'not_found'],
      ['GET', '/clients/%00', undefined, 404, 'not_found'],
      ['GET', '/clients/%zz', undefined, 404, 'not_found'],
      ['PATCH', '/clients/cl_unknown', {}, 404, 'not_found'],
      ['POST', '/clients/cl_unknown/tokens', { scopes: [] }, 404, 'not_found'],
      ['GET', '/clients/cl_unknown/tokens', undefined, 404, 'not_found'],
      ['GET', '/tokens/unknown', undefined, 404, 'not_found'],
      ['DELETE', '/tokens/unknown', undefined, 404, 'not_found'],
      ['POST', '/tokens/unknown/rotate', {}, 404, 'not_found'],
      ['POST', '/clients', { name: 'n' }, 409, 'name_taken'],
      ['POST', '/clients', {}, 400, 'invalid_input'],
      ['POST', '/clients/cl_a/tokens', { clientId: 'cl_b', scopes: [] }, 400, 'invalid_input'],
      ['PUT', '/clients', {}, 405, 'method_not_allowed'],
      ['DELETE', '/tokens', undefined, 405, 'method_not_allowed'],
    ];
    for (const [method, path, body, status, code] of cases) {
      const res = await ask(method, path, body);
      expect([path, res.status, res.body.status, res.body.code]).toEqual([path, status, status, code]);
      expect(res.headers.get('content-type')).toBe('application/problem+json');
      expect(res.headers.get('cache-control')).toBe('no-store');
      expect(res.body.problems.length).toBeGreaterThan(0);
    }
    expect((await ask('PUT', '/clients', {})).headers.get('allow')).toBe('GET, POST');
    const head = await fetch(`${(await mounted()).url}/clients`, {
      method: 'HEAD',
      headers: { authorization: `Bearer ${ADMIN}` },
    });
    expect(head.status).toBe(200);
  });

  it('answers hostile bodies with 400, 413 or 415, never with 500', async () => {
    const { url, ask } = await mounted({ maxBodyBytes: 1_000 });
    const json = 'application/json';
    const bodies: [string, string, number][] = [
      ['', json, 400],
      ['{', json, 400],
      ['[]', json, 400],
      ['null', json, 400],
      ['"x"', json, 400],
      ['{"name":"x"} trailing', json, 400],
      ['{"__proto__":{"name":"x"}}', json, 400],
      ['{"constructor":1}', json, 400],
      ['{"name":{"toString":1}}', json, 400],
      [`{"metadata":${'['.repeat(400)}${']'.repeat(400)},"name":"x"}`, json, 400],
      [`{"name":"${'x'.repeat(2_000)}"}`, json, 413],
      ['{"name":"x"}', 'text/plain', 415],
      ['name=x', 'application/x-www-form-urlencoded', 415],
      ['{"name":"x"}', 'application/jsonp', 415],
    ];
    for (const [body, type, status] of bodies) {
      const res = await ask('POST', '/clients', body, { 'content-type': type });
      expect([body.slice(0, 30), res.status]).toEqual([body.slice(0, 30), status]);
    }
    const compressed = await ask('POST', '/clients', '{"name":"x"}', { 'content-encoding': 'gzip' });
    expect(compressed.status).toBe(415);
    expect(
      (await ask('POST', '/clients', '{"name":"x"}', { 'content-type': 'application/merge-patch+json' })).status,
    ).toBe(201);
    const latin = await fetch(`${url}/clients`, {
      method: 'POST',
      headers: { authorization: `Bearer ${ADMIN}`, 'content-type': json },
      body: Buffer.from('{"name":"\xfc"}', 'latin1'),
    });
    expect(latin.status).toBe(400);
  });

  it('stops reading a body that is too large, and closes the connection', async () => {
    const { url } = await mounted({ maxBodyBytes: 1_000 });
    const { port } = new URL(url);
    const head = [
      'POST /admin/clients HTTP/1.1',
      'Host: x',
      `Authorization: Bearer ${ADMIN}`,
      'Content-Type: application/json',
    ];
    const chunk = `400\r\n${'x'.repeat(1_024)}\r\n`;
    const answer = await rawRequest(Number(port), [...head, 'Transfer-Encoding: chunked', '', chunk].join('\r\n'));
    expect(answer).toMatch(/^HTTP\/1\.1 413 /);
    expect(answer).toMatch(/connection: close/i);
  });

  it('survives a client that leaves in the middle of its body', async () => {
    const { url, ask } = await mounted();
    const req = httpRequest(`${url}/clients`, {
      method: 'POST',
      headers: { authorization: `Bearer ${ADMIN}`, 'content-type': 'application/json', 'content-length': '500' },
    });
    req.on('error', () => {});
    req.write('{"name":');
    await new Promise((resolve) => setTimeout(resolve, 50));
    req.destroy();
    expect((await ask('GET', '/clients')).body).toEqual({ items: [] });
  });

  it('never answers 500 to any JSON', async () => {
    const { registry, ask } = await mounted();
    const client = await registry.createClient({ name: 'c' });
    const { record } = await registry.issueToken({ clientId: client.id, scopes: [] });
    const value = fc.oneof(fc.jsonValue(), fc.constantFrom('x'.repeat(65_536), '\u0000', '\ud800', -1, 1e300));
    const field = fc.constantFrom(
      'name',
      'tenant',
      'plan',
      'metadata',
      'scopes',
      'groups',
      'resources',
      'subject',
      'expiresAt',
      '__proto__',
    );
    const body = fc.oneof(fc.jsonValue(), fc.dictionary(field, value));
    const paths: [string, string][] = [
      ['POST', '/clients'],
      ['PATCH', `/clients/${client.id}`],
      ['POST', `/clients/${client.id}/tokens`],
      ['PATCH', `/tokens/${record.id}`],
      ['POST', `/tokens/${record.id}/rotate`],
    ];
    await fc.assert(
      fc.asyncProperty(body, fc.constantFrom(...paths), async (sent, [method, path]) => {
        const text = JSON.stringify(sent);
        const answer = ask(method, path, text);
        // The rest of one that is too large may meet the connection that its answer has closed.
        if (Buffer.byteLength(text) > 262_144)
          expect(
            await answer.then(
              ({ status }) => status,
              () => 413,
            ),
          ).toBe(413);
        else expect([200, 201, 400, 404, 409]).toContain((await answer).status);
      }),
      { numRuns: 150 },
    );
  });

  it('takes a body that express.json() has parsed, and reads one that another parser left alone', async () => {
    for (const make of [express, express4 as unknown as typeof express]) {
      for (const parser of [
        express.json(),
        express.text({ type: '*/*' }),
        express.raw({ type: '*/*' }),
        express.urlencoded({ extended: false }),
        (express4 as unknown as typeof express).urlencoded({ extended: false }),
        (express4 as unknown as typeof express).json(),
      ]) {
        const registry = registryOf();
        const app = make();
        app.use(parser as express.RequestHandler, adminRouter({ registry, guard }) as never);
        const ask = asker(await listen(app));
        const created = await ask('POST', '/clients', { name: 'ünïcode' });
        expect([created.status, created.body.name]).toEqual([201, 'ünïcode']);
        expect((await ask('PATCH', `/clients/${created.body.id}`, { plan: 'pro' })).body.plan).toBe('pro');
        expect((await ask('POST', '/clients', [])).status).toBe(400);
        expect((await ask('POST', '/clients')).status).toBe(400);
      }
    }
  });

  it('refuses a body that somebody has read and not left', async () => {
    const app = express();
    app.use(
      (req, _res, next) => void req.resume().on('end', () => next()),
      adminRouter({ registry: registryOf(), guard }),
    );
    expect((await asker(await listen(app))('POST', '/clients', { name: 'x' })).status).toBe(400);
  });

  it.each([
    ['Express 5', (router: AdminHandler) => express().use('/admin', router)],
    ['Express 4', (router: AdminHandler) => (express4 as unknown as typeof express)().use('/admin', router)],
    ['Connect', (router: AdminHandler) => connect().use('/admin', router)],
    [
      'node:http',
      (router: AdminHandler) => (req: IncomingMessage, res: ServerResponse) => {
        req.url = (req.url ?? '').slice('/admin'.length);
        router(req, res);
      },
    ],
  ] as const)('serves under %s', async (_, mount) => {
    const ask = asker(`${await listen(mount(adminRouter({ registry: registryOf(), guard })) as never)}/admin`);
    const created = await ask('POST', '/clients', { name: 'n' });
    expect(created.status).toBe(201);
    expect((await ask('POST', '/clients', { name: 'n' })).status).toBe(409);
    const issued = await ask('POST', `/clients/${created.body.id}/tokens`, { scopes: ['a:read'] });
    expect(issued.status).toBe(201);
    expect((await ask('POST', `/tokens/${issued.body.record.id}/rotate`, {})).status).toBe(201);
    expect((await ask('DELETE', `/clients/${created.body.id}`)).status).toBe(204);
  });

  it('answers by itself where no framework stands behind it', async () => {
    const registry = registryOf();
    const strict = [authenticate({ verifiers: [opaqueTokenVerifier({ registry })], errors: 'next' })];
    const ask = asker(await listen((req, res) => adminRouter({ registry, guard: strict })(req, res)), null);
    expect(await ask('GET', '/nowhere')).toMatchObject({ status: 404, body: { code: 'not_found' } });
    expect(await ask('GET', '/clients')).toMatchObject({ status: 401, body: { code: 'missing_credentials' } });
    const broken = adminRouter({ registry, guard: () => Promise.reject(new Error('secret')) });
    const outage = await asker(await listen((req, res) => broken(req, res)))('GET', '/clients');
    expect(outage).toMatchObject({ status: 503, body: { code: 'registry_unavailable' } });
    expect(JSON.stringify(outage.body)).not.toContain('secret');
  });

  it.each([
    [
      'throws',
      () => {
        throw new Error('x');
      },
    ],
    [
      'throws undefined',
      () => {
        throw undefined;
      },
    ],
    [
      'rejects',
      async () => {
        throw new Error('x');
      },
    ],
    ['rejects with undefined', () => Promise.reject(undefined)],
    ['calls next with an error', (_: Request, __: Response, next: (error: unknown) => void) => next(new Error('x'))],
    ['calls next with false', (_: Request, __: Response, next: (error: unknown) => void) => next(false)],
  ])('serves nothing when the guard %s', async (_, bad) => {
    const registry = registryOf();
    const app = express();
    app.use('/admin', adminRouter({ registry, guard: bad as never }));
    app.use((_req: Request, res: Response) => void res.status(418).json('past it'));
    app.use((_error: unknown, _req: Request, res: Response, _next: () => void) => void res.status(500).json('handler'));
    const { status, body } = await asker(await listen(app))('POST', '/admin/clients', { name: 'n' });
    expect([500, 418]).toContain(status);
    expect(body).not.toHaveProperty('id');
    expect((await registry.listClients()).items).toEqual([]);
  });

  it('passes a guard that is asynchronous once, and not after it has answered', async () => {
    const registry = registryOf();
    let mode = 'twice';
    const odd = async (_req: Request, res: Response, next: () => void) => {
      await Promise.resolve();
      if (mode === 'answers') res.status(403).json({ code: 'mine' });
      next();
      next();
    };
    const app = express();
    app.use(adminRouter({ registry, guard: odd }));
    const ask = asker(await listen(app));
    const client = await registry.createClient({ name: 'a' });
    expect((await ask('POST', `/clients/${client.id}/tokens`, { scopes: [] })).status).toBe(201);
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect((await registry.listTokens()).items).toHaveLength(1);
    mode = 'answers';
    expect(await ask('POST', '/clients', { name: 'b' })).toMatchObject({ status: 403, body: { code: 'mine' } });
    expect((await registry.listClients()).items).toHaveLength(1);
  });

  it('answers 503 while the store is down, tells the app, and repeats nothing of the error', async () => {
    let failure: unknown = new Error('password=hunter2');
    const store: TokenStore = {
      ...memoryTokenStore(),
      listClients: async () => {
        throw failure;
      },
    };
    const told: unknown[] = [];
    const { ask } = await mounted({
      registry: registryOf(store),
      onError: (error, req) => {
        told.push(error, req.url);
        throw new Error('listener');
      },
    });
    const down = await ask('GET', '/clients');
    expect([down.status, down.body.code, down.headers.get('retry-after')]).toEqual([503, 'registry_unavailable', '5']);
    expect(JSON.stringify(down.body)).not.toContain('hunter2');
    expect(told).toEqual([failure, '/clients']);
    failure = undefined;
    expect((await ask('GET', '/clients')).status).toBe(503);
  });

  it('answers 503 when others cannot be told of a change, which can be repeated', async () => {
    let down = true;
    const revocations = createRevocations({
      store: {
        append: async () => {
          if (down) throw new Error('down');
        },
        read: async () => ({ entries: [], cursor: '0', more: false, continued: true, asOf: Date.now() }),
      },
    });
    const registry = createTokenRegistry({
      store: memoryTokenStore(),
      peppers: { current: pepper },
      prefix: 'acme',
      revocations,
    });
    const { ask } = await mounted({ registry });
    const client = await registry.createClient({ name: 'c' });
    expect((await ask('DELETE', `/clients/${client.id}`)).status).toBe(503);
    down = false;
    expect((await ask('DELETE', `/clients/${client.id}`)).status).toBe(204);
    await revocations.close();
  });

  it('holds on the next request of the API beside it', async () => {
    const registry = registryOf();
    const app = express();
    app.use('/admin', adminRouter({ registry, guard }));
    app.get(
      '/scans',
      authenticate({ verifiers: [opaqueTokenVerifier({ registry })] }),
      requireScope('scan:read'),
      (req, res) => {
        res.json(identityOf(req).groups);
      },
    );
    const url = await listen(app);
    const ask = asker(`${url}/admin`);
    const client = (await ask('POST', '/clients', { name: 'c' })).body;
    const { token, record } = (
      await ask('POST', `/clients/${client.id}/tokens`, { scopes: ['scan:read'], groups: ['3', '1', '2'] })
    ).body;
    const scans = asker(url, token);
    expect((await scans('GET', '/scans')).body).toEqual(['3', '1', '2']);
    await ask('PATCH', `/tokens/${record.id}`, { groups: ['2', '3'] });
    expect((await scans('GET', '/scans')).body).toEqual(['2', '3']);
    await ask('PATCH', `/tokens/${record.id}`, { scopes: [] });
    expect((await scans('GET', '/scans')).status).toBe(403);
    await ask('PATCH', `/tokens/${record.id}`, { scopes: ['scan:read'] });
    expect((await scans('GET', '/scans')).status).toBe(200);
    const rotated = (await ask('POST', `/tokens/${record.id}/rotate`)).body;
    expect([(await scans('GET', '/scans')).status, (await asker(url, rotated.token)('GET', '/scans')).status]).toEqual([
      401, 200,
    ]);
    await ask('DELETE', `/clients/${client.id}`);
    expect((await asker(url, rotated.token)('GET', '/scans')).status).toBe(401);
  });

  it('reports the usage of a client, of a deleted one too, when a ledger is given', async () => {
    const clock = manualClock(Date.UTC(2026, 2, 20));
    const ledger = memoryLedger();
    const registry = registryOf(memoryTokenStore(), clock);
    const { ask } = await mounted({ registry, ledger, clock });
    const [client, idle] = [await registry.createClient({ name: 'c' }), await registry.createClient({ name: 'idle' })];
    await ledger.write(
      [
        usageEvent({ seq: 1, clientId: client.id, type: 'scan' }),
        usageEvent({ seq: 2, clientId: client.id, type: 'clearance' }),
        usageEvent({ seq: 3, clientId: 'cl_other' }),
      ],
      new AbortController().signal,
    );
    const usage = await ask('GET', `/clients/${client.id}/usage`);
    expect(usage.status).toBe(200);
    expect(usage.body.rows).toMatchObject([{ key: { clientId: client.id }, events: 2, quantities: { requests: 2 } }]);
    const byType = await ask(
      'GET',
      `/clients/${client.id}/usage?groupBy=type&from=2026-03-01T00:00:00Z&to=2026-04-01T00:00:00Z`,
    );
    expect(byType.body.rows.map(({ key }: { key: object }) => key)).toEqual(
      expect.arrayContaining([{ type: 'scan' }, { type: 'clearance' }]),
    );
    const daily = await ask('GET', `/clients/${client.id}/usage?interval=day`);
    expect(daily.body.rows[0].from).toBe('2026-03-01T00:00:00.000Z');
    expect((await ask('GET', `/clients/${idle.id}/usage`)).body.rows).toEqual([]);
    expect((await ask('GET', '/clients/cl_unknown/usage')).status).toBe(404);
    await registry.deleteClient(client.id);
    expect((await ask('GET', `/clients/${client.id}/usage`)).body.rows).toHaveLength(1);
    for (const query of ['from=yesterday', 'groupBy=nothing', 'interval=week', 'quantities=x', 'filter=x', 'x=1']) {
      const status = query === 'filter=x' ? 200 : 400;
      expect([query, (await ask('GET', `/clients/${client.id}/usage?${query}`)).status]).toEqual([query, status]);
    }
    const huge = { usage: async () => ({ rows: [{ quantities: { requests: 2n ** 60n, small: 5n } }] }) as never };
    const { ask: askHuge } = await mounted({ registry, ledger: huge });
    expect((await askHuge('GET', `/clients/${client.id}/usage`)).body.rows).toEqual([
      { quantities: { requests: '1152921504606846976', small: 5 } },
    ]);
    const down = { usage: async () => Promise.reject(new Error('down') as AccessError) };
    const { ask: askDown } = await mounted({ registry, ledger: down });
    expect((await askDown('GET', `/clients/${client.id}/usage`)).status).toBe(503);
  });
});

import express, { type Request } from 'express';
import fc from 'fast-check';
import {
  authenticate,
  createPipeline,
  type EdgeMapping,
  type EdgeTrust,
  type EdgeVerifierOptions,
  edgeVerifier,
  memorySink,
  meter,
  requireScope,
  type StaticToken,
  signEdgeHeaders,
  staticTokenVerifier,
  stripEdgeHeaders,
} from 'tollkeeper';
import { afterEach, describe, expect, it } from 'vitest';
import { rawGet, rawRequest } from '../support/raw-request.js';
import { type Served, serve } from '../support/serve.js';

const open: Served[] = [];
afterEach(async () => {
  for (const served of open.splice(0)) await served.close();
});

const PREFIX = 'x-saturn-';
const here = { peers: ['127.0.0.1'] };
const elsewhere = { peers: ['10.0.0.0/8'] };
const map = {
  authId: 'X-Saturn-Auth-Id',
  tenant: 'x-saturn-org',
  'resource.id': 'x-saturn-resource-id',
  'resource.type': 'x-saturn-resource-type',
};
const SECRET = 'an edge secret of at least thirty-two bytes';

async function listen(options: Partial<EdgeVerifierOptions>, before: express.RequestHandler[] = []) {
  const app = express();
  app.use(...before, authenticate({ verifiers: [edgeVerifier({ prefix: PREFIX, trust: here, map, ...options })] }));
  app.use((req, res) => {
    res.json({ identity: req.identity ?? null });
  });
  const served = await serve(app);
  open.push(served);
  return async (headers: readonly string[], path = '/') => {
    const answer = await rawGet(served.port, headers, path);
    const body = JSON.parse(answer.slice(answer.indexOf('\r\n\r\n') + 4)) as Record<string, never>;
    return { status: Number(answer.slice(9, 12)), body, answer };
  };
}

describe('edgeVerifier', () => {
  it('makes an identity of what a trusted peer states, and captures every header under the prefix verbatim', async () => {
    const ask = await listen({});
    const { body } = await ask([
      'X-Saturn-Auth-Id: key-1',
      'x-saturn-ORG: acme',
      'X-Saturn-Foo: Bar, "baz"',
      'X-Saturn-Many: 1',
      'X-Saturn-Many: 2',
      'X-Saturn-Blank: ',
      'X-Other: no',
    ]);
    expect(body.identity).toEqual({
      subject: { kind: 'user', id: 'key-1' },
      issuer: 'edge',
      authId: 'key-1',
      tenant: 'acme',
      scopes: [],
      groups: [],
      verifier: 'edge',
      claims: {
        'x-saturn-auth-id': 'key-1',
        'x-saturn-org': 'acme',
        'x-saturn-foo': 'Bar, "baz"',
        'x-saturn-many': ['1', '2'],
        'x-saturn-blank': '',
      },
    });
  });

  it('maps a subject, a client, a plan, scopes and ranked groups', async () => {
    const ask = await listen({
      name: 'saturn',
      map: {
        authId: 'x-saturn-key',
        subject: 'x-saturn-user',
        'subject.kind': 'x-saturn-kind',
        clientId: 'x-saturn-client',
        tokenId: 'x-saturn-token',
        plan: 'x-saturn-plan',
        scopes: 'x-saturn-scopes',
        groups: 'x-saturn-groups',
      },
    });
    const headers = [
      'x-saturn-key: k',
      'x-saturn-user: svc',
      'x-saturn-kind: service',
      'x-saturn-client: c',
      'x-saturn-token: t',
      'x-saturn-plan: pro',
      'x-saturn-scopes: a:read  b:read *',
      'x-saturn-groups: 3, 1,,2',
    ];
    const { body } = await ask(headers);
    expect(body.identity).toMatchObject({
      subject: { kind: 'service', id: 'svc' },
      issuer: 'saturn',
      clientId: 'c',
      tokenId: 't',
      plan: 'pro',
      scopes: ['a:read', 'b:read'],
      groups: ['3', '1', '2'],
    });
    const unknown = await ask(headers.map((header) => header.replace('service', 'robot')));
    expect([unknown.status, unknown.body.code]).toEqual([401, 'invalid_token']);
  });

  it('takes a function of the headers', async () => {
    const ask = await listen({
      map: (headers): EdgeMapping => {
        if (headers['x-saturn-break'] !== undefined) throw new Error('broken');
        return { authId: headers['x-saturn-id'] as string, resource: { id: 'r' } };
      },
    });
    expect((await ask(['x-saturn-id: k'])).body.identity).toMatchObject({ authId: 'k' });
    expect((await ask(['x-saturn-break: 1'])).status).toBe(503);
  });

  it('trusts only listed peers, and an empty list nobody', async () => {
    for (const trust of [elsewhere, { peers: [] }]) {
      const ask = await listen({ trust });
      const { status, body } = await ask(['x-saturn-auth-id: key-1', 'X-Forwarded-For: 10.0.0.1']);
      expect([status, body.code]).toEqual([401, 'missing_credentials']);
    }
  });

  it.each([
    [['X-Saturn-Auth-Id: a', 'x-saturn-auth-id: a'], 400],
    [['X-Saturn-Auth-Id: a', 'x-saturn-org: 1', 'x-saturn-org: 2'], 400],
    [['X-Saturn-Auth-Id: a', 'x-saturn-foo: 1', 'x-saturn-foo: 2'], 200],
  ])('refuses a mapped header that is sent twice: %j → %i', async (headers, status) => {
    const ask = await listen({});
    expect((await ask(headers)).status).toBe(status);
  });

  it.each([
    [[]],
    [['x-saturn-auth-id: ']],
    [['x-saturn-auth-id:    ', 'x-saturn-org: acme']],
    [['x_saturn_auth_id: forged']],
  ])('attaches no identity to incomplete headers, and the gates behind refuse: %j', async (headers) => {
    const app = express();
    app.use(authenticate({ verifiers: [edgeVerifier({ prefix: PREFIX, trust: here, map })] }));
    app.get('/open', (req, res) => void res.json({ identity: req.identity ?? null }));
    app.get('/guarded', requireScope('a:read'), (_req, res) => void res.json('in'));
    const served = await serve(app);
    open.push(served);
    expect(await rawGet(served.port, headers, '/open')).toContain('{"identity":null}');
    expect(await rawGet(served.port, headers, '/guarded')).toMatch(/^HTTP\/1.1 401/);
  });

  it('is never cached: two requests with one bearer token and other headers are two callers', async () => {
    const ask = await listen({});
    for (const id of ['a', 'b']) {
      const { body } = await ask(['Authorization: Bearer same', `x-saturn-auth-id: ${id}`]);
      expect(body.identity).toMatchObject({ authId: id });
    }
  });

  it('throws a TypeError that lists every problem of the options', () => {
    const options = {
      prefix: 'X Saturn',
      trust: { peers: ['nowhere'] },
      map: { tenant: 'x-other', authid: 'x' },
      name: '',
    };
    expect(() => edgeVerifier(options as never)).toThrow(
      /prefix must be.*trust\.peers: "nowhere".*name must be.*did you mean "authId".*must be a header under the prefix.*map\.authId is needed/,
    );
    expect(() => edgeVerifier({ prefix: PREFIX, map } as never)).toThrow('trust must be an object');
    expect(() => edgeVerifier({ prefix: PREFIX, map, trust: {} } as never)).toThrow('either peers or a secret');
    expect(() => edgeVerifier({ prefix: PREFIX, map, trust: { secret: 'short' } })).toThrow('at least 32 bytes');
    expect(() => edgeVerifier({ prefix: PREFIX, map, trust: { secret: 42 } } as never)).toThrow('at least 32 bytes');
    expect(() => edgeVerifier({ prefix: PREFIX, trust: here } as never)).toThrow('map must be an object');
  });
});

describe('edgeVerifier with a signature', () => {
  const trust = { secret: SECRET, maxAgeSeconds: 30 };
  const clock = { now: () => 1_700_000_000_000, monotonic: () => 0 };
  const headers = [
    ['X-Saturn-Auth-Id', 'key-1'],
    ['x-saturn-org', 'acme'],
  ] as const;
  const sign = (overrides: object = {}, secret: string | Uint8Array = SECRET) =>
    signEdgeHeaders(secret, { method: 'GET', url: '/v1/a?b=1', headers, timestamp: 1_700_000_000, ...overrides });
  const lines = (signature: string, more: readonly string[] = []) => [
    'x-saturn-org: acme',
    'x-saturn-auth-id: key-1',
    `X-Saturn-Signature: ${signature}`,
    ...more,
  ];

  it('takes a good signature from any peer, also below a mounted path', async () => {
    const app = express();
    app.use('/v1', authenticate({ verifiers: [edgeVerifier({ prefix: PREFIX, trust, map, clock })] }), (req, res) => {
      res.json(req.identity);
    });
    const served = await serve(app);
    open.push(served);
    const answer = await rawGet(served.port, lines(sign()), '/v1/a?b=1');
    expect(answer).toMatch(/^HTTP\/1.1 200/);
    expect(answer).not.toContain('signature');
  });

  it.each([
    ['another secret', sign({}, 'another edge secret of at least 32 bytes')],
    ['another method', sign({ method: 'POST' })],
    ['another URL', sign({ url: '/v1/a?b=2' })],
    [
      'another value',
      sign({
        headers: [
          ['x-saturn-auth-id', 'key-2'],
          ['x-saturn-org', 'acme'],
        ],
      }),
    ],
    ['a header less', sign({ headers: [['x-saturn-auth-id', 'key-1']] })],
    ['too old', sign({ timestamp: 1_700_000_000 - 31 })],
    ['too far in the future', sign({ timestamp: 1_700_000_000 + 31 })],
    ['another timestamp in front', sign().replace('t=1700000000', 't=1700000001')],
    ['nonsense', 'nonsense'],
    ['empty', ''],
    ['truncated', sign().slice(0, -1)],
    ['trailing', `${sign()}=`],
  ])('refuses a signature that is wrong: %s', async (_name, signature) => {
    const ask = await listen({ trust, clock });
    const { status, body } = await ask(lines(signature), '/v1/a?b=1');
    expect([status, body.code]).toEqual([401, 'invalid_token']);
  });

  it('takes a signature at the edge of its age', async () => {
    const ask = await listen({ trust: { secret: Buffer.from(SECRET), maxAgeSeconds: 30 }, clock });
    expect((await ask(lines(sign({ timestamp: 1_700_000_000 - 30 })), '/v1/a?b=1')).status).toBe(200);
  });

  it('is one that an edge in any language can make: over the bytes on the wire', async () => {
    const parts = ['v1', '1700000000', 'GET', '/v1/a?b=1', 'x-saturn-auth-id', 'key-1', 'x-saturn-org', 'Zürich'];
    const signed = parts.map((part) => `${Buffer.byteLength(part)}:${part}`).join('');
    expect(signed).toBe('2:v110:17000000003:GET9:/v1/a?b=116:x-saturn-auth-id5:key-112:x-saturn-org7:Zürich');
    // echo -n "$signed" | openssl dgst -sha256 -hmac "$SECRET" -binary | base64url
    const signature = 't=1700000000,v=JS-fStqggjjU-xFTgEUX6glmDDBAel27-7qeCS9owhU';
    const ask = await listen({ trust, clock });
    const sent = ['X-Saturn-Org: Zürich', 'X-Saturn-Auth-Id: key-1', `X-Saturn-Signature: ${signature}`];
    expect((await ask(sent, '/v1/a?b=1')).status).toBe(200);
    expect((await ask(sent.toSpliced(0, 1, 'X-Saturn-Org: Zurich'), '/v1/a?b=1')).status).toBe(401);
  });

  it('counts headers that the edge did not sign as forgery', async () => {
    const ask = await listen({ trust, clock });
    expect((await ask(lines(sign(), ['x-saturn-plan: pro']), '/v1/a?b=1')).status).toBe(401);
    expect((await ask(lines(sign()).slice(0, 2), '/v1/a?b=1')).body.code).toBe('missing_credentials');
    expect((await ask(lines(sign(), [`x-saturn-signature: ${sign()}`]), '/v1/a?b=1')).status).toBe(401);
  });

  it('strips what is not signed', async () => {
    const strip = stripEdgeHeaders({ prefix: PREFIX, trust, clock }) as express.RequestHandler;
    const ask = await listen({ trust, clock }, [strip]);
    expect((await ask(lines(sign()), '/v1/a?b=1')).status).toBe(200);
    expect((await ask(lines('t=1,v=x'), '/v1/a?b=1')).body.code).toBe('missing_credentials');
  });
});

describe('stripEdgeHeaders', () => {
  /** A header of the edge, with letters in any case and other signs for its hyphens. */
  const spelling = fc.constantFrom('auth-id', 'org', 'resource-id', 'foo', 'signature').chain((rest) =>
    fc
      .array(fc.tuple(fc.boolean(), fc.constantFrom('-', '_', '-', '.', '~', '!')), { minLength: 24, maxLength: 24 })
      .map((choices) =>
        [...`${PREFIX}${rest}`]
          .map((char, index) => {
            const [upper, sign] = choices[index] as [boolean, string];
            return char === '-' ? sign : upper ? char.toUpperCase() : char;
          })
          .join(''),
      ),
  );
  const spellings = fc.array(spelling, { minLength: 1, maxLength: 6 });
  const path = fc.constantFrom('/', '//', '/v1/../x', '/%2e%2e/', '/?x-saturn-auth-id=1', '/%00', '*');

  /** An API behind everything that there is, which answers with all that its handler sees, before and after the body. */
  async function whole(trust: EdgeTrust, order: 'edge first' | 'edge last') {
    const sink = memorySink();
    const pipeline = createPipeline({ sinks: [sink], spool: 'memory', source: 'test' });
    const known = { token: 'a-token-of-somebody-known', identity: { subject: { kind: 'user', id: 'u' }, authId: 'u' } };
    const verifiers = [
      edgeVerifier({ prefix: PREFIX, trust, map }),
      staticTokenVerifier({ tokens: [known as StaticToken] }),
    ];
    const app = express();
    const gate = authenticate({ verifiers: order === 'edge first' ? verifiers : verifiers.reverse() });
    app.use(stripEdgeHeaders({ prefix: PREFIX, trust }), gate, meter({ pipeline, type: 'x' }));
    const views = ({ headers, headersDistinct, rawHeaders, trailers, trailersDistinct, rawTrailers }: Request) => [
      Object.entries(headers),
      Object.entries(headersDistinct),
      rawHeaders,
      Object.entries(trailers),
      Object.entries(trailersDistinct),
      rawTrailers,
    ];
    app.use(async (req, res) => {
      const seen: unknown[] = [views(req), req.identity, Object.entries(req.headers), req.get('x-saturn-auth-id')];
      // The body has arrived by now, and nobody has read it.
      await new Promise((resolve) => setImmediate(resolve));
      seen.push(views(req));
      for await (const _ of req) seen.push(views(req));
      seen.push(views(req));
      res.json({ seen, other: req.headers['x-other'] });
    });
    const served = await serve(app);
    open.push(served);
    return { port: served.port, sink, pipeline };
  }

  it.each(['edge first', 'edge last'] as const)(
    'lets nothing of an untrusted peer reach the handler, the identity or the event, however it is spelt: %s',
    async (order) => {
      for (const trust of [elsewhere, { peers: [] }, { secret: SECRET }]) {
        const { port, sink, pipeline } = await whole(trust, order);
        await fc.assert(
          fc.asyncProperty(spellings, spellings, path, async (names, trailers, where) => {
            const forged = (name: string) => `${name}: FORGED`;
            const lines = [
              `POST ${where} HTTP/1.1`,
              'Host: localhost',
              'X-Other: kept',
              ...names.map(forged),
              'Authorization: Bearer a-token-of-somebody-known',
              'X-Saturnine: near',
              'x-saturn: short',
              'Transfer-Encoding: chunked',
              'Connection: close',
              '',
              '4',
              'body',
              '0',
              ...trailers.map(forged),
              '',
              '',
            ];
            const answer = await rawRequest(port, lines.join('\r\n'));
            expect(answer).toMatch(/^HTTP\/1.1 200/);
            expect(answer).not.toContain('FORGED');
            expect(answer).not.toMatch(/x[^a-z]saturn[^a-z"]/i);
            expect(answer).toContain('"other":"kept"');
            expect(answer).toContain('"X-Saturnine","near","x-saturn","short"');
          }),
          { numRuns: 60 },
        );
        await pipeline.close();
        expect(sink.events.length).toBeGreaterThanOrEqual(60);
        for (const event of sink.events) expect(event).toMatchObject({ authId: 'u', verifier: 'static' });
        expect(JSON.stringify(sink.events)).not.toMatch(/FORGED|saturn/i);
      }
    },
    60_000,
  );

  it('refuses whoever shows nothing else: no identity, no handler, no event', async () => {
    const { port, sink, pipeline } = await whole(elsewhere, 'edge first');
    await fc.assert(
      fc.asyncProperty(spellings, path, async (names, where) => {
        const answer = await rawGet(
          port,
          names.map((name) => `${name}: FORGED`),
          where,
        );
        expect(answer).toMatch(/^HTTP\/1.1 401/);
        expect(answer).not.toContain('FORGED');
      }),
      { numRuns: 60 },
    );
    await pipeline.close();
    expect(sink.events).toEqual([]);
  });

  it('removes from a trusted peer what only looks like its headers, since it may come from a caller of the edge', async () => {
    const { port, pipeline } = await whole(here, 'edge first');
    const answer = await rawGet(port, [
      'X-Saturn-Auth-Id: k',
      'X-Saturn-Many: 1',
      'x-saturn-many: 2',
      'X_Saturn_Auth_Id: FORGED',
      'x-saturn.org: FORGED',
      'X-Saturn-Foo_Bar: kept',
    ]);
    expect(answer).not.toContain('FORGED');
    expect(answer).toContain('"x-saturn-many":["1","2"]');
    expect(answer).toContain('"x-saturn-foo_bar":"kept"');
    await pipeline.close();
  });

  it('leaves a trusted peer alone', async () => {
    const strip = stripEdgeHeaders({ prefix: PREFIX, trust: here }) as express.RequestHandler;
    const ask = await listen({}, [strip]);
    expect((await ask(['x-saturn-auth-id: k'])).body.identity).toMatchObject({ authId: 'k' });
  });

  it('throws a TypeError for wrong options', () => {
    expect(() => stripEdgeHeaders({ prefix: '', trust: here })).toThrow('prefix must be');
    expect(() => stripEdgeHeaders({ prefix: PREFIX, trust: here, map } as never)).toThrow('unknown option "map"');
  });
});

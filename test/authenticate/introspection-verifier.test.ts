import type { IncomingMessage, ServerResponse } from 'node:http';
import { type IntrospectionVerifierOptions, introspectionVerifier, jwtVerifier } from 'tollkeeper';
import { manualClock } from 'tollkeeper/testing';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type GuardedApi, guardedApi } from '../support/guarded-api.js';
import { signed, testKey } from '../support/identity-provider.js';
import { type OidcServer, oidcServer } from '../support/oidc-server.js';
import { serve } from '../support/serve.js';

const closing: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

const SECRET = 's3cret: with+signs/%&=';
const CREDENTIALS = { clientId: 'api 1', clientSecret: SECRET };

interface Question {
  readonly authorization: string | undefined;
  readonly type: string | undefined;
  readonly method: string | undefined;
  readonly form: Record<string, string>;
}

interface Server {
  readonly url: string;
  readonly questions: Question[];
  /** What it answers: an object as JSON, or whatever the function does. */
  answer: object | string | ((req: IncomingMessage, res: ServerResponse) => void);
}

/** An introspection endpoint over real HTTP that answers as it is told. */
async function server(): Promise<Server> {
  const questions: Question[] = [];
  const served = await serve(async (req, res) => {
    let body = '';
    for await (const chunk of req) body += chunk;
    const { authorization, 'content-type': type } = req.headers;
    questions.push({ authorization, type, method: req.method, form: Object.fromEntries(new URLSearchParams(body)) });
    const { answer } = one;
    if (typeof answer === 'function') return answer(req, res);
    res.setHeader('content-type', 'application/json');
    res.end(typeof answer === 'string' ? answer : JSON.stringify(answer));
  });
  closing.push(() => served.close());
  const one: Server = { url: served.url, questions, answer: { active: false } };
  return one;
}

async function setup(options: Partial<IntrospectionVerifierOptions> = {}) {
  const clock = manualClock(Date.now());
  const as = await server();
  const verifier = introspectionVerifier({
    endpoint: `${as.url}/introspect`,
    credentials: CREDENTIALS,
    clock,
    // A loaded machine answers in that time, too.
    timeoutSeconds: 1,
    ...options,
  });
  const api: GuardedApi = await guardedApi({ verifiers: [verifier], clock });
  closing.push(
    () => verifier.close(),
    () => api.close(),
  );
  const now = () => Math.floor(clock.now() / 1_000);
  return { clock, as, verifier, api, now };
}

describe('tokens of a real OpenID provider', () => {
  let oidc: OidcServer;
  beforeAll(async () => {
    oidc = await oidcServer();
  });
  afterAll(() => oidc.close());

  it.each(['basic', 'post'] as const)(
    'are asked about with %s authentication, until they are revoked',
    async (method) => {
      const clock = manualClock(Date.now());
      const verifier = introspectionVerifier({
        endpoint: oidc.introspection,
        credentials: { ...oidc.client, method },
        issuer: oidc.issuer,
        clock,
      });
      const api = await guardedApi({ verifiers: [verifier], clock });
      closing.push(() => api.close());
      const token = await oidc.token({ scope: 'a:read a:write' });
      const { status, identity } = await api.get(token);
      expect(status).toBe(200);
      expect(identity).toMatchObject({
        subject: { kind: 'service', id: 'app-1' },
        issuer: oidc.issuer,
        authId: 'app-1',
        clientId: 'app-1',
        scopes: ['a:read', 'a:write'],
        verifier: 'introspection',
      });
      expect(identity?.expiresAt).toBeGreaterThan(clock.now() / 1_000);
      await oidc.revoke(token);
      expect((await api.get(token)).status).toBe(200);
      clock.advance(60);
      expect((await api.get(token)).status).toBe(401);
      expect((await api.get('nonsense')).status).toBe(401);
    },
  );

  it('are an outage, not a refusal, while our own credentials are wrong', async () => {
    const verifier = introspectionVerifier({
      endpoint: oidc.introspection,
      credentials: { clientId: oidc.client.clientId, clientSecret: 'wrong' },
    });
    const api = await guardedApi({ verifiers: [verifier] });
    closing.push(() => api.close());
    expect(await api.get(await oidc.token())).toMatchObject({ status: 503, code: 'verifier_unavailable' });
    expect(JSON.stringify(api.reasons)).toBe('["introspection: it answered with the status 401"]');
  });
});

describe('what the server is asked', () => {
  it('is form-encoded, and id and secret are encoded before they are joined', async () => {
    const { as, api } = await setup();
    expect((await api.get('tok~1+/=')).status).toBe(401);
    expect(as.questions).toEqual([
      {
        method: 'POST',
        type: 'application/x-www-form-urlencoded',
        authorization: `Basic ${Buffer.from('api+1:s3cret%3A+with%2Bsigns%2F%25%26%3D').toString('base64')}`,
        form: { token: 'tok~1+/=', token_type_hint: 'access_token' },
      },
    ]);
  });

  it('carries the credentials in the body, or a bearer token, where that is said', async () => {
    const post = await setup({ credentials: { ...CREDENTIALS, method: 'post' } });
    await post.api.get('t');
    expect(post.as.questions[0]).toMatchObject({
      authorization: undefined,
      form: { token: 't', client_id: 'api 1', client_secret: SECRET },
    });
    const bearer = await setup({ credentials: { bearerToken: 'abc.def' } });
    await bearer.api.get('t');
    expect(bearer.as.questions[0]).toMatchObject({ authorization: 'Bearer abc.def', form: { token: 't' } });
  });

  it('is asked once about a token, however many requests show it at once', async () => {
    const { as, api } = await setup();
    as.answer = (_req, res) => void setTimeout(() => res.end(JSON.stringify({ active: true, sub: 'u' })), 30);
    const answers = await Promise.all(Array.from({ length: 50 }, () => api.get('t')));
    expect(answers.every(({ status }) => status === 200)).toBe(true);
    expect(as.questions).toHaveLength(1);
  });

  it('is asked once for two APIs that share the verifier', async () => {
    const { as, verifier, api } = await setup();
    const other = await guardedApi({ verifiers: [verifier] });
    closing.push(() => other.close());
    as.answer = (_req, res) => void setTimeout(() => res.end(JSON.stringify({ active: true, sub: 'u' })), 30);
    const answers = await Promise.all([api.get('t'), other.get('t')]);
    expect(answers.map(({ status }) => status)).toEqual([200, 200]);
    expect(as.questions).toHaveLength(1);
  });

  it('is asked about no more than 128 tokens at the same time', async () => {
    const { as, api } = await setup({ timeoutSeconds: 60 });
    const waiting: ServerResponse[] = [];
    as.answer = (_req, res) => void waiting.push(res);
    const answers: Promise<{ status: number }>[] = [];
    const arrived = async (count: number) => {
      while (waiting.length < count) await new Promise((resolve) => setTimeout(resolve, 5));
    };
    // A few at a time: one process accepts what it connects to, and the queue of a listening socket is short.
    for (let i = 1; i <= 128; i++) {
      answers.push(api.get(`t-${i}`));
      if (i % 8 === 0) await arrived(i);
    }
    for (let i = 129; i <= 132; i++) expect((await api.get(`t-${i}`)).status).toBe(503);
    for (const res of waiting) res.end('{"active":true,"sub":"u"}');
    const statuses = (await Promise.all(answers)).map(({ status }) => status);
    expect(statuses).toEqual(new Array(128).fill(200));
  }, 60_000);
});

describe('an active answer', () => {
  it('is reused for its time to live, and no longer than the token lives', async () => {
    const { as, api, clock, now } = await setup({ ttlSeconds: 30 });
    as.answer = { active: true, sub: 'u', exp: now() + 1_000 };
    for (let i = 0; i < 5; i++) expect((await api.get('t')).status).toBe(200);
    clock.advance(29);
    expect((await api.get('t')).status).toBe(200);
    expect(as.questions).toHaveLength(1);
    as.answer = { active: false };
    clock.advance(1);
    expect((await api.get('t')).status).toBe(401);
    expect(as.questions).toHaveLength(2);
    as.answer = { active: true, sub: 'u', exp: now() + 10 };
    expect((await api.get('short')).identity?.expiresAt).toBe(now() + 10);
    clock.advance(16);
    expect((await api.get('short')).status).toBe(401);
  });

  it('is asked for every time when its time to live is 0', async () => {
    const { as, api } = await setup({ ttlSeconds: 0 });
    as.answer = { active: true, sub: 'u' };
    for (let i = 0; i < 3; i++) expect((await api.get('t')).status).toBe(200);
    expect(as.questions).toHaveLength(3);
  });

  it('becomes an identity', async () => {
    const { as, api, now } = await setup();
    const answer = {
      active: true,
      scope: 'a:read b:*',
      client_id: 'app',
      username: 'jane',
      token_type: 'Bearer',
      exp: now() + 60,
      iat: now() - 5,
      nbf: now() - 5,
      sub: 'u-1',
      aud: ['x', 'y'],
      iss: 'https://as.example',
      jti: 'j-1',
      tenant_id: 't-1',
      plan: null,
    };
    as.answer = answer;
    const { identity } = await api.get('t');
    expect(identity).toMatchObject({
      subject: { kind: 'user', id: 'u-1' },
      authId: 'app',
      clientId: 'app',
      tokenId: 'j-1',
      tenant: 't-1',
      scopes: ['a:read'],
      issuer: 'https://as.example',
      issuedAt: now() - 5,
      expiresAt: now() + 60,
      claims: answer,
    });
    expect(identity).not.toHaveProperty('plan');
    as.answer = { active: true, sub: 'u-1', client_id: 'app', auth_id: 'key-1' };
    expect((await api.get('t3')).identity).toMatchObject({ authId: 'key-1', clientId: 'app' });
    as.answer = { active: true, sub: 'u-2', exp: null, iat: null, iss: null, cnf: null, token_type: null };
    expect((await api.get('t2')).identity).toMatchObject({ authId: 'u-2', issuer: 'introspection', scopes: [] });
  });

  it('follows map and identify', async () => {
    const { as, api } = await setup({
      map: { subject: 'username', tenant: '/ext/tenant', plan: undefined },
      identify: (claims, { authId }) => ({ groups: [String(claims.username), authId] }),
      name: 'partner',
    });
    as.answer = { active: true, username: 'jane', client_id: 'app', ext: { tenant: 't-9' } };
    expect((await api.get('t')).identity).toMatchObject({
      subject: { kind: 'user', id: 'jane' },
      tenant: 't-9',
      groups: ['jane', 'app'],
      issuer: 'partner',
      verifier: 'partner',
    });
    const broken = await setup({
      identify: () => {
        throw new Error('x');
      },
    });
    broken.as.answer = { active: true, sub: 'u' };
    expect((await broken.api.get('t')).status).toBe(503);
  });

  const past = Math.floor(Date.now() / 1_000) - 60;
  it.each<[string, object, Partial<IntrospectionVerifierOptions>]>([
    ['active is a text', { active: 'true', sub: 'u' }, {}],
    ['active is 1', { active: 1, sub: 'u' }, {}],
    ['active is an object', { active: {}, sub: 'u' }, {}],
    ['active is missing', { sub: 'u' }, {}],
    ['active is null', { active: null, sub: 'u' }, {}],
    ['the token has expired', { active: true, sub: 'u', exp: past }, {}],
    ['the expiry is a text', { active: true, sub: 'u', exp: '9999999999' }, {}],
    ['the token is not valid yet', { active: true, sub: 'u', nbf: past + 600 }, {}],
    ['nobody is named', { active: true }, {}],
    ['the subject is a number', { active: true, sub: 7 }, {}],
    ['the scope is a number', { active: true, sub: 'u', scope: 7 }, {}],
    ['it is a refresh token', { active: true, sub: 'u', token_type: 'refresh_token' }, {}],
    ['it is a refresh token by its typ', { active: true, sub: 'u', typ: 'Refresh' }, {}],
    ['it is an offline token', { active: true, sub: 'u', typ: 'Offline' }, {}],
    ['it is an id token', { active: true, sub: 'u', typ: 'ID' }, {}],
    ['it is bound to a key', { active: true, sub: 'u', cnf: { jkt: 'x' } }, {}],
    ['it needs a proof of possession', { active: true, sub: 'u', token_type: 'DPoP' }, {}],
    ['it is of another issuer', { active: true, sub: 'u', iss: 'https://b' }, { issuer: 'https://a' }],
    ['its issuer is a number', { active: true, sub: 'u', iss: 7 }, {}],
    ['it is for another audience', { active: true, sub: 'u', aud: 'b' }, { audience: 'a' }],
    ['it states no audience', { active: true, sub: 'u' }, { audience: ['a', 'b'] }],
    ['it is nested beyond measure', { active: true, sub: 'u', x: JSON.parse('['.repeat(100) + ']'.repeat(100)) }, {}],
  ])('refuses the token when %s', async (_name, answer, options) => {
    const { as, api } = await setup(options);
    as.answer = answer;
    expect(await api.get('t')).toMatchObject({ status: 401, code: 'invalid_token' });
    as.answer = { active: true, sub: 'u', iss: options.issuer, aud: 'a' };
    expect((await api.get('t')).status).toBe(200);
  });

  it('may waive the audience', async () => {
    const { as, api } = await setup({ audience: null });
    as.answer = { active: true, sub: 'u', aud: 7 };
    expect((await api.get('t')).status).toBe(200);
  });
});

describe('an inactive answer', () => {
  it('is remembered for a while, per token', async () => {
    const { as, api, clock } = await setup();
    for (let i = 0; i < 10; i++) expect((await api.get('t')).status).toBe(401);
    expect(as.questions).toHaveLength(1);
    as.answer = { active: true, sub: 'u' };
    expect((await api.get('u')).status).toBe(200);
    clock.advance(9);
    expect((await api.get('t')).status).toBe(401);
    clock.advance(1);
    expect((await api.get('t')).status).toBe(200);
    expect(as.questions).toHaveLength(3);
  });
});

describe('a server that', () => {
  it.each<[string, (req: IncomingMessage, res: ServerResponse) => void]>([
    ['hangs', () => {}],
    ['hangs in the middle of its answer', (_req, res) => void res.write('{"active":tr')],
    [
      'drips',
      (_req, res) => {
        const timer = setInterval(() => res.write(' '), 20);
        res.on('close', () => clearInterval(timer));
      },
    ],
    ['closes the connection', (req) => void req.socket.destroy()],
    ['answers with 500', (_req, res) => void res.writeHead(500).end()],
    ['answers with 401', (_req, res) => void res.writeHead(401).end()],
    ['answers with 403 and an active answer', (_req, res) => void res.writeHead(403).end('{"active":true,"sub":"u"}')],
    ['answers with 201 and an active answer', (_req, res) => void res.writeHead(201).end('{"active":true,"sub":"u"}')],
    ['redirects', (_req, res) => void res.writeHead(307, { location: '/elsewhere' }).end()],
    ['answers with garbage', (_req, res) => void res.end('<html>active: true</html>')],
    ['answers with half of it', (_req, res) => void res.end('{"active":true')],
    ['answers with an array', (_req, res) => void res.end('[{"active":true}]')],
    ['answers with a text', (_req, res) => void res.end('"active"')],
    ['answers with null', (_req, res) => void res.end('null')],
    ['answers with nothing', (_req, res) => void res.end()],
    [
      'answers with too much',
      (_req, res) => void res.end(JSON.stringify({ active: true, sub: 'u', x: 'x'.repeat(70_000) })),
    ],
  ])('%s is an outage, and works again at once when it does', async (_name, answer) => {
    const { as, api } = await setup();
    as.answer = { active: true, sub: 'u' };
    expect((await api.get('known')).status).toBe(200);
    as.answer = answer;
    const refused = await api.get('secret-token-abc');
    expect(refused).toMatchObject({ status: 503, code: 'verifier_unavailable' });
    expect(refused.headers['retry-after']).toBe('5');
    expect(JSON.stringify([refused, api.reasons])).not.toMatch(/secret-token|s3cret/);
    expect((await api.get('known')).status).toBe(200);
    as.answer = { active: true, sub: 'u' };
    expect((await api.get('secret-token-abc')).status).toBe(200);
  });

  it('is gone is an outage', async () => {
    const verifier = introspectionVerifier({ endpoint: 'http://127.0.0.1:9/x', credentials: CREDENTIALS });
    const api = await guardedApi({ verifiers: [verifier] });
    closing.push(() => api.close());
    expect((await api.get('t')).status).toBe(503);
    await verifier.close();
    await verifier.close();
    expect((await api.get('t2')).status).toBe(503);
  });
});

describe('the introspection verifier', () => {
  it('takes what no other verifier does, and must stand last', async () => {
    const key = testKey('k');
    const { as, verifier } = await setup();
    const jwt = jwtVerifier({
      issuer: 'https://a',
      audience: null,
      algorithms: ['ES256'],
      keys: { jwks: { keys: [key.jwk] } },
    });
    const api = await guardedApi({ verifiers: [jwt, verifier] });
    closing.push(() => api.close());
    as.answer = { active: true, sub: 'u' };
    const exp = Date.now() / 1_000 + 60;
    expect((await api.get(signed(key, { iss: 'https://a', sub: 'j', exp }))).identity?.verifier).toBe('jwt');
    expect((await api.get(signed(testKey('k'), { iss: 'https://a', sub: 'j', exp }))).status).toBe(401);
    expect(as.questions).toHaveLength(0);
    expect((await api.get(signed(key, { iss: 'https://b', sub: 'j', exp }))).identity?.verifier).toBe('introspection');
    await expect(guardedApi({ verifiers: [verifier, jwt] })).rejects.toThrow(/must be the last/);
    const asks = (scheme: 'dpop' | 'none', token?: string) =>
      verifier.accepts({ req: undefined as never, scheme, token });
    expect(asks('none')).toBe(false);
    expect(asks('dpop', 't')).toBe(false);
  });

  const BASE = { endpoint: 'https://as.example/introspect', credentials: CREDENTIALS };
  it.each<[string, object, RegExp]>([
    ['nothing', { endpoint: undefined, credentials: undefined }, /endpoint must be .*; credentials must be an object/],
    ['plain HTTP elsewhere', { endpoint: 'http://as.example/x' }, /endpoint must be an https URL/],
    ['an endpoint with a password', { endpoint: 'https://a:b@as.example/x' }, /endpoint must be/],
    ['no secret', { credentials: { clientId: 'a' } }, /clientSecret must be a string/],
    ['an empty secret', { credentials: { clientId: 'a', clientSecret: '' } }, /clientSecret must be a string/],
    [
      'two kinds of credentials',
      { credentials: { clientId: 'a', clientSecret: SECRET, bearerToken: 'x' } },
      /either bearerToken or/,
    ],
    ['a bearer token with a line break', { credentials: { bearerToken: 'x\r\ny: z' } }, /must be a bearer token/],
    ['an unknown method', { credentials: { ...CREDENTIALS, method: 'jwt' } }, /method must be one of "basic", "post"/],
    ['an unknown credential', { credentials: { ...CREDENTIALS, clientSecrets: 'x' } }, /did you mean "clientSecret"/],
    ['an unknown option', { ttlSecond: 1 }, /did you mean "ttlSeconds"/],
    ['a time to live that is no number', { ttlSeconds: '60' }, /ttlSeconds must be/],
    ['no time at all', { timeoutSeconds: 0 }, /timeoutSeconds must be/],
    ['an empty audience', { audience: [] }, /audience must be/],
    ['an empty issuer', { issuer: '' }, /issuer must be/],
    ['a map that is none', { map: { tenent: 'x' } }, /"map.tenent" \(did you mean "tenant"\?\)/],
    ['an identify that is none', { identify: 1 }, /identify must be a function/],
    ['an empty name', { name: '' }, /name must be/],
  ])('refuses as options: %s', (_name, changes, message) => {
    const make = () => introspectionVerifier({ ...BASE, ...changes } as IntrospectionVerifierOptions);
    expect(make).toThrow(TypeError);
    expect(make).toThrow(message);
    expect(make).not.toThrow(/s3cret/);
  });

  it('asks over plain HTTP elsewhere only where that is said', () => {
    expect(() =>
      introspectionVerifier({ ...BASE, endpoint: 'http://as.example/x', dangerouslyAllowHttp: true }),
    ).not.toThrow();
  });
});

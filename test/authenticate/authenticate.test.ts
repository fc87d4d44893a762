import { createHook } from 'node:async_hooks';
import type { IncomingMessage, ServerResponse } from 'node:http';
import express from 'express';
import request from 'supertest';
import {
  AccessError,
  type AuthenticateOptions,
  authenticate,
  identitiesOf,
  identityOf,
  type Presented,
  requireScope,
  type Verified,
  type Verifier,
} from 'tollkeeper';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { frameworks } from '../support/frameworks.js';
import { rawGet, withoutDate } from '../support/raw-request.js';
import { type Served, serve } from '../support/serve.js';

const open: Served[] = [];
afterEach(async () => {
  for (const served of open.splice(0)) await served.close();
});

/** A verifier of tokens `t-<name>`: the caller is the name. */
type TestVerifier = Omit<Verifier, 'verify'> & {
  calls: number;
  verify(presented: Presented, signal?: AbortSignal): Verified | Promise<Verified>;
};

function tokenVerifier(overrides: Partial<Verifier> = {}): TestVerifier {
  const verifier: TestVerifier = {
    name: 'letters',
    calls: 0,
    accepts: ({ scheme, token }: Presented) =>
      (scheme === 'bearer' || scheme === 'custom') && token?.startsWith('t-') === true,
    verify({ token }: Presented): Verified | Promise<Verified> {
      verifier.calls += 1;
      if (token === 't-bad') throw new AccessError('invalid_token', { reason: 'nobody' });
      return { subject: { kind: 'user', id: (token as string).slice(2) }, authId: `key-${token}`, scopes: ['a:read'] };
    },
    ...(overrides as Partial<TestVerifier>),
  };
  return verifier;
}

function manualTime() {
  const clock = { wall: 1_000_000_000_000, mono: 0, now: () => clock.wall, monotonic: () => clock.mono };
  return clock;
}

function appWith(options: AuthenticateOptions) {
  const app = express().disable('x-powered-by');
  const handled = vi.fn();
  app.use(authenticate(options));
  app.use((req, res) => {
    handled();
    res.json({ subject: req.identity?.subject ?? null, verifier: req.identity?.verifier ?? null });
  });
  return Object.assign(app, { handled });
}

describe('authenticate', () => {
  it('gives the same answers, byte for byte, on Express 4, Express 5, Connect and bare node:http', async () => {
    const cases = [
      [],
      ['Authorization: Bearer t-ann'],
      ['Authorization: Bearer t-bad'],
      ['Authorization: Bearer other'],
      ['Authorization: Bearer'],
      ['Authorization: Bearer t-ann', 'Authorization: Bearer t-bob'],
      ['Authorization: Basic YTpi'],
    ];
    const answers = new Map<string, string[]>();
    for (const { name, listen } of frameworks) {
      const served = await serve(
        listen([authenticate({ verifiers: [tokenVerifier()], realm: 'toll' }), requireScope('a:read')], (req, res) => {
          res.end(identityOf(req).subject.id);
        }),
      );
      open.push(served);
      answers.set(
        name,
        await Promise.all(cases.map(async (headers) => withoutDate(await rawGet(served.port, headers)))),
      );
    }
    const [reference] = answers.values();
    expect(reference?.map((answer) => answer.slice(9, 12))).toEqual(['401', '200', '401', '401', '400', '400', '401']);
    for (const [name, list] of answers) expect(list, name).toEqual(reference);
  });

  it('answers a missing credential with 401 and a challenge that names no error', async () => {
    const res = await request(
      appWith({ verifiers: [tokenVerifier()], realm: 'toll', resourceMetadata: 'https://rs/.m' }),
    ).get('/');
    expect(res.status).toBe(401);
    expect(res.headers['www-authenticate']).toBe('Bearer realm="toll", resource_metadata="https://rs/.m"');
    expect(res.headers['content-type']).toBe('application/problem+json');
    expect(res.headers['cache-control']).toBe('no-store');
    expect(res.body).toEqual({
      title: 'Unauthorized',
      status: 401,
      detail: 'This resource needs a credential, and none was shown.',
      code: 'missing_credentials',
    });
  });

  it.each([
    ['bare scheme', 'Bearer', 400],
    ['empty header', '', 400],
    ['only spaces', '   ', 400],
    ['two spaces', 'Bearer  t-ann', 400],
    ['tab', 'Bearer\tt-ann', 400],
    ['illegal characters', 'Bearer t-{ann}', 400],
    ['two tokens', 'Bearer t-ann t-bob', 400],
    ['a list', 'Bearer t-ann, Bearer t-bob', 400],
    ['padding in the middle', 'Bearer t-=a', 400],
    ['no scheme', '"Bearer" t-ann', 400],
    ['well-formed nonsense', 'Bearer nonsense', 401],
    ['refused by its verifier', 'Bearer t-bad', 401],
    ['over maxTokenBytes', `Bearer t-${'a'.repeat(200)}`, 401],
    ['another scheme', 'Basic YTpi', 401],
    ['a bare unknown word', 'whatever', 401],
    ['DPoP that no verifier takes', 'DPoP t-ann', 401],
    ['malformed DPoP that no verifier takes', 'DPoP', 401],
  ])('refuses a credential that is malformed or unknown: %s', async (_name, header, status) => {
    const app = appWith({ verifiers: [tokenVerifier()], maxTokenBytes: 100 });
    const served = await serve(app);
    open.push(served);
    const answer = await rawGet(served.port, [`Authorization: ${header}`]);
    expect(answer.slice(9, 12)).toBe(String(status));
    const challenge = /^www-authenticate: (.*)\r$/im.exec(answer)?.[1];
    if (status === 400) expect(challenge).toBeUndefined();
    else if (/nonsense|t-bad|aaaa/.test(header)) expect(challenge).toMatch(/^Bearer error="invalid_token"/);
    else expect(challenge).toBe('Bearer');
    expect(answer).not.toContain('nonsense');
    expect(app.handled).not.toHaveBeenCalled();
  });

  it.each(['bearer', 'BEARER', 'bEaReR'])('takes the scheme in any case: %s', async (scheme) => {
    const res = await request(appWith({ verifiers: [tokenVerifier()] }))
      .get('/')
      .set('authorization', `${scheme} t-ann`);
    expect(res.body.subject).toEqual({ kind: 'user', id: 'ann' });
  });

  it('refuses two Authorization headers, though Node shows only the first, also for a known caller', async () => {
    const app = appWith({ verifiers: [tokenVerifier()] });
    const served = await serve(app);
    open.push(served);
    expect(await rawGet(served.port, ['Authorization: Bearer t-ann'])).toMatch(/^HTTP\/1.1 200/);
    const answer = await rawGet(served.port, ['authorization: Bearer t-ann', 'AUTHORIZATION: Bearer t-bob']);
    expect(answer).toMatch(/^HTTP\/1.1 400/);
    expect(answer).toContain('"code":"invalid_request"');
    expect(app.handled).toHaveBeenCalledTimes(1);
  });

  it('ignores tokens in the query and in the body', async () => {
    const app = appWith({ verifiers: [tokenVerifier()] });
    const res = await request(app).post('/?access_token=t-ann').type('form').send('access_token=t-ann');
    expect(res.status).toBe(401);
    expect(app.handled).not.toHaveBeenCalled();
  });

  describe('with optional: true', () => {
    it.each([
      ['nothing', undefined, 200],
      ['a scheme that nobody takes', 'Basic YTpi', 200],
      ['a good credential', 'Bearer t-ann', 200],
      ['a bad credential', 'Bearer t-bad', 401],
      ['an unknown credential', 'Bearer x', 401],
      ['a malformed credential', 'Bearer', 400],
      ['an outage', 'Bearer t-down', 503],
    ])('lets only the absence of a credential through: %s', async (_name, header, status) => {
      const verifier = tokenVerifier();
      const { verify } = verifier;
      verifier.verify = (presented) => {
        if (presented.token === 't-down') throw new Error('connect ECONNREFUSED with t-down');
        return verify(presented);
      };
      const app = appWith({ verifiers: [verifier], optional: true });
      const pending = request(app).get('/');
      const res = await (header === undefined ? pending : pending.set('authorization', header));
      expect(res.status).toBe(status);
      expect(res.text).not.toContain('t-down');
    });
  });

  it('answers 503 with Retry-After when a verifier fails for another reason than the credential', async () => {
    const seen: AccessError[] = [];
    const failures = [
      () => {
        throw new TypeError('t-x is undefined');
      },
      () => {
        throw undefined;
      },
      () => Promise.reject(Object.assign(new Error('connect'), { code: 'ECONNREFUSED' })),
      () => Promise.reject('t-x'),
      () => ({ subject: { kind: 'robot', id: '' }, authId: '' }) as unknown as Verified,
      () => null as unknown as Verified,
    ];
    for (const verify of failures) {
      const app = appWith({ verifiers: [tokenVerifier({ verify })], onReject: (error) => seen.push(error) });
      const res = await request(app).get('/').set('authorization', 'Bearer t-x');
      expect(res.status).toBe(503);
      expect(Number(res.headers['retry-after'])).toBeGreaterThan(0);
      expect(res.headers['www-authenticate']).toBeUndefined();
      expect(res.body.code).toBe('verifier_unavailable');
      expect(app.handled).not.toHaveBeenCalled();
    }
    expect(seen.map((error) => error.reason)).toEqual([
      'the verifier "letters" failed: TypeError',
      'the verifier "letters" failed: it threw something that is no error',
      'the verifier "letters" failed: Error ECONNREFUSED',
      'the verifier "letters" failed: it threw something that is no error',
      expect.stringContaining('subject.kind must be one of'),
      expect.stringContaining('must be an object'),
    ]);
    for (const error of seen) expect(JSON.stringify([error, error.reason, error.cause])).not.toContain('t-x');
  });

  it('answers 503 when a verifier never answers, and tells the verifier to stop', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      let aborted = false;
      const verifier = tokenVerifier({
        verify: (_presented, signal) => {
          signal.addEventListener('abort', () => {
            aborted = true;
          });
          return new Promise(() => {});
        },
      });
      const middleware = authenticate({ verifiers: [verifier] });
      const answered = new Promise<number>((resolve) => {
        middleware(fakeRequest('Bearer t-ann'), fakeResponse(resolve), () => resolve(0));
      });
      await vi.advanceTimersByTimeAsync(15_000);
      expect(await answered).toBe(503);
      expect(aborted).toBe(true);
    } finally {
      vi.useRealTimers();
    }
  });

  it('answers 503 when a verifier fails at saying whether the credential is its own', async () => {
    const verifier = tokenVerifier({
      accepts: () => {
        throw new Error('boom');
      },
    });
    const res = await request(appWith({ verifiers: [verifier], optional: true })).get('/');
    expect(res.status).toBe(503);
  });

  it('asks verifiers in order, exactly one of them, and never goes on after a refusal', async () => {
    const first = tokenVerifier({ name: 'first' });
    const second = tokenVerifier({ name: 'second' });
    const app = appWith({ verifiers: [first, second] });
    expect((await request(app).get('/').set('authorization', 'Bearer t-ann')).body.verifier).toBe('first');
    expect((await request(app).get('/').set('authorization', 'Bearer t-bad')).status).toBe(401);
    expect(second.calls).toBe(0);
  });

  it('does not let a promise stand for acceptance', async () => {
    const verifier = tokenVerifier({ accepts: (async () => true) as unknown as Verifier['accepts'] });
    const res = await request(appWith({ verifiers: [verifier] }))
      .get('/')
      .set('authorization', 'Bearer t-ann');
    expect(res.status).toBe(401);
    expect(res.body.code).toBe('invalid_token');
  });

  it('takes the credential from where extractToken finds it', async () => {
    const values: Record<string, unknown> = {
      number: 1,
      empty: '',
      list: ['t-ann'],
      null: null,
      promise: Promise.resolve('t-ann'),
    };
    const app = appWith({
      verifiers: [tokenVerifier()],
      extractToken: (req) => {
        const key = req.headers['x-api-key'] as string | undefined;
        if (key === 'throw') throw new Error('t-secret');
        return key !== undefined && key in values ? (values[key] as string) : key;
      },
    });
    expect((await request(app).get('/').set('x-api-key', 't-ann')).body.subject.id).toBe('ann');
    expect((await request(app).get('/').set('authorization', 'Bearer t-ann')).body.code).toBe('missing_credentials');
    expect((await request(app).get('/').set('x-api-key', 'throw')).status).toBe(503);
    for (const key of Object.keys(values)) {
      const res = await request(app).get('/').set('x-api-key', key);
      expect([key, res.status, res.body.code]).toEqual([key, 400, 'invalid_request']);
    }
  });

  it('refuses a header that is there more than once, wherever extractToken looks', async () => {
    const app = express().use(
      authenticate({
        verifiers: [tokenVerifier()],
        extractToken: ({ headers }) => (headers['x-api-key'] as string) ?? headers.authorization?.replace('Key ', ''),
      }),
      (_req, res) => res.end('in'),
    );
    const served = await serve(app);
    open.push(served);
    const twice = [
      ['X-Api-Key: t-ann', 'X-API-KEY: t-bob'],
      ['x-api-key: t-ann', 'x-api-key: t-ann'],
      ['Authorization: Key t-ann', 'authorization: Key t-bob'],
    ];
    for (const headers of twice) {
      const answer = await rawGet(served.port, headers);
      expect(answer).toMatch(/^HTTP\/1.1 400 /);
      expect(answer).toContain('"code":"invalid_request"');
    }
    // One header with a comma in it is one credential.
    expect(await rawGet(served.port, ['X-Api-Key: t-ann, t-bob', 'Accept: a', 'Accept: b'])).toMatch(/^HTTP\/1.1 200 /);
    expect(await rawGet(served.port, ['Authorization: Key t-ann'])).toMatch(/^HTTP\/1.1 200 /);
  });

  it('attaches a second credential beside the first: a bad one is 401, an absent one no elevation', async () => {
    const app = express();
    const workload = authenticate({
      verifiers: [tokenVerifier({ name: 'workload' })],
      as: 'workload',
      optional: true,
      extractToken: (req) => req.headers['x-workload'] as string | undefined,
    });
    app.use(authenticate({ verifiers: [tokenVerifier()] }), workload, (req, res) => {
      res.json({ caller: identityOf(req).subject.id, workload: identitiesOf(req, 'workload')?.subject.id ?? null });
    });
    const ask = () => request(app).get('/').set('authorization', 'Bearer t-ann');
    expect((await ask()).body).toEqual({ caller: 'ann', workload: null });
    expect((await ask().set('x-workload', 't-pod')).body).toEqual({ caller: 'ann', workload: 'pod' });
    expect((await ask().set('x-workload', 't-bad')).status).toBe(401);
    expect((await request(app).get('/').set('x-workload', 't-pod')).status).toBe(401);
  });

  it('attaches an identity that no handler can change for the next request', async () => {
    const app = express();
    app.use(
      authenticate({
        verifiers: [
          tokenVerifier({ verify: () => ({ ...hostileInput(), authId: 'k', subject: { kind: 'user', id: 'u' } }) }),
        ],
      }),
    );
    app.use((req, res) => {
      const identity = req.identity as unknown as Record<string, unknown>;
      const attempts = [
        () => (identity.scopes as unknown as Set<string>).add('admin:all'),
        () => Set.prototype.add.call(identity.scopes, 'admin:all'),
        () => (identity.groups as string[]).push('root'),
        () => Object.assign(identity.subject as object, { id: 'root' }),
        () => Object.assign(identity, { tenant: 'other' }),
        () => Object.assign((identity.claims as { nested: object }).nested, { admin: true }),
        () => (identity.resources as object[]).push({}),
      ];
      const failures = attempts.filter((attempt) => {
        try {
          attempt();
          return false;
        } catch {
          return true;
        }
      });
      res.json({ failures: failures.length, identity, admin: identityOf(req).scopes.has('admin:all') });
    });
    const first = await request(app).get('/').set('authorization', 'Bearer t-ann');
    const second = await request(app).get('/').set('authorization', 'Bearer t-ann');
    expect(first.body.failures).toBe(7);
    expect(second.body).toEqual(first.body);
    expect(first.body.admin).toBe(false);
    expect(first.body.identity.scopes).toEqual(['a:read']);
    expect(({} as { polluted?: boolean }).polluted).toBeUndefined();
  });

  describe('the cache', () => {
    it('lets a known caller pass authenticate and requireScope in the same tick, without a promise', () => {
      const middleware = authenticate({ verifiers: [tokenVerifier()] });
      const gate = requireScope('a:read');
      const req = () => fakeRequest('Bearer t-ann');
      const res = fakeResponse(() => {});
      middleware(req(), res, () => {});
      let promises = 0;
      const hook = createHook({
        init(_id, type) {
          if (type === 'PROMISE') promises += 1;
        },
      }).enable();
      let passed = false;
      const known = req();
      middleware(known, res, () => gate(known, res, () => (passed = true)));
      const inTheSameTick = passed;
      hook.disable();
      expect(inTheSameTick).toBe(true);
      expect(promises).toBe(0);
    });

    it('compares the whole credential, not only the part that it is found by', async () => {
      const tail = 'x'.repeat(43);
      const verifier = tokenVerifier();
      const app = appWith({ verifiers: [verifier] });
      const ann = await request(app).get('/').set('authorization', `Bearer t-ann${tail}`);
      const bob = await request(app).get('/').set('authorization', `Bearer t-bob${tail}`);
      expect(ann.body.subject.id).toBe(`ann${tail}`);
      expect(bob.body.subject.id).toBe(`bob${tail}`);
      expect(verifier.calls).toBe(2);
    });

    it('belongs to one chain: a credential known to another is verified anew', async () => {
      const verifier = tokenVerifier();
      await request(appWith({ verifiers: [verifier] }))
        .get('/')
        .set('authorization', 'Bearer t-ann');
      await request(appWith({ verifiers: [verifier] }))
        .get('/')
        .set('authorization', 'Bearer t-ann');
      expect(verifier.calls).toBe(2);
    });

    it.each([
      ['ttlSeconds', { cache: { ttlSeconds: 10 } }, {}, 10],
      ['the default of 60 s', {}, {}, 60],
      ['cacheSeconds of the verifier', {}, { cacheSeconds: 7 }, 7],
    ])('keeps a decision no longer than %s, and nearly that long', async (_name, options, result, seconds) => {
      const clock = manualTime();
      const verifier = tokenVerifier();
      const { verify } = verifier;
      verifier.verify = (presented) => ({ identity: verify(presented) as never, ...result });
      const app = appWith({ verifiers: [verifier], clock, ...options });
      const ask = () => request(app).get('/').set('authorization', 'Bearer t-ann');
      await ask();
      clock.mono = seconds * 1_000 - 1;
      clock.wall -= 3_600_000;
      await ask();
      expect(verifier.calls).toBe(1);
      clock.mono = seconds * 1_000;
      await ask();
      expect(verifier.calls).toBe(2);
    });

    it.each([0, -1, Number.NaN])('never keeps a decision with cacheSeconds %s', async (cacheSeconds) => {
      const verifier = tokenVerifier();
      const { verify } = verifier;
      verifier.verify = (presented) => ({ identity: verify(presented) as never, cacheSeconds });
      const app = appWith({ verifiers: [verifier] });
      for (let i = 0; i < 3; i++) await request(app).get('/').set('authorization', 'Bearer t-ann');
      expect(verifier.calls).toBe(3);
    });

    it('forgets an identity when it expires by the wall clock', async () => {
      const clock = manualTime();
      const expiresAt = clock.wall / 1_000 + 5;
      const verifier = tokenVerifier({
        verify: () => {
          verifier.calls += 1;
          return { subject: { kind: 'user', id: 'u' }, authId: 'k', expiresAt };
        },
      });
      const app = appWith({ verifiers: [verifier], clock });
      const ask = () => request(app).get('/').set('authorization', 'Bearer t-ann');
      expect((await ask()).status).toBe(200);
      clock.wall += 4_999;
      expect((await ask()).status).toBe(200);
      expect(verifier.calls).toBe(1);
      clock.wall += 1;
      expect((await ask()).status).toBe(200);
      expect(verifier.calls).toBe(2);
      clock.wall += 5_000;
      const late = await ask();
      expect([late.status, late.body.code]).toEqual([401, 'invalid_token']);
    });

    it('can be turned off', async () => {
      const verifier = tokenVerifier();
      const app = appWith({ verifiers: [verifier], cache: false });
      for (let i = 0; i < 2; i++) await request(app).get('/').set('authorization', 'Bearer t-ann');
      expect(verifier.calls).toBe(2);
    });

    it.each([
      ['entries', { maxEntries: 3 }],
      ['bytes', { maxBytes: 5_600 }],
    ])('is bounded by %s: the least recently used goes first', (_name, cache) => {
      const verifier = tokenVerifier();
      const middleware = authenticate({ verifiers: [verifier], cache });
      const ask = (name: string) =>
        middleware(
          fakeRequest(`Bearer t-${name}`),
          fakeResponse(() => {}),
          () => {},
        );
      for (const name of ['a', 'b', 'c', 'a', 'd']) ask(name);
      expect(verifier.calls).toBe(4);
      ask('a');
      expect(verifier.calls).toBe(4);
      ask('b');
      expect(verifier.calls).toBe(5);
    });

    it('counts what stands in the identities against its bytes', () => {
      const calls = new Map<string, number>();
      const verifier = tokenVerifier({
        verify: ({ token = '' }) => {
          calls.set(token, (calls.get(token) ?? 0) + 1);
          const claims = { roles: Array.from({ length: 500 }, (_, index) => ({ role: `${token}-${index}` })) };
          return { subject: { kind: 'user', id: 'u' }, authId: 'k', claims };
        },
      });
      const middleware = authenticate({ verifiers: [verifier], cache: { maxBytes: 1_000_000 } });
      const ask = (name: string) =>
        middleware(
          fakeRequest(`Bearer t-${name}`),
          fakeResponse(() => {}),
          () => {},
        );
      // Each identity takes more than 50 kB: a hundred of them would be five times what is allowed.
      for (let round = 0; round < 2; round++) for (let index = 0; index < 100; index++) ask(String(index));
      expect([...calls.values()].every((count) => count === 2)).toBe(true);
      ask('99');
      expect(calls.get('t-99')).toBe(2);
    });

    it('asks an earlier verifier that looks at the request, also about a known credential', async () => {
      const edge: Verifier = {
        name: 'edge',
        dependsOnRequest: true,
        accepts: ({ req }) => req.headers['x-edge'] === '1',
        verify: () => ({ identity: { subject: { kind: 'user', id: 'edge' }, authId: 'edge' }, cacheSeconds: 0 }),
      };
      const app = appWith({ verifiers: [edge, tokenVerifier()] });
      const ask = () => request(app).get('/').set('authorization', 'Bearer t-ann');
      expect((await ask()).body.verifier).toBe('letters');
      expect((await ask().set('x-edge', '1')).body.verifier).toBe('edge');
      expect((await ask()).body.verifier).toBe('letters');
    });
  });

  describe('while a credential is being verified', () => {
    it('verifies it once however many requests show it', async () => {
      const gate = deferred<Verified>();
      const verifier = tokenVerifier({
        verify: () => {
          verifier.calls += 1;
          return gate.promise;
        },
      });
      const middleware = authenticate({ verifiers: [verifier] });
      const passed = Array.from({ length: 50 }, () => run(middleware, 'Bearer t-ann'));
      expect(verifier.calls).toBe(1);
      gate.resolve({ subject: { kind: 'user', id: 'u' }, authId: 'k' });
      expect(await Promise.all(passed)).toEqual(new Array(50).fill('next'));
      expect(await run(middleware, 'Bearer t-ann')).toBe('next');
      expect(verifier.calls).toBe(1);
    });

    it('shares a refusal too, and remembers none', async () => {
      const verifier = tokenVerifier({
        verify: async () => {
          verifier.calls += 1;
          throw new AccessError('invalid_token');
        },
      });
      const middleware = authenticate({ verifiers: [verifier] });
      expect(await Promise.all([run(middleware, 'Bearer t-a'), run(middleware, 'Bearer t-a')])).toEqual([401, 401]);
      expect(verifier.calls).toBe(1);
      expect(await run(middleware, 'Bearer t-a')).toBe(401);
      expect(verifier.calls).toBe(2);
    });

    it('does not share what may not be cached', async () => {
      const verifier = tokenVerifier({
        verify: async ({ req }) => {
          verifier.calls += 1;
          return {
            identity: { subject: { kind: 'user', id: String(req.headers.from) }, authId: 'k' },
            cacheSeconds: 0,
          };
        },
      });
      const app = appWith({ verifiers: [verifier] });
      const served = await serve(app);
      open.push(served);
      const ask = (from: string) => rawGet(served.port, ['Authorization: Bearer t-ann', `From: ${from}`]);
      const answers = await Promise.all(['a', 'b', 'c'].map(ask));
      for (const [index, from] of ['a', 'b', 'c'].entries()) expect(answers[index]).toContain(`"id":"${from}"`);
      expect(verifier.calls).toBe(3);
    });

    it('goes no further when somebody has answered meanwhile', async () => {
      const gate = deferred<Verified>();
      const middleware = authenticate({ verifiers: [tokenVerifier({ verify: () => gate.promise })] });
      const next = vi.fn();
      const res = fakeResponse(() => {});
      middleware(fakeRequest('Bearer t-ann'), res, next);
      (res as { writableEnded: boolean }).writableEnded = true;
      gate.resolve({ subject: { kind: 'user', id: 'u' }, authId: 'k' });
      await new Promise(setImmediate);
      expect(next).not.toHaveBeenCalled();
    });
  });

  describe('checkRequest', () => {
    it.each([
      [
        'synchronous',
        (ok: boolean) => {
          if (!ok) throw new AccessError('invalid_token');
        },
      ],
      [
        'asynchronous',
        async (ok: boolean) => {
          if (!ok) throw new AccessError('invalid_token');
        },
      ],
    ])('is asked for every request, cache hits too: %s', async (_name, check) => {
      const verifier = tokenVerifier();
      const { verify } = verifier;
      verifier.verify = (presented) => ({
        identity: verify(presented) as never,
        checkRequest: ({ req, token }) => check(req.headers['x-proof'] === token),
      });
      const app = appWith({ verifiers: [verifier] });
      const ask = (proof: string) => request(app).get('/').set('authorization', 'Bearer t-ann').set('x-proof', proof);
      expect((await ask('t-ann')).status).toBe(200);
      expect((await ask('t-bob')).status).toBe(401);
      expect((await ask('t-ann')).status).toBe(200);
      expect(verifier.calls).toBe(1);
    });

    it('answers 503 when it breaks', async () => {
      for (const checkRequest of [
        () => {
          throw new Error('x');
        },
        () => Promise.reject(new Error('x')),
      ]) {
        const app = appWith({
          verifiers: [
            tokenVerifier({
              verify: () => ({ identity: { subject: { kind: 'user', id: 'u' }, authId: 'k' }, checkRequest }),
            }),
          ],
        });
        expect((await request(app).get('/').set('authorization', 'Bearer t-ann')).status).toBe(503);
        expect(app.handled).not.toHaveBeenCalled();
      }
    });
  });

  describe('refusals', () => {
    it('hands the error to the app with errors: "next", with the same status and headers', async () => {
      const app = express();
      const handled = vi.fn();
      app.use(
        authenticate({ verifiers: [tokenVerifier()], errors: 'next', realm: 'toll' }),
        requireScope('b:write'),
        handled,
      );
      app.use((error: AccessError, _req: unknown, res: express.Response, _next: unknown) => {
        res.status(error.status).set(error.headers).send(`mine: ${error.code}`);
      });
      const missing = await request(app).get('/');
      expect([missing.status, missing.text]).toEqual([401, 'mine: missing_credentials']);
      expect(missing.headers['www-authenticate']).toBe('Bearer realm="toll"');
      const lacking = await request(app).get('/').set('authorization', 'Bearer t-ann');
      expect([lacking.status, lacking.text]).toEqual([403, 'mine: insufficient_scope']);
      expect(lacking.headers['www-authenticate']).toContain('scope="b:write"');
      expect(handled).not.toHaveBeenCalled();
    });

    it('tells onReject of every refusal of the request, and survives an onReject that throws', async () => {
      const reasons: (string | undefined)[] = [];
      const app = express();
      const onReject = (error: AccessError) => {
        reasons.push(error.reason);
        throw new Error('onReject is broken');
      };
      app.use(authenticate({ verifiers: [tokenVerifier()], onReject }), requireScope('b:write'));
      expect((await request(app).get('/').set('authorization', 'Bearer t-bad')).status).toBe(401);
      expect((await request(app).get('/').set('authorization', 'Bearer t-ann')).status).toBe(403);
      expect(reasons).toEqual(['nobody', 'the identity lacks a scope of the route']);
    });

    it('answers with a new error each time, though a verifier throws the same one for ever', async () => {
      const error = new AccessError('invalid_token');
      const seen = new Set<AccessError>();
      const app = appWith({
        verifiers: [
          tokenVerifier({
            verify: () => {
              throw error;
            },
          }),
        ],
        realm: 'toll',
        onReject: (refusal) => seen.add(refusal),
      });
      for (let i = 0; i < 2; i++) await request(app).get('/').set('authorization', 'Bearer t-ann');
      expect(seen.size).toBe(2);
      expect(error.headers).not.toHaveProperty('www-authenticate');
    });
  });

  describe('options', () => {
    it('are refused with every problem at once, and a hint for a typo', () => {
      const options = {
        verifiers: [tokenVerifier(), tokenVerifier(), { name: 'x' }, tokenVerifier({ name: '' })],
        optionl: true,
        realm: 'with "quotes"',
        errors: 'throw',
        maxTokenBytes: -1,
        cache: { ttlSeconds: -1, maxEntry: 3 },
        revocations: {},
        extractToken: 'x-api-key',
        as: '',
      };
      const message = refusalOf(() => authenticate(options as never));
      expect(message).toBe(
        'authenticate: unknown option "optionl" (did you mean "optional"?); two verifiers are named "letters"; ' +
          'verifiers[2] is no verifier (did you call its factory?); verifiers[3] needs a name; ' +
          'revocations must come from createRevocations; as must be a string that is not empty; ' +
          'extractToken must be a function; errors must be one of "respond", "next"; ' +
          'realm must be printable ASCII without quotes and backslashes; ' +
          'maxTokenBytes must be an integer from 1 to 9007199254740991; ' +
          'unknown option "cache.maxEntry" (did you mean "maxEntries"?); cache.ttlSeconds must be a number from 0 to 9007199254740991',
      );
    });

    it.each([undefined, null, {}, { verifiers: [] }, { verifiers: 'jwt' }, { verifiers: [null] }])(
      'need a verifier: %j',
      (options) => {
        expect(() => authenticate(options as never)).toThrow(/^authenticate: /);
      },
    );

    it('let a verifier that takes everything stand only at the end, and each issuer only once', () => {
      const catchAll = tokenVerifier({ name: 'all', catchAll: true });
      expect(() => authenticate({ verifiers: [catchAll, tokenVerifier()] })).toThrow('it must be the last');
      authenticate({ verifiers: [tokenVerifier(), catchAll] });
      const issuers = ['https://idp'];
      expect(() =>
        authenticate({ verifiers: [tokenVerifier({ issuers }), tokenVerifier({ name: 'b', issuers })] }),
      ).toThrow('two verifiers take the issuer "https://idp"');
    });
  });
});

function hostileInput() {
  const claims = JSON.parse('{"__proto__":{"polluted":true},"nested":{"admin":false},"list":[1,{"a":null}]}');
  return {
    scopes: new Set(['a:read', '*', 'a:any', 'any:read']),
    groups: ['g1', 'g2'],
    resources: [{ type: 'repo', id: 'r1' }],
    claims,
    tenant: null as unknown as string,
    actor: { kind: 'service' as const, id: 's' },
    confirmation: { jkt: 'x' },
    issuedAt: 1,
  };
}

function refusalOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    expect(error).toBeInstanceOf(TypeError);
    return (error as Error).message;
  }
  throw new Error('nothing was thrown');
}

function deferred<T>() {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}

function run(middleware: ReturnType<typeof authenticate>, authorization: string): Promise<number | 'next'> {
  return new Promise((resolve) => {
    middleware(fakeRequest(authorization), fakeResponse(resolve), () => resolve('next'));
  });
}

function fakeRequest(authorization: string): IncomingMessage {
  return { headers: { authorization }, rawHeaders: ['Authorization', authorization] } as never;
}

function fakeResponse(answered: (status: number) => void): ServerResponse {
  const res = {
    writableEnded: false,
    destroyed: false,
    headersSent: false,
    statusCode: 0,
    setHeader() {},
    end() {
      answered(res.statusCode);
    },
  };
  return res as unknown as ServerResponse;
}

import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import express from 'express';
import request from 'supertest';
import {
  authenticate,
  createPipeline,
  createQuota,
  type EnforceQuotaOptions,
  enforceQuota,
  type IdentityInput,
  limitAddress,
  memoryQuotaStore,
  memorySink,
  meter,
  type QuotaOptions,
  type QuotaStore,
  requireScope,
  usageOf,
} from 'tollkeeper';
import { asIdentity, manualClock } from 'tollkeeper/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { rawGet } from '../support/raw-request.js';
import { type Served, serve } from '../support/serve.js';

const open: Served[] = [];
afterEach(async () => {
  for (const served of open.splice(0)) await served.close();
});

const START = Date.parse('2026-03-01T12:00:00Z');
const caller = (overrides: Partial<IdentityInput> = {}): IdentityInput => ({
  subject: { kind: 'user', id: 'ann' },
  authId: 'k1',
  issuer: 'iss',
  plan: 'free',
  ...overrides,
});
const burst = {
  name: 'burst',
  per: 'subject',
  unit: 'requests',
  limit: 3,
  window: { kind: 'gcra', periodSeconds: 60 },
} as const;
const daily = {
  name: 'daily',
  per: 'tenant',
  unit: 'requests',
  limit: 5,
  window: { kind: 'calendar', unit: 'day' },
} as const;
const tokens = {
  name: 'tokens',
  per: 'authId',
  unit: 'output_tokens',
  limit: 100,
  window: { kind: 'calendar', unit: 'day' },
} as const;

function world(
  plans: QuotaOptions['plans'],
  options: Partial<QuotaOptions> = {},
  enforce: Partial<EnforceQuotaOptions> = {},
) {
  const clock = manualClock(START);
  const store = memoryQuotaStore({ clock });
  const quota = createQuota({ store, plans, clock, ...options });
  let identity = caller();
  let handled = 0;
  let respond: express.RequestHandler = (_req, res) => void res.json('in');
  const app = express();
  app.use((req, res, next) => asIdentity(identity)(req, res, next));
  app.get('/quota', quota.handler());
  app.use(enforceQuota({ quota, ...enforce }), (req, res, next) => {
    handled += 1;
    respond(req, res, next);
  });
  return {
    clock,
    store,
    quota,
    app,
    ask: () => request(app).get('/'),
    as(overrides: Partial<IdentityInput>) {
      identity = caller(overrides);
    },
    respond(handler: express.RequestHandler) {
      respond = handler;
    },
    handled: () => handled,
  };
}

/** The identity as the middleware made it, for `peek`. */
function identityMade(input: IdentityInput) {
  return { scopes: new Set(), groups: [], verifier: 'test', claims: {}, ...input };
}

describe('enforceQuota', () => {
  it('answers the fourth call of three per minute with 429 and the time to wait, and other callers with 200', async () => {
    const { ask, as, clock, handled } = world({ free: [burst] });
    for (let i = 0; i < 3; i++) expect((await ask()).status).toBe(200);
    const refused = await ask();
    expect(refused.status).toBe(429);
    expect(refused.headers['content-type']).toBe('application/problem+json');
    expect(refused.headers['retry-after']).toBe('20');
    expect(refused.body).toEqual({
      type: 'https://iana.org/assignments/http-problem-types#quota-exceeded',
      title: 'Too Many Requests',
      status: 429,
      detail: 'A quota of this caller is used up.',
      code: 'quota_exceeded',
      'violated-policies': ['burst'],
    });
    expect(handled()).toBe(3);
    as({ subject: { kind: 'user', id: 'bob' } });
    expect((await ask()).status).toBe(200);
    as({});
    clock.advance(19.999);
    expect((await ask()).status).toBe(429);
    clock.advance(0.001);
    expect((await ask()).status).toBe(200);
  });

  it('charges all policies or none: a refused request consumes nothing', async () => {
    const { ask, as, clock } = world({ free: [burst, daily] });
    as({ tenant: 't' });
    for (let i = 0; i < 3; i++) await ask();
    for (let i = 0; i < 10; i++) expect((await ask()).body['violated-policies']).toEqual(['burst']);
    clock.advance(60);
    expect((await ask()).status).toBe(200);
    expect((await ask()).status).toBe(200);
    expect((await ask()).body['violated-policies']).toEqual(['daily']);
  });

  it('counts per subject, tenant, client and authId, within issuer and tenant', async () => {
    const one = (per: 'subject' | 'tenant' | 'client' | 'authId') => [{ ...burst, per, limit: 1 }];
    for (const [per, same, other] of [
      ['subject', { authId: 'k2' }, { subject: { kind: 'service', id: 'ann' } }],
      ['subject', { authId: 'k2' }, { tenant: 't2' }],
      ['tenant', { subject: { kind: 'user', id: 'bob' }, tenant: 't' }, { tenant: 't2' }],
      ['client', { subject: { kind: 'user', id: 'bob' }, clientId: 'c', tenant: 't' }, { clientId: 'c2', tenant: 't' }],
      ['authId', { subject: { kind: 'user', id: 'bob' }, tenant: 't' }, { authId: 'k2', tenant: 't' }],
      ['authId', { subject: { kind: 'user', id: 'bob' }, tenant: 't' }, { issuer: 'iss2', tenant: 't' }],
    ] as const) {
      const { ask, as } = world({ free: one(per) });
      const first = per === 'subject' ? {} : per === 'client' ? { clientId: 'c', tenant: 't' } : { tenant: 't' };
      as(first as never);
      expect((await ask()).status).toBe(200);
      as(same as never);
      expect([per, (await ask()).status]).toEqual([per, 429]);
      as(other as never);
      expect([per, (await ask()).status]).toEqual([per, 200]);
    }
  });

  it('never skips a policy: an unknown or absent plan is the default plan, else 503', async () => {
    const strict = world({ free: [burst] });
    for (const plan of [undefined, 'gold', '__proto__', 'toString']) {
      strict.as({ plan });
      const res = await strict.ask();
      expect([plan, res.status, res.body.code]).toEqual([plan, 503, 'quota_unavailable']);
      expect(Number(res.headers['retry-after'])).toBeGreaterThan(0);
    }
    expect(strict.handled()).toBe(0);
    const lenient = world({ free: [{ ...burst, limit: 1 }], none: [] }, { defaultPlan: 'free' });
    lenient.as({ plan: 'gold' });
    expect([(await lenient.ask()).status, (await lenient.ask()).status]).toEqual([200, 429]);
    lenient.as({ plan: 'none' });
    expect((await lenient.ask()).status).toBe(200);
  });

  it('takes the plan from planOf: a name, policies of the caller alone, or a 503 for anything else', async () => {
    const own = [{ ...burst, limit: 1 }];
    for (const [planOf, statuses] of [
      [() => 'pro', [200, 200]],
      [() => own, [200, 429]],
      [() => undefined, [200, 200]],
      [
        () => {
          throw undefined;
        },
        [503, 503],
      ],
      [async () => 'pro', [503, 503]],
      [() => 5, [503, 503]],
      [() => [{ ...burst, limit: Number.NaN }], [503, 503]],
    ] as const) {
      const { ask } = world(
        { free: [burst], pro: [{ ...burst, limit: 100 }] },
        { planOf: planOf as never, defaultPlan: 'free' },
      );
      expect([(await ask()).status, (await ask()).status]).toEqual(statuses);
    }
  });

  it('lets a plan change take effect in the middle of a window', async () => {
    const { ask, as, quota } = world({ free: [{ ...daily, limit: 2 }], pro: [{ ...daily, limit: 10 }] });
    as({ tenant: 't' });
    for (let i = 0; i < 2; i++) await ask();
    expect((await ask()).status).toBe(429);
    as({ tenant: 't', plan: 'pro' });
    for (let i = 0; i < 3; i++) expect((await ask()).status).toBe(200);
    as({ tenant: 't' });
    expect((await ask()).status).toBe(429);
    const [standing] = await quota.peek(identityMade(caller({ tenant: 't' })) as never);
    expect(standing).toMatchObject({ policy: 'daily', limit: 2, used: 5, remaining: 0 });
  });

  it.each([
    ['a fixed cost', { cost: 2 }, 2],
    ['a function', { cost: () => 3 }, 3],
    ['units by name', { cost: () => ({ requests: 2 }) }, 2],
    ['nothing', { cost: 0 }, 0],
  ])('charges %s', async (_name, enforce, used) => {
    const { ask, quota } = world({ free: [burst] }, {}, enforce);
    expect((await ask()).status).toBe(200);
    expect((await quota.peek(identityMade(caller()) as never))[0]?.used).toBe(used);
  });

  it('refuses a cost above the limit at once, without Retry-After, and consumes nothing', async () => {
    const { ask, quota } = world({ free: [burst] }, {}, { cost: () => 4 });
    const res = await ask();
    expect(res.status).toBe(429);
    expect(res.headers['retry-after']).toBeUndefined();
    expect((await quota.peek(identityMade(caller()) as never))[0]?.used).toBe(0);
  });

  const badCosts = [
    Number.NaN,
    Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY,
    -1,
    1.5,
    '3',
    2 ** 53,
    null,
    undefined,
    Promise.resolve(1),
    { requests: -1 },
  ];
  it.each(badCosts)('answers 503 for a cost of %s that a callback gives, and counts nothing', async (cost) => {
    const { ask, quota, handled } = world({ free: [burst] }, {}, { cost: () => cost as never });
    const res = await ask();
    expect([res.status, res.body.code]).toEqual([503, 'quota_unavailable']);
    expect(handled()).toBe(0);
    expect((await quota.peek(identityMade(caller()) as never))[0]?.used).toBe(0);
  });

  it.each(badCosts.filter((cost) => typeof cost !== 'object' && cost !== undefined))(
    'throws a TypeError for a fixed cost of %s',
    (cost) => {
      const quota = createQuota({ store: memoryQuotaStore(), plans: {} });
      expect(() => enforceQuota({ quota, cost: cost as never })).toThrow(TypeError);
    },
  );

  describe('reserves, then settles', () => {
    const llm = (reserve = 60) => world({ free: [tokens] }, {}, { reserve: () => ({ output_tokens: reserve }) });
    const standing = async (w: ReturnType<typeof llm>) =>
      (await w.quota.peek(identityMade(caller()) as never))[0]?.used;

    it('holds what is reserved while the request runs, and settles to what was reported', async () => {
      const w = llm();
      let during: number | undefined;
      w.respond(async (req, res) => {
        during = await standing(w);
        usageOf(req).add('output_tokens', 7);
        res.end();
      });
      await w.ask();
      expect(during).toBe(60);
      await vi.waitFor(async () => expect(await standing(w)).toBe(7));
    });

    it('refuses a second reservation that does not fit beside the first', async () => {
      const w = llm();
      let release = (): void => {};
      w.respond((_req, res) => {
        release = () => res.end();
      });
      const first = w.ask().then((res) => res);
      await vi.waitFor(() => expect(w.handled()).toBe(1));
      expect((await w.ask()).status).toBe(429);
      release();
      expect((await first).status).toBe(200);
    });

    it('books more than was reserved, even over the limit', async () => {
      const w = llm();
      w.respond((req, res) => {
        usageOf(req).add('output_tokens', 250);
        res.end();
      });
      await w.ask();
      await vi.waitFor(async () => expect(await standing(w)).toBe(250));
      expect((await w.ask()).status).toBe(429);
    });

    it.each([
      ['kept when nothing was reported', {}, 200, 60],
      ['given back when nothing was reported and that means zero', { settle: { whenMissing: 'zero' } }, 200, 0],
      ['given back on a server error', {}, 500, 0],
      ['kept on a server error when told so', { settle: { refundOn: [] } }, 500, 60],
    ] as const)('a reservation is %s', async (_name, enforce, status, used) => {
      const w = world({ free: [tokens] }, {}, { reserve: () => ({ output_tokens: 60 }), ...(enforce as object) });
      w.respond((_req, res) => void res.status(status).end());
      await w.ask();
      await vi.waitFor(async () => expect((await w.quota.peek(identityMade(caller()) as never))[0]?.used).toBe(used));
    });

    it('gives an unsettled reservation back when its time is over', async () => {
      const w = world({ free: [tokens] }, {}, { reserve: () => ({ output_tokens: 100 }), reservationSeconds: 30 });
      w.respond(() => {});
      w.ask().end(() => {});
      await vi.waitFor(() => expect(w.handled()).toBe(1));
      w.clock.advance(29);
      expect((await w.ask()).status).toBe(429);
      w.clock.advance(1);
      expect(await standing(w)).toBe(0);
    });

    it('books what nobody reserved afterwards, and refuses once the limit is reached', async () => {
      const w = world({ free: [tokens] });
      w.respond((req, res) => {
        usageOf(req).add('output_tokens', 80);
        res.end();
      });
      for (const status of [200, 200]) {
        expect((await w.ask()).status).toBe(status);
        await new Promise(setImmediate);
      }
      await vi.waitFor(async () => expect(await standing(w)).toBe(160));
      expect((await w.ask()).status).toBe(429);
    });

    it('gives everything back when a later middleware refuses, and does so once', async () => {
      const clock = manualClock(START);
      const store = memoryQuotaStore({ clock });
      const settle = vi.spyOn(store, 'settle');
      const quota = createQuota({ store, plans: { free: [burst, tokens] }, clock });
      const pipeline = createPipeline({ sinks: [memorySink()], spool: 'memory', source: 'test' });
      const unwritable = { directory: '/dev/null/spool' };
      const broken = createPipeline({ sinks: [memorySink()], spool: unwritable, source: 'test' });
      for (const [refusal, later] of [
        [403, requireScope('nope:read')],
        [400, meter({ pipeline, type: 't', require: ['tenant'] })],
        [503, meter({ pipeline: broken, type: 't' })],
      ] as const) {
        const app = express();
        app.use(
          asIdentity(caller()),
          enforceQuota({ quota, reserve: () => ({ output_tokens: 50 }) }),
          later,
          (_req, res) => void res.end(),
        );
        expect((await request(app).get('/')).status).toBe(refusal);
      }
      const standings = await quota.peek(identityMade(caller()) as never);
      expect(standings.map(({ used }) => used)).toEqual([0, 0]);
      expect(settle).toHaveBeenCalledTimes(3);
      await pipeline.close();
      await broken.close({ deliverSeconds: 0.1 });
    });

    it('settles once when the client goes away', async () => {
      const w = llm();
      const settle = vi.spyOn(w.store, 'settle');
      w.respond((_req, res) => void res.write('x'));
      const served = await serve(w.app);
      open.push(served);
      const controller = new AbortController();
      const response = await fetch(served.url, { signal: controller.signal });
      await response.body?.getReader().read();
      controller.abort();
      await vi.waitFor(() => expect(settle).toHaveBeenCalled());
      await new Promise((resolve) => setTimeout(resolve, 20));
      expect(settle).toHaveBeenCalledTimes(1);
      expect(await standing(w)).toBe(60);
    });
  });

  it('limits how many run at the same time, and lets the next one in when one ends', async () => {
    const w = world({
      free: [{ name: 'parallel', per: 'subject', unit: 'requests', limit: 1, window: { kind: 'concurrent' } }],
    });
    const ends: (() => void)[] = [];
    w.respond((_req, res) => void ends.push(() => res.end()));
    const first = w.ask().then((res) => res.status);
    await vi.waitFor(() => expect(w.handled()).toBe(1));
    const refused = await w.ask();
    expect([refused.status, refused.body['violated-policies']]).toEqual([429, ['parallel']]);
    ends[0]?.();
    expect(await first).toBe(200);
    const second = w.ask().then((res) => res.status);
    await vi.waitFor(() => expect(w.handled()).toBe(2));
    ends[1]?.();
    expect(await second).toBe(200);
  });

  describe('headers', () => {
    it('list every policy in the form of the draft', async () => {
      const { ask, as } = world({ free: [burst, { ...daily, name: 'a "day"' }] });
      as({ tenant: 't' });
      const res = await ask();
      expect(res.headers['ratelimit-policy']).toBe('"burst";q=3;w=60, "a \\"day\\"";q=5;w=86400');
      expect(res.headers.ratelimit).toBe('"burst";r=2;t=20, "a \\"day\\"";r=4;t=43200');
    });

    it('never tell a shorter wait than Retry-After', async () => {
      const { ask, clock } = world({ free: [burst] });
      for (let i = 0; i < 3; i++) await ask();
      clock.advance(7.5);
      const res = await ask();
      expect([res.headers.ratelimit, res.headers['retry-after']]).toEqual(['"burst";r=0;t=13', '13']);
    });

    it.each([
      ['draft-7', { 'ratelimit-policy': '3;w=60', ratelimit: 'limit=3, remaining=2, reset=20' }],
      [
        'legacy',
        { 'x-ratelimit-limit': '3', 'x-ratelimit-remaining': '2', 'x-ratelimit-reset': String(START / 1_000 + 20) },
      ],
    ] as const)('can be of the form %s', async (headers, expected) => {
      const { ask } = world({ free: [burst, daily] }, {}, { headers });
      expect((await ask()).headers).toMatchObject(expected);
    });

    it('can be turned off', async () => {
      const { ask } = world({ free: [burst] }, {}, { headers: false });
      const { headers } = await ask();
      expect(Object.keys(headers).filter((name) => name.includes('ratelimit'))).toEqual([]);
    });

    it.each([301, 302, 304, 307])('are not on a %i', async (status) => {
      const w = world({ free: [burst] });
      w.respond((_req, res) => void res.writeHead(status, { location: '/x' }).end());
      const served = await serve(w.app);
      open.push(served);
      const answer = await rawGet(served.port, []);
      expect(answer).toContain(`HTTP/1.1 ${status}`);
      expect(answer).not.toMatch(/ratelimit/i);
    });

    it('hold only integers of at most 15 digits', async () => {
      const { ask } = world({
        free: [
          { ...burst, limit: Number.MAX_SAFE_INTEGER },
          { ...tokens, window: { kind: 'concurrent' } },
        ],
      });
      const { headers } = await ask();
      expect(headers['ratelimit-policy']).toBe('"burst";q=999999999999999;w=60, "tokens";q=100;qu="output_tokens"');
      expect(headers.ratelimit).toMatch(/^"burst";r=999999999999999;t=\d+, "tokens";r=100$/);
    });

    it('name the unit of a policy that does not count requests, and no time where any moment may free one', async () => {
      const { ask, respond } = world({
        free: [
          { ...burst, name: 'parallel', limit: 1, window: { kind: 'concurrent' } },
          tokens,
          { ...tokens, name: 'upload', unit: 'request_bytes', limit: 1_000 },
        ],
      });
      const { headers } = await ask();
      expect(headers['ratelimit-policy']).toBe(
        '"parallel";q=1;qu="concurrent-requests", "tokens";q=100;qu="output_tokens";w=86400, "upload";q=1000;qu="content-bytes";w=86400',
      );
      expect(headers.ratelimit).toBe('"parallel";r=0, "tokens";r=100;t=43200, "upload";r=1000;t=43200');
      let release = (): void => {};
      const held = new Promise<void>((resolve) => {
        respond((_req, res) => {
          release = () => res.end();
          resolve();
        });
      });
      const first = ask().then(({ status }) => status);
      await held;
      expect((await ask()).headers.ratelimit).toContain('"parallel";r=0;t=1, ');
      release();
      expect(await first).toBe(200);
    });
  });

  describe('while the store fails', () => {
    function failing(onStoreError: 'deny' | 'local' | 'allow' | undefined, async: boolean, replicas?: number) {
      const failure = (): never => {
        throw new Error('down');
      };
      const store: QuotaStore = {
        take: async ? async () => failure() : failure,
        settle: async ? async () => failure() : failure,
        reset: failure,
      };
      return world({ free: [{ ...burst, limit: 4, onStoreError }] }, { store, replicas });
    }

    it.each([true, false])(
      'denies by default with 503, and says so on the diagnostics channel (async: %s)',
      async (async) => {
        const seen: unknown[] = [];
        const listen = (message: unknown) => seen.push(message);
        subscribe('tollkeeper:quota', listen);
        const { ask, handled, quota } = failing(undefined, async);
        const res = await ask();
        unsubscribe('tollkeeper:quota', listen);
        expect([res.status, res.body.code, handled()]).toEqual([503, 'quota_unavailable', 0]);
        expect(seen).toEqual([expect.objectContaining({ type: 'store_error', denying: ['burst'] })]);
        await expect(quota.peek(identityMade(caller()) as never)).rejects.toMatchObject({ code: 'quota_unavailable' });
        await expect(quota.reset(identityMade(caller()) as never)).rejects.toMatchObject({ code: 'quota_unavailable' });
      },
    );

    it.each([true, false])('counts this process up to its share (async: %s)', async (async) => {
      const { ask } = failing('local', async, 3);
      const statuses = [];
      for (let i = 0; i < 4; i++) statuses.push((await ask()).status);
      expect(statuses).toEqual([200, 200, 429, 429]);
    });

    it('lets a policy be left out by name only', async () => {
      const { ask } = failing('allow', true);
      for (let i = 0; i < 9; i++) expect((await ask()).status).toBe(200);
    });
  });

  it('refuses without an identity, and behind meter', async () => {
    const quota = createQuota({ store: memoryQuotaStore(), plans: { free: [burst] } });
    const handler = vi.fn();
    const alone = await request(express().use(enforceQuota({ quota }), handler)).get('/');
    expect([alone.status, alone.body.code]).toEqual([401, 'missing_credentials']);
    const pipeline = createPipeline({ sinks: [memorySink()], spool: 'memory', source: 'test' });
    const app = express().use(asIdentity(caller()), meter({ pipeline, type: 't' }), enforceQuota({ quota }), handler);
    const late = await request(app).get('/');
    expect([late.status, late.body.code]).toEqual([500, 'middleware_order']);
    expect(handler).not.toHaveBeenCalled();
    await pipeline.close();
  });

  it('decides in the same tick in memory', () => {
    const quota = createQuota({ store: memoryQuotaStore(), plans: { free: [burst] } });
    const req = { headers: {}, rawHeaders: [], socket: { on() {} } };
    const res = { on() {}, headersSent: false, writableEnded: false, destroyed: false };
    Object.assign(res, { req });
    let passed = false;
    asIdentity(caller())(req as never, res as never, () => {
      enforceQuota({ quota })(req as never, res as never, () => {
        passed = true;
      });
    });
    expect(passed).toBe(true);
  });

  it('throws a TypeError that lists every problem of the options', () => {
    const options = {
      quota: {},
      cost: -1,
      reserve: 5,
      reservationSeconds: 0,
      settle: { whenMissing: 'half', refundOn: ['never'], other: 1 },
      headers: 'draft-6',
      extra: 1,
    };
    expect(() => enforceQuota(options as never)).toThrow(
      /unknown option "extra".*quota must come.*cost must be.*reserve must be.*reservationSeconds.*settle\.other.*whenMissing.*refundOn.*headers must be/,
    );
    expect(() =>
      enforceQuota({
        quota: createQuota({ store: memoryQuotaStore(), plans: {} }),
        settle: { refundOn: 'x' as never },
      }),
    ).toThrow('must be an array');
  });
});

describe('createQuota', () => {
  it('throws a TypeError that lists every problem of the plans', () => {
    const options = {
      store: {},
      plans: {
        free: [
          { name: '', per: 'user', unit: '__proto__', limit: -1, onStoreError: 'open', window: { kind: 'sliding' } },
          { ...burst, window: { periodSeconds: 0, burst: 0 } },
          { ...burst, window: { kind: 'calendar', unit: 'year', timeZone: 'Mars/Olympus', anchorDay: 32 } },
          { ...burst, window: { kind: 'concurrent', ttlSeconds: -1 } },
        ],
        pro: 'none',
      },
      defaultPlan: 'gold',
      replicas: 0,
    };
    expect(() => createQuota(options as never)).toThrow(TypeError);
    try {
      createQuota(options as never);
    } catch (error) {
      for (const part of [
        'store must be',
        'free[0].name',
        'free[0].per',
        'free[0].unit',
        'free[0].limit',
        'onStoreError',
        'periodSeconds',
        'burst',
        'used twice',
        '.unit must be',
        'timeZone',
        'anchorDay',
        'ttlSeconds',
        'plans.pro must be an array',
        'defaultPlan',
        'replicas',
      ]) {
        expect((error as Error).message).toContain(part);
      }
    }
    expect(() => createQuota({ store: memoryQuotaStore(), plans: null as never })).toThrow('plans must be an object');
  });

  it('tells callers where they stand, and forgets what they used when told to', async () => {
    const { ask, app, quota, clock } = world({ free: [burst, daily] });
    await ask();
    clock.advance(1);
    const res = await request(app).get('/quota');
    expect(res.headers['cache-control']).toBe('no-store');
    expect(res.body).toEqual({
      policies: [
        { policy: 'burst', unit: 'requests', limit: 3, used: 1, remaining: 2, resetSeconds: 19, retrySeconds: 0 },
        { policy: 'daily', unit: 'requests', limit: 5, used: 1, remaining: 4, resetSeconds: 43_199, retrySeconds: 0 },
      ],
    });
    const identity = identityMade(caller()) as never;
    await quota.reset(identity, { policy: 'burst' });
    expect((await quota.peek(identity)).map(({ used }) => used)).toEqual([0, 1]);
    await quota.reset(identity);
    expect((await quota.peek(identity)).map(({ used }) => used)).toEqual([0, 0]);
    await expect(quota.reset(identity, { policy: 'x' })).rejects.toMatchObject({ code: 'quota_unavailable' });
    const anonymous = await request(express().use(quota.handler())).get('/');
    expect(anonymous.status).toBe(401);
    await quota.ready();
    await quota.close();
  });

  it('answers the handler with 503 when the caller has no plan', async () => {
    const { app, as } = world({ free: [burst] });
    as({ plan: undefined });
    expect((await request(app).get('/quota')).body.code).toBe('quota_unavailable');
  });
});

describe('limitAddress', () => {
  it('counts failures by address before authenticate, so that guessing is bounded', async () => {
    const clock = manualClock(START);
    const app = express();
    app.use(limitAddress({ store: memoryQuotaStore({ clock }), limit: 3, periodSeconds: 60 }));
    app.use(
      authenticate({
        verifiers: [{ name: 'n', accepts: ({ token }) => token === 'good', verify: () => caller() }],
      }),
      (_req, res) => void res.json('in'),
    );
    const ask = (token: string) => request(app).get('/').set('authorization', `Bearer ${token}`);
    for (let i = 0; i < 9; i++) expect((await ask('good')).status).toBe(200);
    for (let i = 0; i < 3; i++) expect((await ask('guess')).status).toBe(401);
    const refused = await ask('good');
    expect([refused.status, refused.body['violated-policies'], refused.headers['retry-after']]).toEqual([
      429,
      ['address'],
      '20',
    ]);
    clock.advance(20);
    expect((await ask('good')).status).toBe(200);
  });

  it('counts every request with count: all, and 401s that the app itself gives with count: failures', async () => {
    const all = express().use(
      limitAddress({ store: memoryQuotaStore(), limit: 2, periodSeconds: 60, count: 'all' }),
      (_req, res) => void res.end(),
    );
    expect([
      (await request(all).get('/')).status,
      (await request(all).get('/')).status,
      (await request(all).get('/')).status,
    ]).toEqual([200, 200, 429]);
    const own = express().use(
      limitAddress({ store: memoryQuotaStore(), limit: 1, periodSeconds: 60 }),
      (_req, res) => void res.status(401).end(),
    );
    expect((await request(own).get('/')).status).toBe(401);
    await vi.waitFor(async () => expect((await request(own).get('/')).status).toBe(429));
  });

  it('is not fooled by X-Forwarded-For, unless a trusted proxy wrote it; IPv6 counts by /64', async () => {
    const app = (trustedProxies?: string[]) =>
      express().use(
        limitAddress({ store: memoryQuotaStore(), limit: 1, periodSeconds: 60, count: 'all', trustedProxies }),
        (_req, res) => void res.end(),
      );
    const ask = (target: express.Express, forwarded: string) =>
      request(target)
        .get('/')
        .set('x-forwarded-for', forwarded)
        .then(({ status }) => status);
    const plain = app();
    expect([await ask(plain, '1.1.1.1'), await ask(plain, '2.2.2.2')]).toEqual([200, 429]);
    const behind = app(['127.0.0.1', '::1']);
    expect([await ask(behind, '1.1.1.1'), await ask(behind, '2.2.2.2'), await ask(behind, '9.9.9.9, 1.1.1.1')]).toEqual(
      [200, 200, 429],
    );
    expect([
      await ask(behind, '2001:db8::1'),
      await ask(behind, '2001:db8::ffff:2'),
      await ask(behind, '2001:db8:0:1::1'),
    ]).toEqual([200, 429, 200]);
    expect([await ask(behind, '::ffff:3.3.3.3'), await ask(behind, '3.3.3.3')]).toEqual([200, 429]);
    expect(await ask(behind, 'nonsense')).toBe(503);
  });

  it.each([true, false])('answers 503 when the store fails (async: %s)', async (async) => {
    const failure = (): never => {
      throw new Error('down');
    };
    const store: QuotaStore = { take: async ? async () => failure() : failure, settle: failure, reset: failure };
    const app = express().use(limitAddress({ store, limit: 1, periodSeconds: 60 }), (_req, res) => void res.end());
    expect((await request(app).get('/')).body.code).toBe('quota_unavailable');
  });

  it('throws a TypeError that lists every problem of the options', async () => {
    expect(() => limitAddress({ store: {}, limit: 0, count: 'some', trustedProxies: ['x'] } as never)).toThrow(
      /store must be.*limit must be.*periodSeconds is missing.*count must be.*trustedProxies/,
    );
  });
});

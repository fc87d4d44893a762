import express from 'express';
import request from 'supertest';
import {
  AccessError,
  createPipeline,
  createQuota,
  enforceQuota,
  identitiesOf,
  identityOf,
  isAccessError,
  isRegistryError,
  isSinkError,
  memoryQuotaStore,
  memorySink,
  meter,
  RegistryError,
  SinkError,
  usageOf,
} from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';
import { expect, it, vi } from 'vitest';

it('identityOf refuses a request that nobody authenticated', async () => {
  const seen: unknown[] = [];
  const app = express().use((req, res) => {
    try {
      identityOf(req);
    } catch (error) {
      seen.push(error);
    }
    seen.push(identitiesOf(req, 'workload'));
    res.end();
  });
  await request(app).get('/');
  expect(seen).toEqual([expect.objectContaining({ code: 'missing_credentials', status: 401 }), undefined]);
});

it('usageOf works without meter, and what it is told after the response is ignored', async () => {
  const late: (() => void)[] = [];
  const app = express().use((req, res) => {
    const usage = usageOf(req);
    usage.add('a', 1);
    usage.checkpoint();
    expect(usage.eventId).toBe(undefined);
    late.push(() => usage.add('a', 1));
    res.end();
  });
  expect((await request(app).get('/')).status).toBe(200);
  for (const report of late) report();
});

it('a quota hold and a usage event end with one response, each once', async () => {
  const store = memoryQuotaStore();
  const settle = vi.spyOn(store, 'settle');
  const quota = createQuota({
    store,
    plans: {
      p: [{ name: 'tokens', per: 'subject', unit: 'tokens', limit: 10, window: { kind: 'calendar', unit: 'day' } }],
    },
    defaultPlan: 'p',
  });
  const sink = memorySink();
  const pipeline = createPipeline({ sinks: [sink], spool: 'memory', source: 'test' });
  const app = express().use(
    asIdentity({ subject: { kind: 'user', id: 'u' }, authId: 'k' }),
    enforceQuota({ quota, reserve: () => ({ tokens: 5 }) }),
    meter({ pipeline, type: 'call' }),
    (req, res) => {
      usageOf(req).add('tokens', 2);
      res.end();
    },
  );
  expect((await request(app).get('/')).status).toBe(200);
  await vi.waitFor(() => expect(pipeline.stats().written).toBe(1));
  await pipeline.close();
  expect(settle.mock.calls.map(([, , actual]) => actual)).toEqual([[2]]);
  expect(sink.events[0]?.quantities.tokens).toEqual({ value: 2, basis: 'reported' });
});

it('errors are recognised by what they say, of whichever copy of the package', () => {
  const access = new AccessError('quota_exceeded', {
    reason: 'r',
    cause: 1,
    retryAfterSeconds: 0.2,
    violatedPolicies: ['a'],
  });
  expect(access).toMatchObject({
    status: 429,
    statusCode: 429,
    expose: true,
    reason: 'r',
    cause: 1,
    headers: { 'retry-after': '1' },
  });
  expect(Object.keys(access)).not.toContain('reason');
  expect(JSON.stringify(access)).not.toContain('"r"');
  expect(new AccessError('metering_unavailable', { retryAfterSeconds: Number.NaN }).headers).not.toHaveProperty(
    'retry-after',
  );
  expect(() => new AccessError('toString' as never)).toThrow(TypeError);
  const registry = new RegistryError('invalid_input', ['a', 'b']);
  expect(registry).toMatchObject({ status: 400, message: 'a; b', problems: ['a', 'b'] });
  const sink = new SinkError('down', { action: 'pause', afterSeconds: 5, ambiguous: true, cause: 1 });
  expect(sink).toMatchObject({ code: 'sink_error', action: 'pause', afterSeconds: 5, ambiguous: true, cause: 1 });
  expect(new SinkError('x')).toMatchObject({ action: 'retry', ambiguous: false });
  const foreign = Object.assign(new Error('x'), { name: 'AccessError', code: 'invalid_token' });
  expect([
    isAccessError(access),
    isAccessError(foreign),
    isAccessError(registry),
    isAccessError({ code: 'invalid_token' }),
    isAccessError(Object.assign(foreign, { code: '__proto__' })),
  ]).toEqual([true, true, false, false, false]);
  expect([isRegistryError(registry), isRegistryError(access), isRegistryError(null)]).toEqual([true, false, false]);
  expect([isSinkError(sink), isSinkError(access), isSinkError('x')]).toEqual([true, false, false]);
});

it.each([
  [{ subject: undefined }, 'subject.kind'],
  [{ authId: '' }, 'authId'],
  [{ tenant: 5 }, 'tenant'],
  [{ issuedAt: Number.NaN }, 'issuedAt'],
  [{ groups: 'a' }, 'groups'],
  [{ groups: [1] }, 'groups'],
  [{ resources: [{ type: 'a' }] }, 'resources'],
  [{ resources: {} }, 'resources'],
  [{ scopes: 'a:read' }, 'scopes'],
  [{ scopes: [1] }, 'scopes'],
  [{ scopes: 5 }, 'scopes'],
  [{ claims: [] }, 'claims'],
  [{ claims: 'x' }, 'claims'],
  [{ confirmation: 'x' }, 'confirmation'],
  [{ actor: { kind: 'robot', id: '' } }, 'actor.kind'],
])('an identity with %j is refused, and the message names the field, never the value', (input, field) => {
  const whole = { subject: { kind: 'user', id: 'u' }, authId: 'k', ...input };
  expect(() => asIdentity(whole as never)).toThrow(field);
});

it('an identity keeps what it was given, in forms that nobody can change', async () => {
  const cyclic: Record<string, unknown> = {};
  cyclic.self = cyclic;
  expect(() => asIdentity({ subject: { kind: 'user', id: 'u' }, authId: 'k', claims: cyclic })).toThrow('too deeply');
  const app = express().use(
    asIdentity({
      subject: { kind: 'user', id: 'u' },
      authId: 'k',
      scopes: new Set(['a:read']),
      claims: { at: new Date(0), drop: () => 1, symbol: Symbol('x'), list: [undefined, 1], none: null },
    }),
    (req, res) => {
      const { scopes, claims } = identityOf(req);
      const visited: string[] = [];
      scopes.forEach((scope) => {
        visited.push(scope);
      });
      res.json({
        claims,
        visited,
        size: scopes.size,
        lists: [[...scopes], [...scopes.keys()], [...scopes.values()], [...scopes.entries()]],
        tag: String(scopes),
      });
    },
  );
  expect((await request(app).get('/')).body).toEqual({
    claims: { at: '1970-01-01T00:00:00.000Z', list: [null, 1], none: null },
    visited: ['a:read'],
    size: 1,
    lists: [['a:read'], ['a:read'], ['a:read'], [['a:read', 'a:read']]],
    tag: '[object ScopeSet]',
  });
});

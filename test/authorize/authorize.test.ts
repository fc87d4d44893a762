import express from 'express';
import request from 'supertest';
import {
  authenticate,
  type IdentityInput,
  type Middleware,
  requireNetwork,
  requireResource,
  requireScope,
  requireSubject,
  requireTenant,
} from 'tollkeeper';
import { describe, expect, it, vi } from 'vitest';
import { frameworks } from '../support/frameworks.js';
import { rawGet, withoutDate } from '../support/raw-request.js';
import { serve } from '../support/serve.js';

const caller: IdentityInput = { subject: { kind: 'user', id: 'u' }, authId: 'k' };

function signIn(identity: IdentityInput): Middleware {
  return authenticate({ verifiers: [{ name: 'test', accepts: () => true, verify: () => identity }] });
}

async function ask(identity: Partial<IdentityInput>, gate: Middleware, path = '/') {
  const handler = vi.fn((_req, res) => res.json('in'));
  const app = express();
  app.use(signIn({ ...caller, ...identity }), gate, handler);
  const res = await request(app).get(path);
  expect(handler).toHaveBeenCalledTimes(res.status === 200 ? 1 : 0);
  return res;
}

const gates: readonly [string, () => Middleware][] = [
  ['requireScope', () => requireScope('a:read')],
  ['requireSubject', () => requireSubject('user')],
  ['requireTenant', () => requireTenant(() => 't')],
  ['requireResource', () => requireResource(() => ({ type: 'repo', id: '1' }), { unconstrained: 'allow' })],
];

describe('every gate', () => {
  it.each(gates)('%s answers 401 without authenticate before it', async (_name, gate) => {
    const handler = vi.fn();
    const res = await request(express().use(gate(), handler)).get('/');
    expect([res.status, res.body.code]).toEqual([401, 'missing_credentials']);
    expect(res.headers['www-authenticate']).toBe('Bearer');
    expect(handler).not.toHaveBeenCalled();
  });

  it.each(gates)('%s answers 401 to an anonymous caller that optional: true let through', async (_name, gate) => {
    const handler = vi.fn();
    const open = authenticate({
      verifiers: [{ name: 'n', accepts: () => false, verify: () => caller }],
      optional: true,
    });
    expect((await request(express().use(open, gate(), handler)).get('/')).status).toBe(401);
    expect(handler).not.toHaveBeenCalled();
  });

  it.each(gates)('%s is not fooled by an identity that somebody else put on req', async (_name, gate) => {
    const handler = vi.fn();
    const forge = (req: express.Request, _res: unknown, next: () => void) => {
      Object.assign(req, { identity: { ...caller, scopes: new Set(['a:read']), tenant: 't' } });
      next();
    };
    expect((await request(express().use(forge, gate(), handler)).get('/')).status).toBe(401);
  });

  it('gives the same answers, byte for byte, on Express 4, Express 5, Connect and bare node:http', async () => {
    const answers: string[] = [];
    for (const { listen } of frameworks) {
      const gate = requireScope('a:read', 'b:read');
      const served = await serve(listen([signIn(caller), gate], (_req, res) => res.end('in')));
      answers.push(withoutDate(await rawGet(served.port, [])));
      await served.close();
    }
    expect(answers[0]).toMatch(/^HTTP\/1.1 403/);
    expect(new Set(answers).size).toBe(1);
  });
});

describe('requireScope', () => {
  it('lets a caller through that has all of the scopes', async () => {
    expect((await ask({ scopes: ['a:read', 'b:read'] }, requireScope('a:read', 'b:read'))).status).toBe(200);
  });

  it('answers 403 with a challenge that lists every scope of the route', async () => {
    const res = await ask({ scopes: ['a:read'] }, requireScope('a:read', 'b:read'));
    expect([res.status, res.body.code]).toEqual([403, 'insufficient_scope']);
    expect(res.headers['www-authenticate']).toMatch(/^Bearer error="insufficient_scope", .*scope="a:read b:read"$/);
  });

  it.each([
    [['a:write'], 200],
    [['a:admin'], 200],
    [['a:read'], 403],
    [[], 403],
  ])('takes a rule of alternatives: %j → %i', async (scopes, status) => {
    expect((await ask({ scopes }, requireScope({ any: ['a:write', 'a:admin'] }))).status).toBe(status);
  });

  it.each([
    [['x:use', 'a:admin'], 200],
    [['x:use'], 403],
    [['a:admin'], 403],
  ])('takes both at once: %j → %i', async (scopes, status) => {
    const res = await ask({ scopes }, requireScope({ all: ['x:use'], any: ['a:write', 'a:admin'] }));
    expect(res.status).toBe(status);
    if (status === 403) expect(res.headers['www-authenticate']).toContain('scope="x:use a:write a:admin"');
  });

  it.each(['*', 'a:*', 'a:any', 'A:READ', 'a:rea', 'a:read2', 'a'])(
    'grants nothing for the scope %s',
    async (scope) => {
      expect((await ask({ scopes: [scope] }, requireScope('a:read'))).status).toBe(403);
    },
  );

  it.each([
    [[]],
    [['']],
    [['a b']],
    [['a"b']],
    [['*']],
    [['a:*']],
    [['a:any']],
    [[{}]],
    [[{ any: [] }]],
    [[{ al: ['a'] }]],
    [[null]],
    [[1]],
    [[{ all: ['a'] }, 'b']],
    [[{ all: 'a' }]],
  ])('throws a TypeError for %j', (args) => {
    expect(() => (requireScope as (...scopes: unknown[]) => unknown)(...args)).toThrow(/^requireScope: /);
  });
});

describe('requireSubject', () => {
  it('turns other kinds of subject away', async () => {
    const gate = requireSubject('user', 'organization');
    expect((await ask({}, gate)).status).toBe(200);
    const res = await ask({ subject: { kind: 'service', id: 's' } }, gate);
    expect([res.status, res.body.code]).toEqual([403, 'subject_not_allowed']);
    expect(res.headers['www-authenticate']).toBeUndefined();
  });

  it.each([[[]], [['robot']], [[undefined]], [[null]]])('throws a TypeError for %j', (args) => {
    expect(() => (requireSubject as (...kinds: unknown[]) => unknown)(...args)).toThrow(/^requireSubject: /);
  });
});

describe('requireTenant', () => {
  it('lets the tenant itself through, and nobody else', async () => {
    const gate = requireTenant((req) => req.url?.slice(1));
    expect((await ask({ tenant: 't1' }, gate, '/t1')).status).toBe(200);
    const res = await ask({ tenant: 't1' }, gate, '/t2');
    expect([res.status, res.body.code]).toEqual([403, 'tenant_mismatch']);
    expect((await ask({}, gate, '/t1')).status).toBe(403);
  });

  it.each([
    ['nothing', () => undefined],
    ['an empty string', () => ''],
    ['a list', () => ['t1']],
    ['a promise', async () => 't1'],
    [
      'a throw',
      () => {
        throw undefined;
      },
    ],
  ])('refuses when the callback gives %s', async (_name, tenantOf) => {
    expect((await ask({ tenant: 't1' }, requireTenant(tenantOf as never))).body.code).toBe('tenant_mismatch');
    expect((await ask({}, requireTenant(tenantOf as never, { crossTenant: () => true }))).status).toBe(403);
  });

  it.each([
    ['true', () => true, 200],
    ['false', () => false, 403],
    ['a promise of true', async () => true, 403],
    ['something truthy', () => 1, 403],
    [
      'a throw',
      () => {
        throw new Error('x');
      },
      403,
    ],
  ])('lets a caller cross only when the rule says exactly true: %s', async (_name, crossTenant, status) => {
    const gate = requireTenant(() => 't2', { crossTenant: crossTenant as never });
    expect((await ask({ tenant: 't1' }, gate)).status).toBe(status);
  });

  it('throws a TypeError for anything else than a function, and for unknown options', () => {
    expect(() => requireTenant('t1' as never)).toThrow(TypeError);
    expect(() => requireTenant(() => 't', { crossTenants: () => true } as never)).toThrow(
      'did you mean "crossTenant"?',
    );
    expect(() => requireTenant(() => 't', { crossTenant: true } as never)).toThrow('crossTenant must be a function');
  });
});

describe('requireResource', () => {
  const repo = (id: string) => ({ type: 'repo', id });
  const gate = requireResource((req) => repo(req.url?.slice(1) as string));

  it('lets a caller through to the resources of its constraint only', async () => {
    const resources = [repo('a'), repo('b')];
    expect((await ask({ resources }, gate, '/a')).status).toBe(200);
    const res = await ask({ resources }, gate, '/c');
    expect([res.status, res.body.code]).toEqual([403, 'resource_mismatch']);
    expect((await ask({ resources: [{ type: 'account', id: 'a' }] }, gate, '/a')).status).toBe(403);
  });

  it('takes no constraint for a wildcard only when told to, and an empty one never', async () => {
    expect((await ask({}, gate, '/a')).status).toBe(403);
    const allowing = requireResource(() => repo('a'), { unconstrained: 'allow' });
    expect((await ask({}, allowing)).status).toBe(200);
    expect((await ask({ resources: [] }, allowing)).status).toBe(403);
  });

  it.each([
    undefined,
    null,
    {},
    { type: 'repo' },
    { type: 'repo', id: '' },
    { type: 'repo', id: 1 },
    Promise.resolve(repo('a')),
  ])('refuses when the callback names no resource: %j', async (value) => {
    const broken = requireResource(() => value as never, { unconstrained: 'allow' });
    expect((await ask({ resources: [repo('a')] }, broken)).body.code).toBe('resource_mismatch');
    expect((await ask({}, broken)).status).toBe(403);
  });

  it('throws a TypeError for wrong options', () => {
    expect(() => requireResource(undefined as never)).toThrow(TypeError);
    expect(() => requireResource(() => repo('a'), { unconstrained: 'yes' as never })).toThrow(TypeError);
  });
});

describe('requireNetwork', () => {
  async function from(gate: Middleware, headers: readonly string[] = []) {
    const served = await serve(express().use(gate, (_req, res) => void res.end('in')));
    const answer = await rawGet(served.port, headers);
    await served.close();
    return Number(answer.slice(9, 12));
  }

  it('lets only listed networks through, and needs no identity', async () => {
    expect(await from(requireNetwork({ allow: ['127.0.0.0/8'] }))).toBe(200);
    expect(await from(requireNetwork({ allow: ['::ffff:127.0.0.0/104'] }))).toBe(200);
    expect(await from(requireNetwork({ allow: ['10.0.0.0/8', 'fd00::/8'] }))).toBe(403);
  });

  it('believes X-Forwarded-For only as far as trusted proxies wrote it', async () => {
    const allow = ['10.1.2.3'];
    const trusting = requireNetwork({ allow, trustedProxies: ['127.0.0.1', '192.168.0.0/16'] });
    expect(await from(requireNetwork({ allow }), ['X-Forwarded-For: 10.1.2.3'])).toBe(403);
    expect(await from(trusting, ['X-Forwarded-For: 10.1.2.3'])).toBe(200);
    expect(await from(trusting, ['X-Forwarded-For: 10.1.2.3:8080'])).toBe(200);
    expect(await from(trusting, ['X-Forwarded-For: ::ffff:10.1.2.3'])).toBe(200);
    expect(await from(trusting, ['X-Forwarded-For: 10.1.2.3, 192.168.7.7'])).toBe(200);
    expect(await from(trusting, ['X-Forwarded-For: 10.1.2.3', 'X-Forwarded-For: 192.168.7.7'])).toBe(200);
    expect(await from(trusting, ['X-Forwarded-For: 10.1.2.3, 8.8.8.8'])).toBe(403);
    expect(await from(trusting, ['X-Forwarded-For: 10.1.2.3, unknown'])).toBe(403);
    expect(await from(trusting, ['X-Forwarded-For: '])).toBe(403);
    expect(await from(trusting)).toBe(403);
  });

  it('throws a TypeError that lists every entry that is no network', () => {
    expect(() => requireNetwork({ allow: ['10.0.0.0/33', 'localhost', '1.2.3.4/x', '1.2.3.4/8/8', '::/129'] })).toThrow(
      /10\.0\.0\.0\/33.*localhost.*1\.2\.3\.4\/x.*1\.2\.3\.4\/8\/8.*::\/129/,
    );
    expect(() => requireNetwork({ allow: [] })).toThrow('an empty list lets nobody through');
    expect(() => requireNetwork({ allow: '10.0.0.0/8' } as never)).toThrow('must be an array');
    expect(() => requireNetwork({ allow: ['10.0.0.0/8'], trustedProxies: ['proxy'] })).toThrow(
      'trustedProxies: "proxy"',
    );
  });
});

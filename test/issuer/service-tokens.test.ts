import express from 'express';
import { decodeJwt } from 'jose';
import { authenticate, createKeyRing, jwtVerifier, requireResource, requireScope } from 'tollkeeper';
import { createIssuer } from 'tollkeeper/issuer';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { serve } from '../support/index.js';
import {
  AUDIENCE,
  assertion,
  assertionForm,
  basic,
  CLIENTS,
  type Fixture,
  ISSUER,
  issuerFixture,
  SECRET,
} from './issuer-fixture.js';

describe('POST /service-tokens', () => {
  let fixture: Fixture;
  beforeAll(async () => {
    fixture = await issuerFixture();
  });
  afterAll(() => fixture.close());
  const GOOD = { tenant_id: 'acme', scopes: ['repo:read'], ttl_seconds: 60 };

  it('answers with a token for one tenant, whose exp is what the answer says', async () => {
    const response = await fixture.serviceToken({ ...GOOD, resource_id: 'A' });
    expect(response.status).toBe(200);
    expect(response.headers.get('cache-control')).toBe('no-store');
    const body = (await response.json()) as Record<string, unknown>;
    const claims = decodeJwt(body.token as string);
    expect(body).toEqual({
      token: expect.any(String),
      token_id: claims.jti,
      expires_at: claims.exp,
      scopes: ['repo:read'],
      clamped: false,
    });
    expect(claims).toMatchObject({
      iss: ISSUER,
      aud: AUDIENCE,
      sub: 'ci',
      client_id: 'ci',
      tenant_id: 'acme',
      scope: 'repo:read',
      resources: [{ type: 'repository', id: 'A' }],
      is_service_account: true,
      exp: (claims.iat as number) + 60,
    });
  });

  it.each([
    [3_600, 3_600, false],
    [3_601, 3_600, true],
    [1e300, 3_600, true],
    [1, 1, false],
    [1.9, 1, false],
    [undefined, 600, false],
    [null, 600, false],
  ])('gives for a lifetime of %s seconds %s, clamped: %s', async (ttl, granted, clamped) => {
    const response = await fixture.serviceToken({ ...GOOD, ttl_seconds: ttl });
    const body = (await response.json()) as { token: string; clamped: boolean };
    const { iat = 0, exp = 0 } = decodeJwt(body.token);
    expect(exp - iat).toBe(granted);
    expect(body.clamped).toBe(clamped);
  });

  it('takes a crossTenant client to any tenant, and demands that it names one', async () => {
    const form = async () => assertionForm(await assertion());
    const named = await fixture.serviceToken({ ...GOOD, tenant_id: 'globex', ...(await form()) }, {});
    expect(decodeJwt(((await named.json()) as { token: string }).token).tenant_id).toBe('globex');
    const unnamed = await fixture.serviceToken({ ...GOOD, tenant_id: undefined, ...(await form()) }, {});
    expect(unnamed.status).toBe(400);
  });

  it('takes the secret in the body, too', async () => {
    const response = await fixture.serviceToken({ ...GOOD, client_id: 'ci', client_secret: SECRET }, {});
    expect(response.status).toBe(200);
  });

  it.each<[string, unknown, Record<string, string> | undefined, number, string]>([
    ['a wrong secret', GOOD, { authorization: basic('ci', 'wrong') }, 401, 'invalid_client'],
    ['no credential', GOOD, {}, 401, 'invalid_client'],
    ['a bearer token where no workload is known', GOOD, { authorization: 'Bearer a.b.c' }, 401, 'invalid_client'],
    ['another tenant', { ...GOOD, tenant_id: 'globex' }, undefined, 403, 'tenant_mismatch'],
    ['a tenant that is no text', { ...GOOD, tenant_id: ['acme'] }, undefined, 400, 'invalid_request'],
    ['an empty tenant', { ...GOOD, tenant_id: '' }, undefined, 400, 'invalid_request'],
    ['a write scope', { ...GOOD, scopes: ['repo:write'] }, undefined, 400, 'invalid_scope'],
    ['a wildcard scope', { ...GOOD, scopes: ['repo:any'] }, undefined, 400, 'invalid_scope'],
    ['a scope that is a number', { ...GOOD, scopes: [1] }, undefined, 400, 'invalid_scope'],
    ['scopes that are text', { ...GOOD, scopes: 'repo:read' }, undefined, 400, 'invalid_request'],
    ['no scopes', { ...GOOD, scopes: undefined }, undefined, 400, 'invalid_request'],
    ['a lifetime of 0', { ...GOOD, ttl_seconds: 0 }, undefined, 400, 'invalid_request'],
    ['a lifetime below 0', { ...GOOD, ttl_seconds: -5 }, undefined, 400, 'invalid_request'],
    ['a lifetime below a second', { ...GOOD, ttl_seconds: 0.5 }, undefined, 400, 'invalid_request'],
    ['a lifetime that is text', { ...GOOD, ttl_seconds: '60' }, undefined, 400, 'invalid_request'],
    ['an empty resource id', { ...GOOD, resource_id: '' }, undefined, 400, 'invalid_request'],
    ['a resource id that is no text', { ...GOOD, resource_id: 5 }, undefined, 400, 'invalid_request'],
    ['a misspelt member', { ...GOOD, resourceId: 'A' }, undefined, 400, 'invalid_request'],
    [
      'a resource that the client has not',
      { ...GOOD, resource_id: 'C' },
      { authorization: basic('pinned', SECRET) },
      400,
      'invalid_target',
    ],
    [
      'no resource where one must be named',
      { ...GOOD, scopes: [] },
      { authorization: basic('naming', SECRET) },
      400,
      'invalid_target',
    ],
    ['no object', [GOOD], undefined, 400, 'invalid_request'],
    ['no JSON', '{', undefined, 400, 'invalid_request'],
    [
      'a form',
      'tenant_id=acme',
      { authorization: basic('ci', SECRET), 'content-type': 'application/x-www-form-urlencoded' },
      400,
      'invalid_request',
    ],
  ])('refuses %s', async (_, body, headers, status, error) => {
    const response = await fixture.serviceToken(body, headers);
    expect(response.status).toBe(status);
    expect(response.headers.get('cache-control')).toBe('no-store');
    expect(await response.json()).toEqual({ error, error_description: expect.any(String), code: error });
  });

  it('never breaks, and never grants more, whatever a member is', async () => {
    const hostile = [
      null,
      true,
      0,
      -1,
      1e308,
      '',
      '__proto__',
      [],
      ['__proto__'],
      [['repo:read']],
      {},
      { length: 1 },
      'x'.repeat(9_000),
    ];
    for (const name of [
      ...Object.keys(GOOD),
      'resource_id',
      'policy',
      'client_id',
      'client_secret',
      'client_assertion',
      '__proto__',
      'constructor',
    ]) {
      for (const value of hostile) {
        const body = JSON.stringify(GOOD).replace(/\}$/, `,${JSON.stringify(name)}:${JSON.stringify(value)}}`);
        const response = await fixture.serviceToken(body);
        const answer = (await response.json()) as { token?: string };
        expect([200, 400, 401, 403]).toContain(response.status);
        if (answer.token === undefined) continue;
        const claims = decodeJwt(answer.token);
        expect(claims).toMatchObject({ sub: 'ci', client_id: 'ci', tenant_id: 'acme' });
        expect((claims.exp as number) - (claims.iat as number)).toBeLessThanOrEqual(3_600);
        if (name === 'resource_id' && value !== null)
          expect(claims.resources).toEqual([{ type: 'repository', id: value }]);
        if (name === 'scopes') expect(claims.scope).toBeUndefined();
      }
    }
  });

  it('refuses a resource_id where nobody said what it is the id of', async () => {
    const other = await issuerFixture({ resourceType: undefined });
    const response = await other.serviceToken({ ...GOOD, resource_id: 'A' });
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: 'invalid_target' });
    await other.close();
  });

  it('makes tokens that open one repository, for reading, until they are revoked', async () => {
    const app = express();
    const verifier = jwtVerifier({
      issuer: ISSUER,
      audience: AUDIENCE,
      algorithms: ['ES256'],
      keys: { keyRing: fixture.keyRing },
    });
    app.use(authenticate({ verifiers: [verifier], revocations: fixture.issuer.revocations }));
    const own = requireResource((req) => ({ type: 'repository', id: String((req as express.Request).params.id) }));
    app.get('/repos/:id', requireScope('repo:read'), own, (_req, res) => {
      res.json({});
    });
    app.delete('/repos/:id', requireScope('repo:write'), own, (_req, res) => {
      res.json({});
    });
    const api = await serve(app);
    const call = async (token: string, path: string, method = 'GET') =>
      (await fetch(`${api.url}${path}`, { method, headers: { authorization: `Bearer ${token}` } })).status;
    const a = await fixture.issuer.issueServiceToken({
      tenantId: 'acme',
      clientId: 'ci',
      scopes: ['repo:read'],
      resource: { type: 'repository', id: 'A' },
      ttlSeconds: 60,
    });
    expect(decodeJwt(a.token).exp).toBe(a.expiresAt);
    expect(await call(a.token, '/repos/A')).toBe(200);
    expect(await call(a.token, '/repos/B')).toBe(403);
    expect(await call(a.token, '/repos/A', 'DELETE')).toBe(403);
    const free = await fixture.issuer.issueServiceToken({
      tenantId: 'acme',
      clientId: 'ci',
      scopes: ['repo:read'],
      ttlSeconds: 60,
    });
    expect(await call(free.token, '/repos/A')).toBe(403);
    expect((await fixture.post('/oauth/revoke', { token: a.token })).status).toBe(200);
    expect(await call(a.token, '/repos/A')).toBe(401);
    await api.close();
  });
});

describe('issueServiceToken', () => {
  it.each<[string, object, string]>([
    ['an unknown client', { clientId: 'nobody' }, 'invalid_client'],
    ['no tenant', { tenantId: undefined }, 'invalid_request'],
    ['another tenant', { tenantId: 'globex' }, 'tenant_mismatch'],
    ['no lifetime', { ttlSeconds: undefined }, 'invalid_request'],
    ['a lifetime that is no number', { ttlSeconds: Number.NaN }, 'invalid_request'],
    ['a write scope', { scopes: ['repo:write'] }, 'invalid_scope'],
  ])('rejects %s with the code of the endpoint', async (_, change, code) => {
    const issuer = createIssuer({
      issuer: ISSUER,
      audience: AUDIENCE,
      keyRing: await createKeyRing(),
      maxTtlSeconds: 60,
      clients: CLIENTS,
    });
    const request = { tenantId: 'acme', clientId: 'ci', scopes: ['repo:read'], ttlSeconds: 5, ...change };
    await expect(issuer.issueServiceToken(request as never)).rejects.toMatchObject({ name: 'OAuthError', code });
    await issuer.ready();
    await issuer.close();
    await issuer.close();
  });
});

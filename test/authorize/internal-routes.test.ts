import express, { type Request } from 'express';
import {
  authenticate,
  identitiesOf,
  identityOf,
  requireNetwork,
  requireSubject,
  requireTenant,
  workloadVerifier,
} from 'tollkeeper';
import { testIssuer } from 'tollkeeper/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { signed, testKey } from '../support/identity-provider.js';
import { rawGet } from '../support/raw-request.js';
import { type Served, serve } from '../support/serve.js';

/** The recipe of the README, with 127.0.0.1 as the proxy. */
async function internalRoutes(trustedProxies: readonly string[]) {
  const idp = await testIssuer();
  const key = testKey('cluster');
  const issuer = 'https://cluster.example';
  const workloads = () =>
    workloadVerifier({
      issuers: [{ issuer, kind: 'kubernetes', keys: { jwks: { keys: [key.jwk] } } }],
      policies: [
        {
          id: 'cache',
          issuer,
          audience: 'https://api.example',
          match: { sub: 'system:serviceaccount:jobs:cache' },
          grant: { tenantId: 'internal', clientId: 'cache', scopes: [] },
        },
      ],
    });
  const now = Math.floor(Date.now() / 1_000);
  const podToken = (changes: object = {}) =>
    signed(key, {
      iss: issuer,
      aud: ['https://api.example'],
      sub: 'system:serviceaccount:jobs:cache',
      iat: now,
      nbf: now,
      exp: now + 3_600,
      'kubernetes.io': {
        namespace: 'jobs',
        serviceaccount: { name: 'cache', uid: 'u-1' },
        pod: { name: 'cache-0', uid: 'u-2' },
      },
      ...changes,
    });

  const app = express();
  app.use(authenticate({ verifiers: [idp.verifier(), workloads()] }));
  const internal = requireNetwork({ allow: ['10.0.0.0/8'], trustedProxies });
  const account = requireTenant<Request>((req) => req.params.account as string, {
    crossTenant: ({ clientId }) => clientId === 'cache',
  });
  app.use('/internal', internal, requireSubject('service', 'workload'));
  app.get('/internal/:account/cache', account, (req, res) => void res.json(identityOf(req).authId));
  app.use(
    '/accounts',
    requireSubject('user'),
    authenticate({
      as: 'workload',
      optional: true,
      extractToken: (req) => req.headers['x-workload-token'] as string | undefined,
      verifiers: [workloads()],
    }),
  );
  app.get(
    '/accounts/:account',
    requireTenant<Request>((req) => req.params.account as string),
    (req, res) => {
      res.json({ elevated: identitiesOf(req, 'workload')?.authId ?? null });
    },
  );
  const served: Served = await serve(app);
  const ask = async (path: string, token: string | undefined, headers: readonly string[] = []) => {
    const bearer = token === undefined ? [] : [`Authorization: Bearer ${token}`];
    const answer = await rawGet(served.port, [...bearer, ...headers], path);
    const body: unknown = JSON.parse(answer.slice(answer.indexOf('\r\n\r\n') + 4));
    return { status: Number(answer.slice(9, 12)), code: (body as { code?: string }).code, body };
  };
  return { idp, podToken, ask, close: () => served.close() };
}

describe('internal routes', () => {
  let api: Awaited<ReturnType<typeof internalRoutes>>;
  let user: string;
  let service: string;
  const inside = ['X-Forwarded-For: 10.1.2.3'];
  beforeAll(async () => {
    api = await internalRoutes(['127.0.0.1']);
    user = await api.idp.token({ sub: 'ann', tenant_id: 'acme' });
    service = await api.idp.token({ sub: 'reports', client_id: 'reports', tenant_id: 'acme' });
  });
  afterAll(() => api.close());

  it('are for a service of the tenant, and across tenants for the one that the rule names', async () => {
    expect(await api.ask('/internal/acme/cache', service, inside)).toMatchObject({ status: 200, body: 'reports' });
    expect(await api.ask('/internal/acme/cache', api.podToken(), inside)).toMatchObject({ status: 200, body: 'cache' });
    expect(await api.ask('/internal/other/cache', api.podToken(), inside)).toMatchObject({ status: 200 });
    expect(await api.ask('/internal/other/cache', service, inside)).toMatchObject({
      status: 403,
      code: 'tenant_mismatch',
    });
  });

  it('are for nobody else: other networks, users, bad tokens, nobody', async () => {
    for (const headers of [
      [],
      ['X-Forwarded-For: 9.9.9.9'],
      ['X-Forwarded-For: 10.1.2.3, 9.9.9.9'],
      ['X-Real-IP: 10.1.2.3'],
    ])
      expect(await api.ask('/internal/acme/cache', service, headers)).toMatchObject({
        status: 403,
        code: 'network_not_allowed',
      });
    expect(await api.ask('/internal/acme/cache', user, inside)).toMatchObject({
      status: 403,
      code: 'subject_not_allowed',
    });
    expect(await api.ask('/internal/acme/cache', api.podToken({ aud: ['x'] }), inside)).toMatchObject({ status: 401 });
    expect(await api.ask('/internal/acme/cache', undefined, inside)).toMatchObject({ status: 401 });
  });

  it('believe no header where no proxy is trusted', async () => {
    const bare = await internalRoutes([]);
    const token = await bare.idp.token({ sub: 'reports', client_id: 'reports', tenant_id: 'acme' });
    expect(await bare.ask('/internal/acme/cache', token, inside)).toMatchObject({ status: 403 });
    await bare.close();
  });

  it('have one chokepoint beside them, where accounts own the routes', async () => {
    expect(await api.ask('/accounts/acme', user)).toMatchObject({ status: 200, body: { elevated: null } });
    expect(await api.ask('/accounts/other', user)).toMatchObject({ status: 403, code: 'tenant_mismatch' });
    for (const token of [service, api.podToken()])
      expect(await api.ask('/accounts/acme', token)).toMatchObject({ status: 403, code: 'subject_not_allowed' });
  });

  it("elevate a user by a workload's token beside it: a bad one is 401, an absent one no elevation", async () => {
    const beside = (token: string) => api.ask('/accounts/acme', user, [`X-Workload-Token: ${token}`]);
    expect(await beside(api.podToken())).toMatchObject({ status: 200, body: { elevated: 'cache' } });
    for (const token of [api.podToken({ sub: 'system:serviceaccount:jobs:x' }), 'garbage', user])
      expect(await beside(token)).toMatchObject({ status: 401, code: 'invalid_token' });
    expect(await beside('')).toMatchObject({ status: 400 });
    expect(await api.ask('/accounts/acme', undefined, [`X-Workload-Token: ${api.podToken()}`])).toMatchObject({
      status: 401,
    });
  });
});

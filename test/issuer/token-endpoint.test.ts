import { connect as connectTo } from 'node:net';
import connect from 'connect';
import express from 'express';
import express4 from 'express4';
import { createRemoteJWKSet, decodeJwt, jwtVerify } from 'jose';
import {
  authenticate,
  createKeyRing,
  createTokenRegistry,
  identityOf,
  jwtVerifier,
  memoryTokenStore,
  requireScope,
  requireSubject,
} from 'tollkeeper';
import { createIssuer } from 'tollkeeper/issuer';
import { manualClock, testIssuer } from 'tollkeeper/testing';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { serve } from '../support/index.js';
import { AUDIENCE, basic, CLIENTS, type Fixture, ISSUER, issuerFixture, SECRET } from './issuer-fixture.js';

const GRANT = { grant_type: 'client_credentials' };

describe('POST /oauth/token', () => {
  let fixture: Fixture;
  beforeAll(async () => {
    fixture = await issuerFixture();
  });
  afterAll(() => fixture.close());

  it('answers with a bearer token of RFC 9068 that any stock verifier takes', async () => {
    const before = Math.floor(Date.now() / 1_000);
    const response = await fixture.post('/oauth/token', { ...GRANT, scope: 'repo:read' });
    expect(response.status).toBe(200);
    expect(response.headers.get('cache-control')).toBe('no-store');
    expect(response.headers.get('pragma')).toBe('no-cache');
    expect(response.headers.get('content-type')).toBe('application/json');
    const body = (await response.json()) as Record<string, unknown>;
    expect(body).toEqual({ access_token: expect.any(String), token_type: 'Bearer', expires_in: 600 });
    const jwks = createRemoteJWKSet(new URL(`${fixture.url}/.well-known/jwks.json`));
    const { payload, protectedHeader } = await jwtVerify(body.access_token as string, jwks, {
      issuer: ISSUER,
      audience: AUDIENCE,
      typ: 'at+jwt',
      requiredClaims: ['sub', 'client_id', 'iat', 'exp', 'jti'],
    });
    expect(protectedHeader).toEqual({ alg: 'ES256', kid: fixture.keyRing.signer().kid, typ: 'at+jwt' });
    expect(payload).toEqual({
      iss: ISSUER,
      sub: 'ci',
      client_id: 'ci',
      aud: AUDIENCE,
      iat: expect.any(Number),
      exp: (payload.iat as number) + 600,
      jti: expect.stringMatching(/^[\w-]{22}$/),
      scope: 'repo:read',
      tenant_id: 'acme',
      is_service_account: true,
    });
    expect(payload.iat).toBeGreaterThanOrEqual(before);
  });

  it('grants every configured scope when none is asked for, and says which', async () => {
    const response = await fixture.post('/oauth/token', { ...GRANT, scope: '' });
    expect(await response.json()).toMatchObject({ scope: 'repo:read usage:read' });
    const none = await fixture.post(
      '/oauth/token',
      { ...GRANT, resource_id: 'A' },
      { authorization: basic('naming', SECRET) },
    );
    const body = (await none.json()) as { scope: string; access_token: string };
    expect(body.scope).toBe('');
    expect(decodeJwt(body.access_token)).not.toHaveProperty('scope');
  });

  it('never issues a refresh token, and never the same token id twice', async () => {
    const ids = new Set<unknown>();
    for (let round = 0; round < 20; round++) ids.add(decodeJwt(await fixture.token()).jti);
    expect(ids.size).toBe(20);
  });

  it('ignores parameters that it does not know, counts empty ones as absent, and takes both a charset and upper case', async () => {
    const response = await fixture.post(
      '/oauth/token',
      { ...GRANT, foo: 'bar', client_secret: '', resource: '', state: '' },
      { authorization: basic('ci', SECRET), 'content-type': 'Application/X-WWW-Form-Urlencoded; charset=UTF-8' },
    );
    expect(response.status).toBe(200);
  });

  it.each<[string, string, number, string]>([
    ['no grant type', 'scope=repo:read', 400, 'invalid_request'],
    ['an empty grant type', 'grant_type=', 400, 'invalid_request'],
    ['another grant', 'grant_type=authorization_code&code=x', 400, 'unsupported_grant_type'],
    ['the password grant', 'grant_type=password&username=a&password=b', 400, 'unsupported_grant_type'],
    [
      'token exchange without policies',
      'grant_type=urn:ietf:params:oauth:grant-type:token-exchange',
      400,
      'unsupported_grant_type',
    ],
    ['a duplicate parameter', 'grant_type=client_credentials&grant_type=client_credentials', 400, 'invalid_request'],
    ['a duplicate scope', 'grant_type=client_credentials&scope=repo:read&scope=usage:read', 400, 'invalid_request'],
    ['a duplicate of an unknown parameter', 'grant_type=client_credentials&x=1&x=2', 400, 'invalid_request'],
    ['a scope that the client has not', 'grant_type=client_credentials&scope=repo:write', 400, 'invalid_scope'],
    ['one good and one bad scope', 'grant_type=client_credentials&scope=repo:read%20repo:write', 400, 'invalid_scope'],
    ['a wildcard', 'grant_type=client_credentials&scope=*', 400, 'invalid_scope'],
    ['an any scope', 'grant_type=client_credentials&scope=repo:any', 400, 'invalid_scope'],
    ['a scope in another case', 'grant_type=client_credentials&scope=REPO:read', 400, 'invalid_scope'],
    ['a scope with a quote', 'grant_type=client_credentials&scope=%22', 400, 'invalid_scope'],
    ['a scope of spaces', 'grant_type=client_credentials&scope=%20', 400, 'invalid_scope'],
    ['a scope of control characters', 'grant_type=client_credentials&scope=a%00b', 400, 'invalid_scope'],
    ['an unknown resource', 'grant_type=client_credentials&resource=https://elsewhere.example', 400, 'invalid_target'],
    ['a relative resource', 'grant_type=client_credentials&resource=api', 400, 'invalid_target'],
    ['a resource with a fragment', `grant_type=client_credentials&resource=${AUDIENCE}%23x`, 400, 'invalid_target'],
    [
      'a resource with a query',
      `grant_type=client_credentials&resource=${AUDIENCE}/repository/A%3Fx`,
      400,
      'invalid_target',
    ],
    [
      'a resource without an id',
      `grant_type=client_credentials&resource=${AUDIENCE}/repository`,
      400,
      'invalid_target',
    ],
    [
      'a resource with a bad escape',
      `grant_type=client_credentials&resource=${AUDIENCE}/repository/%25zz`,
      400,
      'invalid_target',
    ],
    [
      'a resource that is too deep',
      `grant_type=client_credentials&resource=${AUDIENCE}/repository/A/B`,
      400,
      'invalid_target',
    ],
    [
      'a resource beside the audience',
      `grant_type=client_credentials&resource=${AUDIENCE}.evil/repository/A`,
      400,
      'invalid_target',
    ],
    [
      'one good and one bad resource',
      `grant_type=client_credentials&resource=${AUDIENCE}&resource=https://x.example`,
      400,
      'invalid_target',
    ],
  ])('refuses %s', async (_, form, status, error) => {
    const response = await fixture.post('/oauth/token', new URLSearchParams(form));
    expect(response.status).toBe(status);
    expect(response.headers.get('cache-control')).toBe('no-store');
    expect(response.headers.get('pragma')).toBe('no-cache');
    expect(response.headers.get('content-type')).toBe('application/json');
    const body = (await response.json()) as Record<string, string>;
    expect(Object.keys(body).sort()).toEqual(['error', 'error_description']);
    expect(body.error).toBe(error);
    // RFC 6749 §5.2.
    expect(body.error_description).toMatch(/^[\x20-\x21\x23-\x5B\x5D-\x7E]+$/);
  });

  it('takes a resource that is its audience, or one resource of it', async () => {
    const whole = await fixture.token({ resource: AUDIENCE });
    expect(decodeJwt(whole)).toMatchObject({ aud: AUDIENCE });
    expect(decodeJwt(whole)).not.toHaveProperty('resources');
    const one = await fixture.token({ resource: `${AUDIENCE}/repository/a%2Fb` });
    expect(decodeJwt(one)).toMatchObject({ aud: AUDIENCE, resources: [{ type: 'repository', id: 'a/b' }] });
    const response = await fixture.post(
      '/oauth/token',
      new URLSearchParams([
        ...Object.entries(GRANT),
        ['resource', `${AUDIENCE}/repository/A`],
        ['resource', `${AUDIENCE}/account/B`],
      ]),
    );
    const { access_token: token } = (await response.json()) as { access_token: string };
    expect(decodeJwt(token).resources).toEqual([
      { type: 'repository', id: 'A' },
      { type: 'account', id: 'B' },
    ]);
  });

  it('takes the longest of its audiences that a resource begins with', async () => {
    const audience = [AUDIENCE, `${AUDIENCE}/v2`, `${AUDIENCE}/v2/eu/`];
    const other = await issuerFixture({ audience });
    for (const [resource, aud] of [
      [`${AUDIENCE}/repository/A`, audience[0]],
      [`${AUDIENCE}/v2/repository/A`, audience[1]],
      [`${AUDIENCE}/v2/eu/repository/A`, audience[2]],
    ] as const) {
      expect(decodeJwt(await other.token({ resource }))).toMatchObject({
        aud,
        resources: [{ type: 'repository', id: 'A' }],
      });
    }
    const beside = await other.post('/oauth/token', { ...GRANT, resource: `${AUDIENCE}/v2/A` });
    expect(await beside.json()).toMatchObject({ error: 'invalid_target' });
    await other.close();
  });

  it('names claims as its verifiers expect them, and reads its own tokens by these names', async () => {
    const map = { tenant: 'https://example.com/org', scopes: 'scp', resources: 'only', serviceAccount: 'machine' };
    const other = await issuerFixture({ map });
    const token = await other.token({ resource_id: 'A' });
    const { iss: _, iat: __, exp: ___, jti: ____, ...claims } = decodeJwt(token);
    expect(claims).toEqual({
      sub: 'ci',
      client_id: 'ci',
      aud: AUDIENCE,
      scp: 'repo:read usage:read',
      'https://example.com/org': 'acme',
      only: [{ type: 'repository', id: 'A' }],
      machine: true,
    });
    const verifier = jwtVerifier({
      issuer: ISSUER,
      audience: AUDIENCE,
      algorithms: ['ES256'],
      keys: { keyRing: other.keyRing },
      type: 'at+jwt',
      map,
    });
    const gate = authenticate({ verifiers: [verifier], revocations: other.issuer.revocations });
    const api = await serve((req, res) => gate(req, res, () => res.end(JSON.stringify(identityOf(req)))));
    const call = () => fetch(api.url, { headers: { authorization: `Bearer ${token}` } });
    expect(await (await call()).json()).toMatchObject({
      subject: { kind: 'service', id: 'ci' },
      tenant: 'acme',
      resources: [{ type: 'repository', id: 'A' }],
    });
    // A protocol's answer keeps the protocol's names (RFC 7662 §2.2).
    expect(await (await other.post('/oauth/introspect', { token })).json()).toMatchObject({
      active: true,
      scope: 'repo:read usage:read',
      tenant_id: 'acme',
      resources: [{ type: 'repository', id: 'A' }],
      is_service_account: true,
    });
    expect((await other.post('/oauth/revoke', { token })).status).toBe(200);
    expect((await call()).status).toBe(401);
    await api.close();
    await other.close();
  });

  it.each<[string, Record<string, string>, unknown]>([
    [
      'pinned',
      {},
      [
        { type: 'repository', id: 'A' },
        { type: 'repository', id: 'B' },
      ],
    ],
    ['pinned', { resource_id: 'B' }, [{ type: 'repository', id: 'B' }]],
    ['pinned', { resource_id: 'C' }, 'invalid_target'],
    ['pinned', { resource: `${AUDIENCE}/account/A` }, 'invalid_target'],
    [
      'pinned',
      { resource: AUDIENCE },
      [
        { type: 'repository', id: 'A' },
        { type: 'repository', id: 'B' },
      ],
    ],
    ['naming', {}, 'invalid_target'],
    ['naming', { resource: AUDIENCE }, 'invalid_target'],
    ['naming', { resource_id: 'C' }, [{ type: 'repository', id: 'C' }]],
    ['ci', {}, undefined],
    ['ci', { resource_id: 'C' }, [{ type: 'repository', id: 'C' }]],
  ])('constrains the token of the client %s that names %j', async (id, form, expected) => {
    const response = await fixture.post('/oauth/token', { ...GRANT, ...form }, { authorization: basic(id, SECRET) });
    const body = (await response.json()) as { access_token: string; error?: string };
    expect(body.error ?? decodeJwt(body.access_token).resources).toEqual(expected);
  });

  it.each<[string, RequestInit, number]>([
    ['JSON', { body: '{"grant_type":"client_credentials"}', headers: { 'content-type': 'application/json' } }, 400],
    ['no content type', { body: new Uint8Array(Buffer.from('grant_type=client_credentials')) }, 400],
    [
      'a form that is too long',
      { body: `grant_type=client_credentials&x=${'x'.repeat(70_000)}`, headers: FORM() },
      413,
    ],
    ['a form that is no UTF-8', { body: new Uint8Array([0x67, 0xff]), headers: FORM() }, 400],
    ['a compressed form', { body: 'x', headers: { ...FORM(), 'content-encoding': 'gzip' } }, 415],
  ])('refuses %s as invalid_request', async (_, init, status) => {
    const headers = { authorization: basic('ci', SECRET), ...(init.headers as Record<string, string>) };
    const response = await fetch(`${fixture.url}/oauth/token`, { method: 'POST', ...init, headers });
    expect(response.status).toBe(status);
    expect(await response.json()).toMatchObject({ error: 'invalid_request' });
  });

  it('forgets a request whose body is cut off, and goes on', async () => {
    fixture.reasons.length = 0;
    const socket = connectTo(fixture.port, '127.0.0.1');
    socket.write(
      'POST /oauth/token HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 99\r\n\r\ngrant',
    );
    await new Promise((resolve) => setTimeout(resolve, 50));
    socket.destroy();
    await vi.waitFor(() => expect(fixture.reasons).toHaveLength(1));
    expect((await fixture.post('/oauth/token', GRANT)).status).toBe(200);
  });

  it('issues nothing without randomness', async () => {
    const other = await issuerFixture({ random: () => new Uint8Array(8) });
    expect((await other.post('/oauth/token', GRANT)).status).toBe(503);
    await other.close();
  });

  it('reads no credential and no parameter from the query', async () => {
    const query = `?grant_type=client_credentials&client_id=ci&client_secret=${SECRET}`;
    const response = await fixture.post(`/oauth/token${query}`, {}, {});
    expect(response.status).toBe(400);
    const other = await fixture.post(`/oauth/token${query}`, GRANT, {});
    expect(other.status).toBe(401);
  });
});

function FORM(): Record<string, string> {
  return { 'content-type': 'application/x-www-form-urlencoded' };
}

describe('the issuer in an app', () => {
  const issuerOf = async () =>
    createIssuer({
      issuer: ISSUER,
      audience: AUDIENCE,
      keyRing: await createKeyRing(),
      maxTtlSeconds: 60,
      clients: CLIENTS,
    });

  const ask = async (url: string) => {
    const response = await fetch(`${url}/oauth/token`, {
      method: 'POST',
      headers: { ...FORM(), authorization: basic('ci', SECRET) },
      body: 'grant_type=client_credentials&resource=https%3A%2F%2Fapi.example&resource=https%3A%2F%2Fapi.example%2Frepository%2FA',
    });
    const body = (await response.json()) as { access_token: string };
    return decodeJwt(body.access_token).resources;
  };
  const A = [{ type: 'repository', id: 'A' }];

  it.each<[string, () => express.Express]>([
    ['Express 5', express],
    ['Express 4', express4 as unknown as () => express.Express],
  ])('works in %s, before and behind body parsers', async (_, create) => {
    const parsers = [
      [],
      [express.json(), express.urlencoded()],
      [express.json(), express.urlencoded({ extended: true })],
      [express4.json(), express4.urlencoded({ extended: false })],
      [express.text({ type: '*/*' })],
      [express.raw({ type: '*/*' })],
    ];
    for (const parser of parsers) {
      const app = create();
      for (const middleware of parser) app.use(middleware as express.RequestHandler);
      app.use((await issuerOf()).handler());
      app.get('/other', (_req, res) => {
        res.send('other');
      });
      const served = await serve(app);
      expect(await ask(served.url)).toEqual(A);
      expect(await (await fetch(`${served.url}/other`)).text()).toBe('other');
      const duplicate = await fetch(`${served.url}/oauth/token`, {
        method: 'POST',
        headers: { ...FORM(), authorization: basic('ci', SECRET) },
        body: 'grant_type=client_credentials&scope=a&scope=b',
      });
      expect(await duplicate.json()).toMatchObject({ error: 'invalid_request' });
      const nested = await fetch(`${served.url}/oauth/token`, {
        method: 'POST',
        headers: { ...FORM(), authorization: basic('ci', SECRET) },
        body: 'grant_type[a]=client_credentials',
      });
      expect(await nested.json()).toMatchObject({ error: 'invalid_request' });
      const json = await fetch(`${served.url}/service-tokens`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', authorization: basic('ci', SECRET) },
        body: JSON.stringify({ tenant_id: 'acme', scopes: [], ttl_seconds: 5 }),
      });
      expect(json.status).toBe(200);
      await served.close();
    }
  });

  it('works in Connect, under a mount path, and refuses a body that somebody else has read', async () => {
    const issuer = await issuerOf();
    const app = connect();
    app.use('/eaten', (req, _res, next) => {
      req.resume();
      req.on('end', () => next());
    });
    app.use('/mount', issuer.handler());
    app.use('/eaten', issuer.handler());
    const served = await serve(app);
    expect(await ask(`${served.url}/mount`)).toEqual(A);
    const eaten = await fetch(`${served.url}/eaten/oauth/token`, {
      method: 'POST',
      headers: { ...FORM(), authorization: basic('ci', SECRET) },
      body: 'grant_type=client_credentials',
    });
    expect(eaten.status).toBe(400);
    await served.close();
  });

  it('gives up on a request that was cut off while a middleware before it took its time', async () => {
    const reasons: string[] = [];
    const issuer = createIssuer({
      issuer: ISSUER,
      audience: AUDIENCE,
      keyRing: await createKeyRing(),
      maxTtlSeconds: 60,
      clients: CLIENTS,
      onReject: (error) => reasons.push(error.message),
    });
    const app = connect();
    app.use((req, _res, next) => {
      req.on('close', () => setTimeout(next, 10));
    });
    app.use(issuer.handler());
    const served = await serve(app);
    const socket = connectTo(served.port, '127.0.0.1');
    socket.write(
      'POST /oauth/token HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 99\r\n\r\n',
    );
    setTimeout(() => socket.destroy(), 50);
    await vi.waitFor(() => expect(reasons).toEqual(['the body ended early']));
    await served.close();
  });

  it('makes services, and only of configured clients, by who was authenticated', async () => {
    const fixture = await issuerFixture();
    const verifier = jwtVerifier({
      issuer: ISSUER,
      audience: AUDIENCE,
      algorithms: ['ES256'],
      keys: { keyRing: fixture.keyRing },
    });
    const app = express();
    app.use(authenticate({ verifiers: [verifier], revocations: fixture.issuer.revocations }));
    app.get('/who', (req, res) => {
      const { subject, clientId, tenant, scopes } = identityOf(req);
      res.json({ subject, clientId, tenant, scopes: [...scopes] });
    });
    app.get('/account', requireSubject('user'), requireScope('repo:read'), (_req, res) => {
      res.json({});
    });
    const api = await serve(app);
    const get = async (path: string, token: string) =>
      fetch(`${api.url}${path}`, { headers: { authorization: `Bearer ${token}` } });
    const ci = await get('/who', await fixture.token());
    expect(await ci.json()).toEqual({
      subject: { kind: 'service', id: 'ci' },
      clientId: 'ci',
      tenant: 'acme',
      scopes: ['repo:read', 'usage:read'],
    });
    const other = await fixture.post('/oauth/token', GRANT, { authorization: basic('other', SECRET) });
    const { access_token: token } = (await other.json()) as { access_token: string };
    expect(await (await get('/who', token)).json()).toMatchObject({
      subject: { kind: 'service', id: 'other' },
      clientId: 'other',
    });
    const refused = await get('/account', token);
    expect(refused.status).toBe(403);
    expect(await refused.json()).toMatchObject({ code: 'subject_not_allowed' });
    await api.close();
    await fixture.close();
  });
});

describe('a first-party or an unknown client', () => {
  it('never becomes a service, whatever it says about itself', async () => {
    const registry = createTokenRegistry({
      store: memoryTokenStore(),
      peppers: { current: { id: 'p1', secret: 'a pepper of 32 bytes, or of more: 0123456789' } },
      prefix: 'acme',
    });
    const dynamic = await registry.createClient({ name: 'dynamic', tenant: 'acme' });
    const opaque = (await registry.issueToken({ clientId: dynamic.id, scopes: ['repo:read'] })).token;
    const fixture = await issuerFixture({ registry, reservedClientIds: ['web'] });
    const firstParty = await testIssuer({ audience: AUDIENCE });
    // Ann in the first-party app, which calls itself as a service of ours does.
    const ann = firstParty.token({ sub: 'ann', client_id: 'ci', scope: 'repo:read', tenant_id: 'acme' });
    const forged = (await testIssuer({ issuer: ISSUER, audience: AUDIENCE })).token({ sub: 'ci', client_id: 'ci' });

    for (const id of ['web', dynamic.id, 'nobody', 'ann']) {
      for (const credential of [SECRET, opaque, ann]) {
        const answers = [
          await fixture.post('/oauth/token', GRANT, { authorization: basic(id, credential) }),
          await fixture.post('/oauth/token', { ...GRANT, client_id: id, client_secret: credential }, {}),
          await fixture.serviceToken({ tenant_id: 'acme', scopes: [] }, { authorization: basic(id, credential) }),
        ];
        for (const answer of answers) expect(answer.status).toBe(401);
      }
    }
    for (const token of [opaque, ann, forged]) {
      const bearer = { authorization: `Bearer ${token}` };
      expect((await fixture.post('/oauth/token', GRANT, bearer)).status).toBe(401);
      expect((await fixture.serviceToken({ tenant_id: 'acme', scopes: [] }, bearer)).status).toBe(401);
      const assertion = { client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer' };
      const asserted = await fixture.post('/oauth/token', { ...GRANT, ...assertion, client_assertion: token }, {});
      expect(asserted.status).toBe(401);
    }

    const ours = {
      issuer: ISSUER,
      audience: AUDIENCE,
      algorithms: ['ES256'],
      keys: { keyRing: fixture.keyRing },
    } as const;
    const app = express();
    app.use(
      authenticate({
        verifiers: [jwtVerifier(ours), firstParty.verifier()],
        revocations: fixture.issuer.revocations,
      }),
    );
    app.get('/internal', requireSubject('service'), (_req, res) => {
      res.json({});
    });
    const api = await serve(app);
    const call = async (token: string) =>
      (await fetch(`${api.url}/internal`, { headers: { authorization: `Bearer ${token}` } })).status;
    expect(await call(await fixture.token())).toBe(200);
    expect(await call(ann)).toBe(403);
    expect(await call(forged)).toBe(401);
    expect(await (await fixture.post('/oauth/introspect', { token: ann })).json()).toEqual({ active: false });
    await api.close();
    await fixture.close();
  });
});

describe('two service clients with equal scopes, tenant and lifetime', () => {
  it('never share a decision, however often both come', async () => {
    const fixture = await issuerFixture();
    const verifier = jwtVerifier({
      issuer: ISSUER,
      audience: AUDIENCE,
      algorithms: ['ES256'],
      keys: { keyRing: fixture.keyRing },
    });
    const gate = authenticate({ verifiers: [verifier], revocations: fixture.issuer.revocations });
    const served = await serve((req, res) => gate(req, res, () => res.end(identityOf(req).clientId)));
    const tokens: Record<string, string> = {};
    for (const id of ['ci', 'other']) {
      const response = await fixture.post('/oauth/token', GRANT, { authorization: basic(id, SECRET) });
      tokens[id] = ((await response.json()) as { access_token: string }).access_token;
    }
    const call = async (id: string) => {
      const response = await fetch(served.url, { headers: { authorization: `Bearer ${tokens[id]}` } });
      return response.status === 200 ? response.text() : response.status;
    };
    for (let round = 0; round < 5; round++) {
      expect(await Promise.all(['ci', 'other', 'ci', 'other'].map(call))).toEqual(['ci', 'other', 'ci', 'other']);
    }
    const introspect = async (token: string | undefined, as: string) =>
      (
        (await (
          await fixture.post('/oauth/introspect', { token: String(token) }, { authorization: basic(as, SECRET) })
        ).json()) as {
          active: boolean;
        }
      ).active;
    expect(await introspect(tokens.ci, 'ci')).toBe(true);
    expect(await introspect(tokens.ci, 'other')).toBe(false);
    await fixture.issuer.revocations.revoke({ clientId: 'ci' });
    expect(await Promise.all(['ci', 'other'].map(call))).toEqual([401, 'other']);
    expect(await introspect(tokens.other, 'other')).toBe(true);
    await fixture.close();
    await served.close();
  });
});

describe('a token that is issued in the second of a revocation', () => {
  it('waits until the clock is past it, and is dated truthfully', async () => {
    const clock = manualClock(Date.UTC(2026, 0, 1) + 400);
    const fixture = await issuerFixture({ clock, keyRing: await createKeyRing({ clock }) });
    const second = Math.floor(clock.now() / 1_000);
    await fixture.issuer.revocations.revoke({ clientId: 'ci' });
    const early = fixture.token();
    const unaffected = await fixture.post('/oauth/token', GRANT, { authorization: basic('other', SECRET) });
    expect(unaffected.status).toBe(200);
    clock.advance(0.6);
    const claims = decodeJwt(await early);
    expect(claims.iat).toBe(second + 1);
    await fixture.close();
  });

  it('is not issued at all to a client that is revoked for longer', async () => {
    const clock = manualClock();
    const fixture = await issuerFixture({ clock, keyRing: await createKeyRing({ clock }) });
    await fixture.issuer.revocations.revoke({ clientId: 'ci' }, { before: Math.floor(clock.now() / 1_000) + 100 });
    const pending = fixture.post('/oauth/token', GRANT);
    setTimeout(() => clock.advance(3), 100);
    const response = await pending;
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: 'unauthorized_client' });
    await fixture.close();
  });

  it('is answered with 503 while it is not known what is revoked, or nothing can sign', async () => {
    const revocations = {
      check: () => 'unknown',
      ready: async () => Promise.reject(new Error('down')),
      version: 0,
      staleAt: 0,
    };
    const clock = manualClock();
    const fixture = await issuerFixture({ clock, revocations: revocations as never });
    setTimeout(() => clock.advance(3), 20);
    const response = await fixture.post('/oauth/token', GRANT);
    expect(response.status).toBe(503);
    expect(response.headers.get('retry-after')).toBe('5');
    expect(await response.json()).toMatchObject({ error: 'temporarily_unavailable' });
    await fixture.close();
  });

  it('answers 503 when the key cannot sign', async () => {
    const ring = await createKeyRing();
    const failing = { ...ring.signer(), sign: async () => Promise.reject(new Error('secret detail')) };
    const signers = [
      () => failing,
      () => {
        throw new Error('stale');
      },
    ];
    for (const signer of signers) {
      const keyRing = Object.assign(Object.create(ring), {
        signer,
        jwks: () => ring.jwks(),
        onChange: () => () => undefined,
        keepAtLeast: () => undefined,
      });
      const fixture = await issuerFixture({ keyRing });
      const response = await fixture.post('/oauth/token', GRANT);
      expect(response.status).toBe(503);
      expect(await response.text()).not.toContain('secret detail');
      await fixture.close();
    }
  });
});

import { generateKeyPairSync } from 'node:crypto';
import fc from 'fast-check';
import { decodeJwt, type JWK, SignJWT } from 'jose';
import { authenticate, createKeyRing, identityOf, jwtVerifier } from 'tollkeeper';
import { createIssuer, type IssuerOptions } from 'tollkeeper/issuer';
import { manualClock } from 'tollkeeper/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { serve, sized } from '../support/index.js';
import {
  AUDIENCE,
  assertion,
  assertionForm,
  basic,
  type Fixture,
  ISSUER,
  issuerFixture,
  SECRET,
} from './issuer-fixture.js';

const K8S = 'https://kubernetes.example';
const GITHUB = 'https://token.actions.githubusercontent.com';
const pair = generateKeyPairSync('rsa', { modulusLength: 2048 });
const jwks = { keys: [{ ...pair.publicKey.export({ format: 'jwk' }), kid: 'k1', alg: 'RS256' } as JWK] };

const workloads: Pick<IssuerOptions, 'workloadIssuers' | 'workloadPolicies'> = {
  workloadIssuers: [
    { issuer: K8S, kind: 'kubernetes', keys: { jwks } },
    { issuer: GITHUB, kind: 'github-actions', keys: { jwks } },
    { issuer: 'https://empty.example', kind: 'oidc', keys: { jwks: { keys: [] } } },
  ],
  workloadPolicies: [
    {
      id: 'pods',
      issuer: K8S,
      audience: ISSUER,
      match: { sub: 'system:serviceaccount:prod:scanner' },
      grant: { tenantId: 'acme', clientId: 'scanner', scopes: ['scan:read', 'scan:write'], maxTtlSeconds: 300 },
    },
    {
      id: 'pods-pinned',
      issuer: K8S,
      audience: ISSUER,
      match: { sub: 'system:serviceaccount:prod:pinned' },
      grant: {
        tenantId: 'globex',
        clientId: 'pinned-pods',
        scopes: ['scan:read'],
        resources: [{ type: 'repository', id: 'A' }],
      },
      maxSubjectAgeSeconds: 120,
    },
    {
      id: 'deploy',
      issuer: GITHUB,
      audience: ISSUER,
      match: { repository_id: '456', repository_owner_id: '123', ref: 'refs/heads/main' },
      grant: { tenantId: 'acme', clientId: 'deployer', scopes: ['repo:read'] },
      replay: 'once',
    },
    {
      id: 'read',
      issuer: GITHUB,
      audience: ISSUER,
      match: { repository_id: '456', repository_owner_id: '123' },
      grant: { tenantId: 'acme', clientId: 'ci', scopes: ['repo:read'] },
    },
    {
      id: 'empty',
      issuer: 'https://empty.example',
      audience: ISSUER,
      match: { sub: 'x' },
      grant: { tenantId: 'acme', clientId: 'nobody', scopes: [] },
    },
  ],
};

const seconds = () => Math.floor(Date.now() / 1_000);
const sign = (payload: object) =>
  new SignJWT(payload as never).setProtectedHeader({ alg: 'RS256', kid: 'k1' }).sign(pair.privateKey);

function podToken(change: Record<string, unknown> = {}, name = 'scanner', now = seconds()): Promise<string> {
  return sign({
    iss: K8S,
    aud: [ISSUER],
    sub: `system:serviceaccount:prod:${name}`,
    iat: now,
    nbf: now,
    exp: now + 3_600,
    jti: crypto.randomUUID(),
    'kubernetes.io': { namespace: 'prod', serviceaccount: { name, uid: 'u-1' }, pod: { name: 'p', uid: 'u-2' } },
    ...change,
  });
}

function actionsToken(change: Record<string, unknown> = {}): Promise<string> {
  return sign({
    iss: GITHUB,
    aud: ISSUER,
    sub: 'repo:acme/app:ref:refs/heads/main',
    repository: 'acme/app',
    repository_id: '456',
    repository_owner: 'acme',
    repository_owner_id: '123',
    ref: 'refs/heads/main',
    ref_type: 'branch',
    event_name: 'push',
    iat: seconds(),
    nbf: seconds(),
    exp: seconds() + 300,
    jti: crypto.randomUUID(),
    ...change,
  });
}

const exchange = (subjectToken: string): Record<string, string> => ({
  grant_type: 'urn:ietf:params:oauth:grant-type:token-exchange',
  subject_token: subjectToken,
  subject_token_type: 'urn:ietf:params:oauth:token-type:jwt',
});

describe('token exchange', () => {
  let fixture: Fixture;
  beforeAll(async () => {
    fixture = await issuerFixture(workloads);
  });
  afterAll(() => fixture.close());
  const post = (form: Record<string, string>, headers = {}) => fixture.post('/oauth/token', form, headers);

  it("turns a pod's token into a service token of the policy's tenant and client, without any secret", async () => {
    const response = await post(exchange(await podToken()));
    expect(response.status).toBe(200);
    expect(response.headers.get('cache-control')).toBe('no-store');
    const body = (await response.json()) as Record<string, unknown>;
    expect(body).toEqual({
      access_token: expect.any(String),
      issued_token_type: 'urn:ietf:params:oauth:token-type:access_token',
      token_type: 'Bearer',
      expires_in: 300,
      scope: 'scan:read scan:write',
    });
    const claims = decodeJwt(body.access_token as string);
    expect(claims).toMatchObject({
      sub: 'scanner',
      client_id: 'scanner',
      tenant_id: 'acme',
      aud: AUDIENCE,
      is_service_account: true,
      act: { iss: K8S, sub: 'system:serviceaccount:prod:scanner', kind: 'workload' },
    });
  });

  it('is announced in the metadata, with the scopes of the policies', async () => {
    const metadata = (await (await fetch(`${fixture.url}/.well-known/oauth-authorization-server`)).json()) as Record<
      string,
      unknown
    >;
    expect(metadata.grant_types_supported).toContain('urn:ietf:params:oauth:grant-type:token-exchange');
    expect(metadata.scopes_supported).toContain('scan:write');
  });

  it.each(['jwt', 'id_token', 'access_token'])('takes a subject token as %s', async (type) => {
    const form = { ...exchange(await podToken()), subject_token_type: `urn:ietf:params:oauth:token-type:${type}` };
    expect((await post(form)).status).toBe(200);
  });

  it('narrows by scope, audience and resource', async () => {
    const form = {
      ...exchange(await podToken()),
      scope: 'scan:read',
      audience: AUDIENCE,
      resource: `${AUDIENCE}/repository/B`,
      requested_token_type: 'urn:ietf:params:oauth:token-type:jwt',
    };
    const body = (await (await post(form)).json()) as { access_token: string };
    expect(body).not.toHaveProperty('scope');
    expect(decodeJwt(body.access_token)).toMatchObject({
      scope: 'scan:read',
      aud: AUDIENCE,
      resources: [{ type: 'repository', id: 'B' }],
    });
    const pinned = (await (await post(exchange(await podToken({}, 'pinned')))).json()) as { access_token: string };
    expect(decodeJwt(pinned.access_token).resources).toEqual([{ type: 'repository', id: 'A' }]);
  });

  it.each<[string, () => Promise<Record<string, string>>, string]>([
    ['no subject token', async () => ({ ...exchange('x'), subject_token: '' }), 'invalid_request'],
    ['no type', async () => ({ ...exchange(await podToken()), subject_token_type: '' }), 'invalid_request'],
    [
      'another type',
      async () => ({ ...exchange(await podToken()), subject_token_type: 'urn:ietf:params:oauth:token-type:saml2' }),
      'invalid_request',
    ],
    [
      'an actor token',
      async () => ({
        ...exchange(await podToken()),
        actor_token: 'x',
        actor_token_type: 'urn:ietf:params:oauth:token-type:jwt',
      }),
      'invalid_request',
    ],
    [
      'the type of an actor token alone',
      async () => ({ ...exchange(await podToken()), actor_token_type: 'urn:ietf:params:oauth:token-type:jwt' }),
      'invalid_request',
    ],
    [
      'a wish for a refresh token',
      async () => ({
        ...exchange(await podToken()),
        requested_token_type: 'urn:ietf:params:oauth:token-type:refresh_token',
      }),
      'invalid_request',
    ],
    ['garbage', async () => exchange('garbage'), 'invalid_request'],
    ['a token of our own', async () => exchange(await fixture.token()), 'invalid_request'],
    [
      'another audience',
      async () => exchange(await podToken({ aud: ['https://kubernetes.default.svc'] })),
      'invalid_request',
    ],
    [
      'our audience among others',
      async () => exchange(await podToken({ aud: [ISSUER, 'https://other.example'] })),
      'invalid_request',
    ],
    ['another service account', async () => exchange(await podToken({}, 'somebody')), 'invalid_request'],
    [
      'nested claims that disagree',
      async () =>
        exchange(
          await podToken({
            'kubernetes.io': {
              namespace: 'dev',
              serviceaccount: { name: 'scanner', uid: 'u' },
              pod: { name: 'p', uid: 'u' },
            },
          }),
        ),
      'invalid_request',
    ],
    ['a token of a year', async () => exchange(await podToken({ exp: seconds() + 31_536_000 })), 'invalid_request'],
    ['an expired token', async () => exchange(await podToken({ exp: seconds() - 60 })), 'invalid_request'],
    ['no iat', async () => exchange(await podToken({ iat: undefined })), 'invalid_request'],
    [
      'a token that is too old for its policy',
      async () => exchange(await podToken({ iat: seconds() - 200 }, 'pinned')),
      'invalid_request',
    ],
    [
      'a policy of another platform',
      async () => ({ ...exchange(await podToken()), policy: 'read' }),
      'invalid_request',
    ],
    ['an unknown policy', async () => ({ ...exchange(await podToken()), policy: 'x' }), 'invalid_request'],
    ['two policies that match', async () => exchange(await actionsToken()), 'invalid_request'],
    [
      'a scope beyond the policy',
      async () => ({ ...exchange(await podToken()), scope: 'scan:read admin:all' }),
      'invalid_scope',
    ],
    [
      'an unknown audience',
      async () => ({ ...exchange(await podToken()), audience: 'https://other.example' }),
      'invalid_target',
    ],
    [
      'an unknown resource',
      async () => ({ ...exchange(await podToken()), resource: 'https://other.example' }),
      'invalid_target',
    ],
    [
      'a resource beyond the policy',
      async () => ({ ...exchange(await podToken({}, 'pinned')), resource_id: 'B' }),
      'invalid_target',
    ],
    ['another client_id', async () => ({ ...exchange(await podToken()), client_id: 'ci' }), 'unauthorized_client'],
  ])('refuses %s', async (_, make, error) => {
    const response = await post(await make());
    expect(response.status).toBe(400);
    expect(await response.json()).toEqual({
      error,
      error_description: expect.stringMatching(/^[\x20-\x21\x23-\x5B\x5D-\x7E]+$/),
    });
  });

  it('answers 503 while there are no keys of the platform', async () => {
    const response = await post(exchange(await podToken({ iss: 'https://empty.example', sub: 'x' })));
    expect(response.status).toBe(503);
  });

  it('takes a client that authenticates beside it only as the client that the policy grants', async () => {
    const form = async () => ({ ...exchange(await actionsToken()), policy: 'read' });
    expect((await post(await form(), { authorization: basic('ci', SECRET) })).status).toBe(200);
    expect((await post({ ...(await form()), client_id: 'ci' })).status).toBe(200);
    expect((await post(await form(), { authorization: basic('ci', 'wrong') })).status).toBe(401);
    const other = await post(await form(), { authorization: basic('other', SECRET) });
    expect(await other.json()).toMatchObject({ error: 'unauthorized_client' });
    expect((await post({ ...(await form()), ...assertionForm(await assertion()) })).status).toBe(400);
  });

  it('takes a token of a policy with replay "once" once', async () => {
    const form = { ...exchange(await actionsToken()), policy: 'deploy' };
    expect((await post(form)).status).toBe(200);
    const second = await post(form);
    expect(second.status).toBe(400);
    expect(await second.json()).toMatchObject({ error: 'invalid_request' });
    const down = await issuerFixture({
      ...workloads,
      replayStore: { take: async () => Promise.reject(new Error('down')) },
    });
    expect((await down.post('/oauth/token', form, {})).status).toBe(503);
    await down.close();
  });

  it('asks what is revoked: a revoked workload gets nothing more', async () => {
    const other = await issuerFixture(workloads);
    const form = exchange(await podToken());
    expect((await other.post('/oauth/token', form, {})).status).toBe(200);
    await other.issuer.revocations.revoke({ subject: 'system:serviceaccount:prod:scanner', issuer: K8S });
    const response = await other.post('/oauth/token', form, {});
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: 'invalid_request' });
    await other.close();
  });

  it('authenticates the call for a service token, too', async () => {
    const body = { tenant_id: 'acme', scopes: ['scan:read'], ttl_seconds: 10_000 };
    const bearer = async () => ({ authorization: `Bearer ${await podToken()}` });
    const response = await fixture.serviceToken(body, await bearer());
    expect(response.status).toBe(200);
    const issued = (await response.json()) as { token: string; clamped: boolean };
    const claims = decodeJwt(issued.token);
    expect((claims.exp as number) - (claims.iat as number)).toBe(300);
    expect(issued.clamped).toBe(true);
    expect((await fixture.serviceToken({ ...body, tenant_id: 'globex' }, await bearer())).status).toBe(403);
    expect((await fixture.serviceToken({ ...body, policy: 'read' }, await bearer())).status).toBe(401);
    expect(
      (await fixture.serviceToken({ ...body, client_id: 'ci', client_secret: SECRET }, await bearer())).status,
    ).toBe(400);
    expect((await fixture.serviceToken(body, { authorization: 'Bearer garbage' })).status).toBe(401);
    expect((await fixture.serviceToken(body, { authorization: 'Bearer a b' })).status).toBe(401);
  });

  it("does not revoke a platform's token: 400 unsupported_token_type", async () => {
    const response = await fixture.post('/oauth/revoke', { token: await podToken() });
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: 'unsupported_token_type' });
  });

  it('goes from the platform to the API and back: exchange, use, revoke', async () => {
    const { access_token: token } = (await (
      await post({ ...exchange(await actionsToken()), policy: 'read' })
    ).json()) as { access_token: string };
    const verifier = jwtVerifier({
      issuer: ISSUER,
      audience: AUDIENCE,
      algorithms: ['ES256'],
      keys: { keyRing: fixture.keyRing },
    });
    const gate = authenticate({ verifiers: [verifier], revocations: fixture.issuer.revocations });
    const api = await serve((req, res) => gate(req, res, () => res.end(JSON.stringify(identityOf(req)))));
    const call = () => fetch(api.url, { headers: { authorization: `Bearer ${token}` } });
    // RFC 8693 §4.1: the job acts for the client.
    expect(await (await call()).json()).toMatchObject({
      subject: { kind: 'service', id: 'ci' },
      clientId: 'ci',
      actor: { kind: 'workload', id: 'repo:acme/app:ref:refs/heads/main' },
    });
    expect(await (await fixture.post('/oauth/introspect', { token })).json()).toMatchObject({
      active: true,
      sub: 'ci',
      act: { iss: GITHUB, sub: 'repo:acme/app:ref:refs/heads/main' },
    });
    // The client of the policy is a configured one: its tokens are its own, however they came about.
    expect((await fixture.post('/oauth/revoke', { token })).status).toBe(200);
    expect((await call()).status).toBe(401);
    await api.close();
    await fixture.issuer.ready().catch(() => undefined);
  });
});

describe('whatever is asked for', () => {
  it('the issued token is within both the policy and the subject token', async () => {
    const clock = manualClock(Date.UTC(2026, 5, 1));
    const now = clock.now() / 1_000;
    const scopes = ['a:read', 'b:read', 'c:write'];
    const ids = ['A', 'B', 'C'];
    const lists = (items: string[]) => fc.option(fc.subarray(items), { nil: undefined });
    const keyRing = await createKeyRing({ clock });
    let issued = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          policyScopes: fc.subarray(scopes),
          policyResources: lists(ids),
          policyTtl: fc.option(fc.integer({ min: 1, max: 5_000 }), { nil: undefined }),
          maxTtl: fc.integer({ min: 1, max: 4_000 }),
          maxAge: fc.option(fc.integer({ min: 1, max: 3_000 }), { nil: undefined }),
          age: fc.integer({ min: 0, max: 2_000 }),
          life: fc.integer({ min: 1, max: 7_200 }),
          scope: fc.oneof(lists(scopes), lists([...scopes, 'admin:all', '*'])),
          resourceIds: fc.subarray([...ids, 'D']),
          audience: fc.subarray([AUDIENCE, 'https://two.example', 'https://evil.example']),
          extra: fc.dictionary(
            fc.constantFrom('tenant_id', 'ttl_seconds', 'exp', 'client', 'scopes', 'resources'),
            fc.string(),
          ),
          ask: fc.constantFrom(undefined, 1, 10, 1e9),
        }),
        async (given) => {
          const resources = given.policyResources?.map((id) => ({ type: 'repository', id }));
          const issuer = createIssuer({
            issuer: ISSUER,
            audience: [AUDIENCE, 'https://two.example'],
            keyRing,
            clock,
            resourceType: 'repository',
            maxTtlSeconds: given.maxTtl,
            clients: [],
            workloadIssuers: [{ issuer: K8S, kind: 'oidc', keys: { jwks } }],
            workloadPolicies: [
              {
                id: 'p',
                issuer: K8S,
                audience: ISSUER,
                match: { sub: 'w' },
                grant: {
                  tenantId: 't',
                  clientId: 'c',
                  scopes: given.policyScopes,
                  ...(resources === undefined ? {} : { resources }),
                  ...(given.policyTtl === undefined ? {} : { maxTtlSeconds: given.policyTtl }),
                },
                ...(given.maxAge === undefined ? {} : { maxSubjectAgeSeconds: given.maxAge }),
              },
            ],
          });
          const iat = now - given.age;
          const exp = iat + given.life;
          const subject = await sign({
            iss: K8S,
            aud: ISSUER,
            sub: 'w',
            iat,
            exp,
            jti: crypto.randomUUID(),
            tenant_id: 'evil',
            scope: 'admin:all',
          });
          const served = await serve(issuer.handler());
          const form = new URLSearchParams({
            ...given.extra,
            ...exchange(subject),
            ...(given.scope === undefined ? {} : { scope: given.scope.join(' ') }),
          });
          for (const id of given.resourceIds) form.append('resource', `${AUDIENCE}/repository/${id}`);
          for (const audience of given.audience) form.append('audience', audience);
          const viaForm = await fetch(`${served.url}/oauth/token`, {
            method: 'POST',
            headers: { 'content-type': 'application/x-www-form-urlencoded' },
            body: form.toString(),
          });
          const viaJson = await fetch(`${served.url}/service-tokens`, {
            method: 'POST',
            headers: { 'content-type': 'application/json', authorization: `Bearer ${subject}` },
            body: JSON.stringify({
              tenant_id: 't',
              scopes: given.scope ?? [],
              ...(given.ask === undefined ? {} : { ttl_seconds: given.ask }),
              ...(given.resourceIds[0] === undefined ? {} : { resource_id: given.resourceIds[0] }),
            }),
          });
          await served.close();
          await issuer.close();
          for (const response of [viaForm, viaJson]) {
            const body = (await response.json()) as { access_token?: string; token?: string };
            const token = body.access_token ?? body.token;
            if (token === undefined) {
              expect([400, 401, 403]).toContain(response.status);
              continue;
            }
            issued += 1;
            const claims = decodeJwt(token) as Record<string, never> & {
              iat: number;
              exp: number;
              scope?: string;
              resources?: { id: string }[];
              aud: string | string[];
            };
            expect(claims).toMatchObject({ sub: 'c', client_id: 'c', tenant_id: 't', iat: now });
            const granted = claims.scope?.split(' ') ?? [];
            for (const scope of granted) {
              expect(given.policyScopes).toContain(scope);
              if (given.scope !== undefined && given.scope.length > 0) expect(given.scope).toContain(scope);
            }
            if (given.policyResources !== undefined) {
              expect(claims.resources).toBeDefined();
              for (const { id } of claims.resources ?? []) expect(given.policyResources).toContain(id);
            }
            expect([AUDIENCE, 'https://two.example']).toEqual(expect.arrayContaining([claims.aud].flat()));
            expect(given.audience).not.toContain(response === viaForm ? 'https://evil.example' : 'never');
            expect(claims.exp - claims.iat).toBeLessThanOrEqual(
              Math.min(given.maxTtl, given.policyTtl ?? Number.POSITIVE_INFINITY),
            );
            expect(claims.exp).toBeLessThanOrEqual(exp);
            if (given.maxAge !== undefined) expect(claims.exp).toBeLessThanOrEqual(iat + given.maxAge);
          }
        },
      ),
      { numRuns: sized(60, 1_000) },
    );
    expect(issued).toBeGreaterThan(5);
  });
});

import { SignJWT } from 'jose';
import {
  type AccessError,
  authenticate,
  createKeyRing,
  createRevocations,
  createTokenRegistry,
  jwtVerifier,
  memoryRevocationStore,
  memoryTokenStore,
  opaqueTokenVerifier,
  type TokenRegistry,
} from 'tollkeeper';
import { hashClientSecret } from 'tollkeeper/issuer';
import { manualClock } from 'tollkeeper/testing';
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

const registryOf = (): TokenRegistry =>
  createTokenRegistry({
    store: memoryTokenStore(),
    peppers: { current: { id: 'p1', secret: 'a pepper of 32 bytes, or of more: 0123456789' } },
    prefix: 'acme',
  });

describe('POST /oauth/introspect', () => {
  let fixture: Fixture;
  let registry: TokenRegistry;
  beforeAll(async () => {
    registry = registryOf();
    fixture = await issuerFixture({
      registry,
      clients: [
        ...CLIENTS,
        {
          id: 'reader',
          secretHashes: [hashClientSecret(SECRET)],
          scopes: [],
          tenant: 'acme',
          unconstrainedResources: true,
          introspects: 'tenant',
        },
        {
          id: 'globex',
          secretHashes: [hashClientSecret(SECRET)],
          scopes: [],
          tenant: 'globex',
          unconstrainedResources: true,
          introspects: 'tenant',
        },
      ],
    });
  });
  afterAll(() => fixture.close());

  const introspect = async (token: string, client = 'ci') => {
    const response = await fixture.post('/oauth/introspect', { token }, { authorization: basic(client, SECRET) });
    expect(response.status).toBe(200);
    expect(response.headers.get('cache-control')).toBe('no-store');
    return response.json();
  };

  it('tells a client about its own live token', async () => {
    const token = await fixture.token({ resource_id: 'A' });
    expect(await introspect(token)).toEqual({
      active: true,
      token_type: 'Bearer',
      iss: ISSUER,
      aud: AUDIENCE,
      sub: 'ci',
      client_id: 'ci',
      auth_id: 'ci',
      tenant_id: 'acme',
      scope: 'repo:read usage:read',
      resources: [{ type: 'repository', id: 'A' }],
      iat: expect.any(Number),
      exp: expect.any(Number),
      jti: expect.any(String),
      is_service_account: true,
    });
  });

  it.each([
    ['other', false],
    ['pinned', false],
    ['globex', false],
    ['reader', true],
  ])('tells the client %s about the token of another one: %s', async (client, active) => {
    const answer = await introspect(await fixture.token(), client);
    expect(answer).toMatchObject({ active });
    if (!active) expect(answer).toEqual({ active: false });
  });

  it.each(['access_token', 'refresh_token', 'nonsense'])('looks everywhere, whatever the hint: %s', async (hint) => {
    const client = await registry.createClient({ name: `hint ${hint}`, tenant: 'acme' });
    const opaque = await registry.issueToken({ clientId: client.id, scopes: [] });
    for (const token of [await fixture.token(), opaque.token]) {
      const response = await fixture.post('/oauth/introspect', { token, token_type_hint: hint });
      expect(await response.json()).toMatchObject({ active: true });
    }
  });

  it.each<[string, string, Record<string, string>, number, string]>([
    ['no token', '', {}, 400, 'invalid_request'],
    ['two tokens', 'token=a&token=b', {}, 400, 'invalid_request'],
    ['two hints', 'token=a&token_type_hint=b&token_type_hint=c', {}, 400, 'invalid_request'],
    ['a wrong secret', 'token=a', { authorization: basic('ci', 'wrong') }, 401, 'invalid_client'],
    ['a bad percent sign', 'token=a', { authorization: basic('ci', '%') }, 401, 'invalid_client'],
    ['the token as a bearer token', 'token=a', { authorization: 'Bearer a' }, 401, 'invalid_client'],
    ['two ways', `token=a&client_id=ci&client_secret=${SECRET}`, {}, 400, 'invalid_request'],
    ['JSON', '{"token":"a"}', { 'content-type': 'application/json' }, 400, 'invalid_request'],
  ])(
    'refuses %s, here and for a revocation, uncached and in plain characters',
    async (_, body, headers, status, error) => {
      for (const path of ['/oauth/introspect', '/oauth/revoke']) {
        const response = await fetch(`${fixture.url}${path}`, {
          method: 'POST',
          headers: {
            'content-type': 'application/x-www-form-urlencoded',
            authorization: basic('ci', SECRET),
            ...headers,
          },
          body,
        });
        expect(response.status).toBe(status);
        expect(response.headers.get('cache-control')).toBe('no-store');
        expect(response.headers.get('pragma')).toBe('no-cache');
        expect(response.headers.get('content-type')).toBe('application/json');
        expect(response.headers.get('www-authenticate')).toBe(
          status === 401 ? 'Basic realm="tokens", charset="UTF-8"' : null,
        );
        expect(await response.json()).toEqual({
          error,
          error_description: expect.stringMatching(/^[\x20-\x21\x23-\x5B\x5D-\x7E]+$/),
        });
      }
    },
  );

  it('tells a crossTenant client about every token', async () => {
    const response = await fixture.post(
      '/oauth/introspect',
      { token: await fixture.token(), ...assertionForm(await assertion()) },
      {},
    );
    expect(await response.json()).toMatchObject({ active: true, client_id: 'ci' });
  });

  it('tells about opaque tokens of the registry, within the tenant', async () => {
    const client = await registry.createClient({ name: 'scans', tenant: 'acme', plan: 'pro' });
    const { token, record } = await registry.issueToken({
      clientId: client.id,
      scopes: ['scan:read'],
      groups: ['3', '1'],
    });
    expect(await introspect(token)).toMatchObject({
      active: true,
      scope: 'scan:read',
      client_id: client.id,
      jti: record.id,
      groups: ['3', '1'],
      plan: 'pro',
    });
    expect(await introspect(token, 'globex')).toEqual({ active: false });
    await registry.revokeToken(record.id);
    expect(await introspect(token)).toEqual({ active: false });
  });

  it.each<[string, () => string | Promise<string>]>([
    ['garbage', () => 'garbage'],
    ['an unknown opaque token', () => `acme_sk_live_${'a'.repeat(65)}`],
    [
      'a token with one character changed',
      async () => (await fixture.token()).replace(/.$/, (last) => (last === 'A' ? 'Q' : 'A')),
    ],
    ['a token of another type', async () => signed({ typ: 'JWT' })],
    ['a token of another audience', async () => signed({}, { aud: 'https://other.example' })],
    ['an expired token', async () => signed({}, { exp: 1_000 })],
    ['a client assertion', async () => assertion()],
  ])('says nothing but inactive about %s', async (_, make) => {
    expect(await introspect(await make())).toEqual({ active: false });
  });

  /** A token signed by the ring, with other contents than the issuer would give it. */
  async function signed(header: object, claims: object = {}): Promise<string> {
    const { kid, alg, sign } = fixture.keyRing.signer();
    const now = Math.floor(Date.now() / 1_000);
    const payload = {
      iss: ISSUER,
      aud: AUDIENCE,
      sub: 'ci',
      client_id: 'ci',
      jti: 'x',
      iat: now,
      exp: now + 60,
      ...claims,
    };
    const input = [{ alg, kid, typ: 'at+jwt', ...header }, payload]
      .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
      .join('.');
    return `${input}.${Buffer.from(await sign(Buffer.from(input))).toString('base64url')}`;
  }

  it('authenticates the caller, and demands a token', async () => {
    const none = await fixture.post('/oauth/introspect', { token: 'x' }, {});
    expect(none.status).toBe(401);
    expect(await none.json()).toMatchObject({ error: 'invalid_client' });
    const missing = await fixture.post('/oauth/introspect', {});
    expect(missing.status).toBe(400);
    expect(await missing.json()).toMatchObject({ error: 'invalid_request' });
  });
});

describe('POST /oauth/revoke', () => {
  let fixture: Fixture;
  let registry: TokenRegistry;
  beforeAll(async () => {
    registry = registryOf();
    fixture = await issuerFixture({ registry });
  });
  afterAll(() => fixture.close());
  const isActive = async (token: string, client = 'ci') => {
    const response = await fixture.post('/oauth/introspect', { token }, { authorization: basic(client, SECRET) });
    return ((await response.json()) as { active: boolean }).active;
  };

  it.each([undefined, 'access_token', 'refresh_token', 'nonsense'])(
    'revokes a token, whatever the hint (%s), for the middleware too',
    async (hint) => {
      const verifiers = [
        jwtVerifier({ issuer: ISSUER, audience: AUDIENCE, algorithms: ['ES256'], keys: { keyRing: fixture.keyRing } }),
        opaqueTokenVerifier({ registry }),
      ];
      const reasons: (string | undefined)[] = [];
      const gate = authenticate({
        verifiers,
        revocations: fixture.issuer.revocations,
        onReject: (error: AccessError) => reasons.push(error.reason),
      });
      const api = await serve((req, res) => gate(req, res, () => res.end('ok')));
      const call = async (token: string) =>
        (await fetch(api.url, { headers: { authorization: `Bearer ${token}` } })).status;
      const client = await registry.createClient({ name: `scans ${hint}`, tenant: 'acme' });
      const opaque = (await registry.issueToken({ clientId: client.id, scopes: [] })).token;
      for (const token of [await fixture.token(), opaque]) {
        expect(await call(token)).toBe(200);
        expect(await isActive(token)).toBe(true);
        const response = await fixture.post('/oauth/revoke', {
          token,
          ...(hint === undefined ? {} : { token_type_hint: hint }),
        });
        expect(response.status).toBe(200);
        expect(response.headers.get('cache-control')).toBe('no-store');
        expect(await call(token)).toBe(401);
        expect(await isActive(token)).toBe(false);
        // Again: nothing is left to do.
        expect((await fixture.post('/oauth/revoke', { token })).status).toBe(200);
      }
      expect(reasons).toEqual(['the credential is revoked', 'the credential is revoked']);
      await api.close();
    },
  );

  it('leaves the tokens of other clients alone', async () => {
    const client = await registry.createClient({ name: 'elsewhere', tenant: 'globex' });
    const opaque = (await registry.issueToken({ clientId: client.id, scopes: [] })).token;
    const token = await fixture.token();
    for (const [shown, as] of [
      [token, 'other'],
      [opaque, 'ci'],
    ] as const) {
      const response = await fixture.post('/oauth/revoke', { token: shown }, { authorization: basic(as, SECRET) });
      expect(response.status).toBe(400);
      expect(await response.json()).toMatchObject({ error: 'unauthorized_client' });
    }
    expect(await isActive(token)).toBe(true);
    // Not even a client that acts for any tenant revokes what another configured client was given.
    const cross = await fixture.post('/oauth/revoke', { token, ...assertionForm(await assertion()) }, {});
    expect(cross.status).toBe(400);
    expect(
      (await fixture.post('/oauth/revoke', { token: opaque, ...assertionForm(await assertion()) }, {})).status,
    ).toBe(200);
  });

  it('answers 200 about what is invalid or unknown', async () => {
    const stranger = await new SignJWT({ iss: 'https://elsewhere.example' })
      .setProtectedHeader({ alg: 'HS256' })
      .sign(new Uint8Array(32));
    for (const token of ['garbage', 'a.b.c', stranger, `acme_sk_live_${'a'.repeat(65)}`]) {
      expect((await fixture.post('/oauth/revoke', { token })).status).toBe(200);
    }
  });

  it('answers 200 about a token that has expired', async () => {
    const clock = manualClock();
    const other = await issuerFixture({ clock, keyRing: await createKeyRing({ clock }) });
    const token = await other.token();
    clock.advance(700);
    for (const [path, answer] of [
      ['/oauth/introspect', { active: false }],
      ['/oauth/revoke', {}],
    ] as const) {
      const response = await other.post(path, { token });
      expect(response.status).toBe(200);
      expect(await response.json()).toEqual(answer);
    }
    await other.close();
  });

  it('authenticates the caller, and demands a token', async () => {
    expect((await fixture.post('/oauth/revoke', { token: 'x' }, {})).status).toBe(401);
    expect((await fixture.post('/oauth/revoke', { token: '' })).status).toBe(400);
  });

  it('answers 503 when the revocation cannot be stored: the token still lives', async () => {
    const revocations = createRevocations({ store: memoryRevocationStore() });
    revocations.revoke = async () => {
      throw new Error('down');
    };
    const other = await issuerFixture({ revocations });
    const token = await other.token();
    const response = await other.post('/oauth/revoke', { token });
    expect(response.status).toBe(503);
    expect(response.headers.get('retry-after')).toBe('5');
    expect(await response.json()).toMatchObject({ error: 'temporarily_unavailable' });
    await other.close();
  });
});

describe('what is revoked wholesale', () => {
  it('is inactive for introspection at once, and what is issued afterwards is not', async () => {
    const clock = manualClock();
    const fixture = await issuerFixture({ clock, keyRing: await createKeyRing({ clock }) });
    const isActive = async (token: string) =>
      ((await (await fixture.post('/oauth/introspect', { token })).json()) as { active: boolean }).active;
    for (const target of [
      { clientId: 'ci' },
      { tenant: 'acme' },
      { subject: 'ci', issuer: ISSUER },
      { issuer: ISSUER },
      { all: true },
    ] as const) {
      const token = await fixture.token();
      expect(await isActive(token)).toBe(true);
      await fixture.issuer.revocations.revoke(target);
      expect(await isActive(token)).toBe(false);
      clock.advance(1);
      expect(await isActive(await fixture.token())).toBe(true);
    }
    await fixture.close();
  });

  it('cannot be told while revocations are unknown: 503, never active', async () => {
    let answer = 'live';
    const revocations = { check: () => answer, ready: async () => undefined, version: 1, staleAt: 0 };
    const fixture = await issuerFixture({ revocations: revocations as never });
    const token = await fixture.token();
    answer = 'unknown';
    const response = await fixture.post('/oauth/introspect', { token });
    expect(response.status).toBe(503);
    expect(await response.json()).toMatchObject({ error: 'temporarily_unavailable' });
    await fixture.close();
  });
});

import { createHmac, generateKeyPairSync, KeyObject, sign, type webcrypto } from 'node:crypto';
import { request } from 'node:http';
import { calculateJwkThumbprint, exportJWK, generateKeyPair } from 'jose';
import { hashClientSecret, memoryReplayStore, type ReplayStore } from 'tollkeeper/issuer';
import { manualClock } from 'tollkeeper/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { serve } from '../support/index.js';
import {
  assertion,
  assertionForm,
  basic,
  CLIENT_JWK,
  CLIENT_KEY,
  CLIENTS,
  type Fixture,
  ISSUER,
  issuerFixture,
  OLD_SECRET,
  SECRET,
} from './issuer-fixture.js';

const GRANT = { grant_type: 'client_credentials' };
const AWKWARD = 'p%c+ d:e&f=g"h\\i~0123456789';

describe('client authentication', () => {
  let fixture: Fixture;
  beforeAll(async () => {
    fixture = await issuerFixture({
      clients: [
        ...CLIENTS,
        {
          id: 'awk+ward%20',
          secretHashes: [hashClientSecret(AWKWARD)],
          scopes: [],
          tenant: 't',
          unconstrainedResources: true,
        },
        { id: 'keyless', scopes: [], tenant: 't', unconstrainedResources: true },
      ],
    });
  });
  afterAll(() => fixture.close());

  it.each<[string, Record<string, string>, Record<string, string>]>([
    ['basic', {}, { authorization: basic('ci', SECRET) }],
    ['basic in another case', {}, { authorization: basic('ci', SECRET).replace('Basic', 'bAsIc') }],
    ['basic with the older of two secrets', {}, { authorization: basic('ci', OLD_SECRET) }],
    ['basic with the same client_id beside it', { client_id: 'ci' }, { authorization: basic('ci', SECRET) }],
    ['post', { client_id: 'ci', client_secret: SECRET }, {}],
    [
      'basic, form-encoded',
      {},
      { authorization: basic(encodeURIComponent('awk+ward%20'), encodeURIComponent(AWKWARD)) },
    ],
    [
      'basic, with + for a space',
      {},
      { authorization: basic('awk%2bward%2520', encodeURIComponent(AWKWARD).replace('%20', '+')) },
    ],
    ['post of the same', { client_id: 'awk+ward%20', client_secret: AWKWARD }, {}],
  ])('takes %s', async (_, form, headers) => {
    const response = await fixture.post('/oauth/token', { ...GRANT, ...form }, headers);
    expect(response.status).toBe(200);
  });

  const CHALLENGE = 'Basic realm="tokens", charset="UTF-8"';
  it.each<[string, Record<string, string>, Record<string, string>, number, string | null]>([
    ['nothing', {}, {}, 401, CHALLENGE],
    ['a client_id alone', { client_id: 'ci' }, {}, 401, CHALLENGE],
    ['a wrong secret', {}, { authorization: basic('ci', `${SECRET}x`) }, 401, CHALLENGE],
    ['an empty secret', {}, { authorization: basic('ci', '') }, 401, CHALLENGE],
    ["another client's secret hash", {}, { authorization: basic('signer', SECRET) }, 401, CHALLENGE],
    ['an unknown client', {}, { authorization: basic('nobody', SECRET) }, 401, CHALLENGE],
    ['a client of the prototype', {}, { authorization: basic('__proto__', SECRET) }, 401, CHALLENGE],
    ['a client without any credential', {}, { authorization: basic('keyless', '') }, 401, CHALLENGE],
    ['no colon', {}, { authorization: `Basic ${Buffer.from('ci').toString('base64')}` }, 401, CHALLENGE],
    ['a bad percent sign', {}, { authorization: basic('ci', '%zz%') }, 401, CHALLENGE],
    [
      'bytes that are no UTF-8',
      {},
      { authorization: `Basic ${Buffer.from([0xff, 0x3a, 0x41]).toString('base64')}` },
      401,
      CHALLENGE,
    ],
    ['bare Basic', {}, { authorization: 'Basic' }, 401, CHALLENGE],
    ['Bearer', {}, { authorization: `Bearer ${SECRET}` }, 401, CHALLENGE],
    ['nonsense', {}, { authorization: '???' }, 401, CHALLENGE],
    ['a wrong secret in the form', { client_id: 'ci', client_secret: 'wrong' }, {}, 401, null],
    ['a secret without an id', { client_secret: SECRET }, {}, 401, CHALLENGE],
  ])('refuses %s as invalid_client', async (_, form, headers, status, challenge) => {
    const response = await fixture.post('/oauth/token', { ...GRANT, ...form }, headers);
    expect(response.status).toBe(status);
    expect(response.headers.get('www-authenticate')).toBe(challenge);
    expect(response.headers.get('cache-control')).toBe('no-store');
    expect(await response.json()).toEqual({
      error: 'invalid_client',
      error_description: 'client authentication failed',
    });
  });

  it.each<[string, Record<string, string>, Record<string, string>]>([
    ['basic and post', { client_id: 'ci', client_secret: SECRET }, { authorization: basic('ci', SECRET) }],
    ['basic and an assertion', assertionForm('x.y.z'), { authorization: basic('ci', SECRET) }],
    ['post and an assertion', { client_id: 'ci', client_secret: SECRET, ...assertionForm('x.y.z') }, {}],
    ['basic with another client_id', { client_id: 'other' }, { authorization: basic('ci', SECRET) }],
    ['an assertion without its type', { client_assertion: 'x.y.z' }, {}],
    [
      'a type without an assertion',
      { client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer' },
      {},
    ],
    [
      'another type of assertion',
      { client_assertion: 'x', client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:saml2-bearer' },
      {},
    ],
  ])('refuses %s as invalid_request', async (_, form, headers) => {
    const response = await fixture.post('/oauth/token', { ...GRANT, ...form }, headers);
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ error: 'invalid_request' });
  });

  it('refuses two Authorization headers', async () => {
    const status = await new Promise((resolve) => {
      const req = request(`${fixture.url}/oauth/token`, { method: 'POST' }, (res) => {
        res.resume();
        resolve(res.statusCode);
      });
      req.setHeader('content-type', 'application/x-www-form-urlencoded');
      req.setHeader('authorization', [basic('ci', SECRET), basic('ci', SECRET)] as unknown as string);
      req.end('grant_type=client_credentials');
    });
    expect(status).toBe(400);
  });

  it('tells operators why, and nobody else', async () => {
    fixture.reasons.length = 0;
    await fixture.post('/oauth/token', GRANT, { authorization: basic('nobody', SECRET) });
    await fixture.post('/oauth/token', GRANT, { authorization: basic('ci', 'wrong') });
    expect(fixture.reasons).toEqual(['unknown client', 'wrong secret']);
  });
});

describe('client assertions', () => {
  let fixture: Fixture;
  beforeAll(async () => {
    fixture = await issuerFixture();
  });
  afterAll(() => fixture.close());
  const post = async (jwt: string, form = {}) =>
    fixture.post('/oauth/token', { ...GRANT, ...assertionForm(jwt), ...form }, {});

  it.each<[string, () => Promise<string>, Record<string, string>?]>([
    ['an untyped one', () => assertion()],
    ['a typed one', () => assertion({}, { typ: 'client-authentication+jwt' })],
    ['its type in full', () => assertion({}, { typ: 'application/client-authentication+jwt' })],
    ['one that names its key', async () => assertion({}, { kid: await calculateJwkThumbprint(CLIENT_JWK) })],
    ['one that is made by hand', () => byHand({ alg: 'ES256' })],
    ['an audience of one element', () => assertion({ aud: [ISSUER] })],
    ['the same client_id beside it', () => assertion(), { client_id: 'signer' }],
  ])('takes %s', async (_, make, form) => {
    const response = await post(await make(), form);
    expect(response.status).toBe(200);
  });

  const now = () => Math.floor(Date.now() / 1_000);
  const stranger = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const strangersJwk = stranger.publicKey.export({ format: 'jwk' });
  /** A good assertion but for its header, signed with a private key, or with a text as a secret. */
  async function byHand(header: object, key: typeof stranger | string = { ...stranger, privateKey: CLIENT_KEY }) {
    const [, claims = ''] = (await assertion()).split('.');
    const input = `${Buffer.from(JSON.stringify(header)).toString('base64url')}.${claims}`;
    const signature =
      typeof key === 'string'
        ? createHmac('sha256', key).update(input).digest()
        : sign('sha256', Buffer.from(input), { key: key.privateKey, dsaEncoding: 'ieee-p1363' });
    return `${input}.${signature.toString('base64url')}`;
  }

  it.each<[string, () => Promise<string>, Record<string, string>?]>([
    ['garbage', async () => 'garbage'],
    ['another iss', () => assertion({ iss: 'ci' })],
    ['another sub', () => assertion({ sub: 'ci' })],
    ['an unknown client', () => assertion({ iss: 'nobody', sub: 'nobody' })],
    ['no sub', () => assertion({ sub: undefined })],
    ['another client_id beside it', () => assertion(), { client_id: 'ci' }],
    ['no aud', () => assertion({ aud: undefined })],
    ['the token endpoint as aud', () => assertion({ aud: `${ISSUER}/oauth/token` })],
    ['two audiences', () => assertion({ aud: [ISSUER, 'https://other.example'] })],
    ['an issuer with a slash as aud', () => assertion({ aud: `${ISSUER}/` })],
    ['no audience in a list', () => assertion({ aud: [] })],
    ['no exp', () => assertion({ exp: undefined })],
    ['an exp of text', () => assertion({ exp: String(now() + 60) })],
    ['an exp in the past', () => assertion({ exp: now() - 10 })],
    ['an exp in two hours', () => assertion({ exp: now() + 7_200 })],
    ['an nbf in the future', () => assertion({ nbf: now() + 60 })],
    ['an iat in the future', () => assertion({ iat: now() + 60 })],
    ['no jti', () => assertion({ jti: undefined })],
    ['an empty jti', () => assertion({ jti: '' })],
    ['a jti that is a number', () => assertion({ jti: 5 })],
    ['a jti of 300 characters', () => assertion({ jti: 'x'.repeat(300) })],
    ['the type of an access token', () => assertion({}, { typ: 'at+jwt' })],
    ['the type JWT', () => assertion({}, { typ: 'JWT' })],
    ['an unknown kid', () => assertion({}, { kid: 'x' })],
    ['a critical extension', () => byHand({ alg: 'ES256', crit: ['x'], x: 1 })],
    ['an HMAC with its public key', () => byHand({ alg: 'HS256' }, JSON.stringify(CLIENT_JWK))],
    ['an HMAC with nothing', () => byHand({ alg: 'HS256' }, '')],
    ["a stranger's key that the header brings along", () => byHand({ alg: 'ES256', jwk: strangersJwk }, stranger)],
    [
      "a stranger's key under the client's kid",
      async () => byHand({ alg: 'ES256', kid: await calculateJwkThumbprint(CLIENT_JWK) }, stranger),
    ],
    ["a stranger's key", () => assertion({}, {}, stranger.privateKey)],
    [
      'another algorithm',
      () => assertion({}, { alg: 'ES384' }, generateKeyPairSync('ec', { namedCurve: 'P-384' }).privateKey),
    ],
    ['no signature', async () => `${(await assertion()).split('.').slice(0, 2).join('.')}.`],
    [
      'alg none',
      async () => `${Buffer.from('{"alg":"none"}').toString('base64url')}.${(await assertion()).split('.')[1]}.`,
    ],
    ['a trailing line', async () => `${await assertion()}\n`],
  ])('refuses %s', async (_, make, form) => {
    const response = await post(await make(), form);
    expect(response.status).toBe(401);
    expect(response.headers.get('www-authenticate')).toBeNull();
    expect(await response.json()).toEqual({
      error: 'invalid_client',
      error_description: 'client authentication failed',
    });
  });

  const HOSTILE = [
    null,
    true,
    0,
    -1,
    2 ** 53,
    '',
    '__proto__',
    'constructor',
    [],
    ['signer'],
    [[ISSUER]],
    {},
    'x'.repeat(20_000),
  ];
  it.each(['iss', 'sub', 'aud', 'exp', 'nbf', 'iat'])('refuses whatever is no %s, and never breaks', async (claim) => {
    for (const value of HOSTILE) {
      // Long ago is a good instant to be issued at, or to be valid from.
      if ((claim === 'nbf' || claim === 'iat') && (value === 0 || value === -1)) continue;
      const response = await post(await assertion({ [claim]: value }));
      expect([value, response.status]).toEqual([value, 401]);
      expect(await response.json()).toMatchObject({ error: 'invalid_client' });
    }
  });

  it('fetches nothing that an assertion names', async () => {
    let fetched = 0;
    const trap = await serve((_req, res) => {
      fetched += 1;
      res.end(JSON.stringify({ keys: [strangersJwk] }));
    });
    for (const name of ['jku', 'x5u']) {
      expect((await post(await byHand({ alg: 'ES256', [name]: `${trap.url}/keys` }, stranger))).status).toBe(401);
    }
    expect(fetched).toBe(0);
    await trap.close();
  });

  it.each(['ES256', 'ES384', 'ES512', 'Ed25519', 'PS256', 'PS384', 'PS512', 'RS256', 'RS384', 'RS512'])(
    'takes %s, as the metadata announces',
    async (alg) => {
      const { publicKey, privateKey } = await generateKeyPair(alg, { extractable: true });
      const jwks = { keys: [{ ...(await exportJWK(publicKey)), alg }] };
      const other = await issuerFixture({
        clients: [{ id: 'signer', jwks, scopes: [], tenant: 't', unconstrainedResources: true }],
      });
      const jwt = await assertion({}, { alg }, KeyObject.from(privateKey as webcrypto.CryptoKey));
      const response = await other.post('/oauth/token', { ...GRANT, ...assertionForm(jwt) }, {});
      expect(response.status).toBe(200);
      const metadata = await fetch(`${other.url}/.well-known/oauth-authorization-server`);
      expect(await metadata.json()).toMatchObject({
        token_endpoint_auth_signing_alg_values_supported: expect.arrayContaining([alg]),
      });
      await other.close();
    },
  );

  it('takes each assertion once, at whatever endpoint', async () => {
    const jwt = await assertion();
    const both = await Promise.all([post(jwt), post(jwt)]);
    expect(both.map(({ status }) => status).sort()).toEqual([200, 401]);
    const third = await fixture.post('/oauth/introspect', { token: 'x', ...assertionForm(jwt) }, {});
    expect(third.status).toBe(401);
  });

  it('uses an id up only when everything else is right', async () => {
    const jti = crypto.randomUUID();
    expect((await post(await assertion({ jti, aud: 'https://other.example' }))).status).toBe(401);
    expect((await post(await assertion({ jti }, {}, stranger.privateKey))).status).toBe(401);
    expect((await post(await assertion({ jti }))).status).toBe(200);
  });

  it.each<[string, ReplayStore, number]>([
    [
      'throws',
      {
        take: () => {
          throw new Error('down');
        },
      },
      503,
    ],
    ['answers with something else', { take: () => 1 as unknown as boolean }, 401],
    ['says no', { take: async () => false }, 401],
    ['says yes', { take: async () => true }, 200],
  ])('lets nobody in unless the replay store says so: it %s', async (_, replayStore, status) => {
    const other = await issuerFixture({ replayStore });
    const response = await other.post('/oauth/token', { ...GRANT, ...assertionForm(await assertion()) }, {});
    expect(response.status).toBe(status);
    await other.close();
  });
});

describe('memoryReplayStore', () => {
  it('holds an id until it has expired, and never more than its bound', async () => {
    const clock = manualClock();
    const store = memoryReplayStore({ maxEntries: 3, clock });
    const now = clock.now() / 1_000;
    expect([
      store.take('a', now + 10),
      store.take('a', now + 10),
      store.take('b', now + 20),
      store.take('c', now + 20),
    ]).toEqual([true, false, true, true]);
    expect(() => store.take('d', now + 20)).toThrow('full');
    expect(() => store.take('d', now + 20)).toThrow('full');
    clock.advance(9.9);
    expect(store.take('a', now + 30)).toBe(false);
    clock.advance(0.1);
    expect(store.take('a', now + 30)).toBe(true);
    clock.advance(10);
    expect(store.take('d', now + 40)).toBe(true);
  });

  it('refuses a bound of nothing', () => {
    expect(() => memoryReplayStore({ maxEntries: 0 })).toThrow(TypeError);
  });
});

describe('hashClientSecret', () => {
  it('salts: the same secret has another hash each time, and none shows the secret', () => {
    const hashes = [hashClientSecret(SECRET), hashClientSecret(SECRET)];
    expect(new Set(hashes).size).toBe(2);
    for (const hash of hashes) {
      expect(hash).toMatch(/^hmac-sha256\$[\w-]{22}\$[\w-]{43}$/);
      expect(hash).not.toContain(SECRET);
    }
  });

  it.each<[string, unknown]>([
    ['a short one', 'x1'.repeat(10)],
    ['one character repeated', 'a'.repeat(40)],
    ['letters beyond ASCII', `${'ä'.repeat(11)}abcdefghijklmnop`],
    ['a line break', `${SECRET}\n`],
    ['a very long one', 'ab'.repeat(600)],
    ['a number', 12_345],
    ['nothing', undefined],
  ])('refuses %s without quoting it', (_, secret) => {
    expect(() => hashClientSecret(secret as string)).toThrow(TypeError);
    try {
      hashClientSecret(secret as string);
    } catch (error) {
      if (typeof secret === 'string') expect((error as Error).message).not.toContain(secret);
    }
  });
});

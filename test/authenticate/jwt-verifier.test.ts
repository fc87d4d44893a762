import type { webcrypto } from 'node:crypto';
import { generateSecret, SignJWT } from 'jose';
import {
  AccessError,
  type Identity,
  type JwtAlgorithm,
  type JwtIssuerOptions,
  jwtVerifier,
  type KeyOptions,
  type Verifier,
} from 'tollkeeper';
import { manualClock, testIssuer } from 'tollkeeper/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { type GuardedApi, guardedApi } from '../support/guarded-api.js';
import { identityProvider, segment, signatureOf, signed, testKey } from '../support/identity-provider.js';

const key = testKey('k1');
const jwks = { keys: [key.jwk] };
const ISSUER = 'https://issuer.example';
const AUDIENCE = 'https://api.example';
const BASE = { issuer: ISSUER, audience: AUDIENCE, algorithms: ['ES256'], keys: { jwks } } as const;

const closing: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

type Loose<T> = T extends unknown ? Omit<T, 'algorithms'> & { readonly algorithms?: readonly string[] } : never;

async function guarded(loose: Loose<Parameters<typeof jwtVerifier>[0]>): Promise<GuardedApi> {
  const options = loose as Parameters<typeof jwtVerifier>[0];
  const api = await guardedApi({ verifiers: [jwtVerifier(options)], clock: options.clock });
  closing.push(() => api.close());
  return api;
}

function payload(changes: Record<string, unknown> = {}): Record<string, unknown> {
  const now = Math.floor(Date.now() / 1_000);
  return { iss: ISSUER, aud: AUDIENCE, sub: 'user-7', iat: now, exp: now + 300, ...changes };
}

/** The message of the TypeError that the options cause. */
function problemsOf(options: unknown): string {
  try {
    jwtVerifier(options as JwtIssuerOptions);
  } catch (error) {
    expect(error).toBeInstanceOf(TypeError);
    return (error as Error).message;
  }
  return 'none';
}

describe('the options of jwtVerifier', () => {
  it('must state everything that decides who gets in, and one error lists all that is wrong', () => {
    expect(problemsOf({})).toMatch(
      /^jwtVerifier: issuer must .*; algorithms must .*; audience must be .* \(null waives the check\); keys must be an object; keys must state exactly one of/,
    );
    const message = problemsOf({
      issuer: '',
      audience: [],
      algorithms: ['none'],
      keys: {},
      mapp: {},
      maxTokenAgeSeconds: 'x',
    });
    for (const part of [
      'issuer must',
      'audience must',
      'algorithms may hold',
      'keys must state',
      '"mapp" (did you mean "map"?)',
      'maxTokenAgeSeconds must',
    ]) {
      expect(message).toContain(part);
    }
  });

  it.each<[string, Record<string, unknown>, RegExp]>([
    ['no audience', { audience: undefined }, /audience must be a string/],
    ['an empty audience', { audience: '' }, /audience must be a string/],
    ['a pattern as audience', { audience: /api/ }, /audience must be a string/],
    ['a pattern as issuer', { issuer: /issuer/ }, /issuer must be a string/],
    ['no algorithms', { algorithms: undefined }, /algorithms must be an array/],
    ['an empty list of algorithms', { algorithms: [] }, /algorithms must be an array/],
    ['none', { algorithms: ['ES256', 'none'] }, /algorithms may hold ES256/],
    ['an algorithm in lower case', { algorithms: ['es256'] }, /algorithms may hold ES256/],
    ['__proto__ as algorithm', { algorithms: ['__proto__'] }, /algorithms may hold/],
    ['HS beside asymmetric algorithms', { algorithms: ['ES256', 'HS256'] }, /must not mix/],
    [
      'HS with a JWKS URL',
      { algorithms: ['HS256'], keys: { jwksUri: 'https://a.example/jwks' } },
      /HS algorithms must never use/,
    ],
    ['HS with discovery', { algorithms: ['HS256'], keys: { discover: true } }, /HS algorithms must never use/],
    ['HS with public keys inline', { algorithms: ['HS256'] }, /no shared secret/],
    ['a secret with ES256', { keys: { secret: 'x1'.repeat(16) } }, /secret serves the HS algorithms alone/],
    ['no keys', { keys: undefined }, /keys must be an object/],
    ['two kinds of keys', { keys: { jwks, jwksUri: 'https://a.example' } }, /exactly one of/],
    [
      'an unknown setting of keys',
      { keys: { jwks, cooldownSecond: 3 } },
      /"keys.cooldownSecond" \(did you mean "cooldownSeconds"\?\)/,
    ],
    ['a JWKS URL over plain HTTP', { keys: { jwksUri: 'http://keys.example/jwks' } }, /must be an https URL/],
    [
      'a JWKS URL with a password',
      { keys: { jwksUri: 'https://me:secret@keys.example/jwks' } },
      /must be an https URL/,
    ],
    ['a JWKS URL that is none', { keys: { jwksUri: '/jwks' } }, /must be an https URL/],
    [
      'discovery of an issuer that is no URL',
      { issuer: 'me', keys: { discover: true } },
      /needs an issuer that is an https URL/,
    ],
    [
      'discovery of an issuer with a query',
      { issuer: 'https://a.example/?x', keys: { discover: true } },
      /needs an issuer/,
    ],
    ['discovery that is not true', { keys: { discover: 1 } }, /discover must be true/],
    ['a file without a path', { keys: { jwksFile: '' } }, /jwksFile must be a string/],
    [
      'a cooldown that is no number',
      { keys: { jwksUri: 'https://a.example', cooldownSeconds: '30' } },
      /cooldownSeconds must be a number/,
    ],
    [
      'a maximum age beyond the stale maximum',
      { keys: { jwksUri: 'https://a.example', maxAgeSeconds: 600, maxStaleSeconds: 60 } },
      /must be at least maxAgeSeconds/,
    ],
    ['no bytes at all', { keys: { jwksUri: 'https://a.example', maxBytes: 0 } }, /maxBytes must be an integer/],
    [
      'plain HTTP allowed by anything but true',
      { keys: { jwksUri: 'https://a.example', dangerouslyAllowHttp: 'yes' } },
      /dangerouslyAllowHttp must be one of true/,
    ],
    ['a key ring that is a promise', { keys: { keyRing: Promise.resolve() } }, /await it/],
    ['a JWK set that is none', { keys: { jwks: [key.jwk] } }, /must be a JWK set/],
    ['a type that is meant for something else', { type: 'application/dpop+jwt' }, /meant for something else/],
    ['an empty type', { type: '' }, /type must be a string/],
    ['a negative tolerance', { clockToleranceSeconds: -1 }, /clockToleranceSeconds must be/],
    ['a tolerance of an hour', { clockToleranceSeconds: 3_600 }, /clockToleranceSeconds must be/],
    ['a maximum age of nothing', { maxTokenAgeSeconds: 0 }, /maxTokenAgeSeconds must be/],
    ['a map of unknown fields', { map: { tenent: 'x' } }, /"map.tenent" \(did you mean "tenant"\?\)/],
    ['a map to no claim', { map: { tenant: '' } }, /map.tenant must be a claim's name/],
    ['a map to a bad pointer', { map: { tenant: '/a~2' } }, /map.tenant must be a claim's name/],
    ['an identify that is no function', { identify: {} }, /identify must be a function/],
    ['an empty name', { name: '' }, /name must be a string/],
    ['issuers beside an issuer', { issuers: [BASE] }, /issuer belongs into each of the issuers/],
    ['no issuers at all', { ...none(), issuers: [] }, /at least one issuer/],
    ['issuers that are one object', { ...none(), issuers: BASE }, /at least one issuer/],
    [
      'two issuers with one name',
      { ...none(), issuers: [BASE, BASE] },
      /two of the issuers are "https:\/\/issuer.example"/,
    ],
    [
      'an issuer without an audience',
      { ...none(), issuers: [{ ...BASE, audience: undefined }] },
      /issuers\[0\]\.audience must/,
    ],
    [
      'an unknown option of an issuer',
      { ...none(), issuers: [{ ...BASE, audiense: 'x' }] },
      /"issuers\[0\]\.audiense" \(did you mean/,
    ],
    [
      'bad defaults for a function',
      { ...none(), issuers: () => undefined, clockToleranceSeconds: -1 },
      /clockToleranceSeconds must be/,
    ],
  ])('refuse %s', (_name, changes, message) => {
    expect(problemsOf({ ...BASE, ...changes })).toMatch(message);
  });

  function none() {
    return { issuer: undefined, audience: undefined, algorithms: undefined, keys: undefined };
  }

  it.each<[string, Record<string, unknown>, JwtAlgorithm, RegExp]>([
    ['an RSA key under 2048 bits', testKey('r', 'RS256', 1_024).jwk, 'RS256', /fewer than 2048 bits/],
    ['the exponent 1', { ...testKey('r', 'RS256').jwk, e: 'AQ' }, 'RS256', /bad exponent/],
    ['an even exponent', { ...testKey('r', 'RS256').jwk, e: 'BA' }, 'RS256', /bad exponent/],
    [
      'a modulus with leading zeros',
      {
        ...testKey('r', 'RS256').jwk,
        n: Buffer.concat([Buffer.alloc(200), Buffer.alloc(56, 255)]).toString('base64url'),
      },
      'RS256',
      /fewer than 2048 bits/,
    ],
    [
      'a modulus of zeros',
      { ...testKey('r', 'RS256').jwk, n: Buffer.alloc(256).toString('base64url') },
      'RS256',
      /fewer than 2048 bits/,
    ],
    [
      'a modulus beyond reason',
      { ...testKey('r', 'RS256').jwk, n: Buffer.alloc(4_096, 255).toString('base64url') },
      'RS256',
      /more than 16384 bits/,
    ],
    ['use enc', { ...key.jwk, use: 'enc' }, 'ES256', /"use" other than "sig"/],
    ['key_ops without verify', { ...key.jwk, key_ops: ['deriveBits'] }, 'ES256', /"key_ops" without "verify"/],
    ['the wrong curve', testKey('p', 'ES384').jwk, 'ES256', /an "alg" that it may not serve/],
    [
      'the wrong curve without alg',
      { ...testKey('p', 'ES384').jwk, alg: undefined },
      'ES256',
      /fits none of the algorithms/,
    ],
    ['the wrong type', testKey('r', 'RS256').jwk, 'ES256', /an "alg" that it may not serve/],
    ['an alg that is no string', { ...key.jwk, alg: ['ES256'] }, 'ES256', /an "alg" that it may not serve/],
    ['a shared secret', { kty: 'oct', k: 'x'.repeat(43) }, 'ES256', /is a shared secret/],
    [
      'a private key',
      key.privateKey.export({ format: 'jwk' }) as Record<string, unknown>,
      'ES256',
      /holds private key material/,
    ],
    ['a point that is not on the curve', { ...key.jwk, y: key.jwk.x }, 'ES256', /is no valid key/],
    ['no coordinates', { kty: 'EC', crv: 'P-256' }, 'ES256', /lacks a member/],
    ['padding', { ...key.jwk, x: `${key.jwk.x}=` }, 'ES256', /not canonical base64url/],
    ['a kid that is no string', { ...key.jwk, kid: 1 }, 'ES256', /a "kid" that is no string/],
    ['no object', null as unknown as Record<string, unknown>, 'ES256', /is no object/],
  ])('refuse an inline key with %s, and name it', (_name, jwk, algorithm, message) => {
    const problems = problemsOf({ ...BASE, algorithms: [algorithm], keys: { jwks: { keys: [jwk] } } });
    expect(problems).toContain('keys.jwks.keys[0] ');
    expect(problems).toMatch(message);
    for (const secret of [jwk?.n, jwk?.k, jwk?.d])
      if (typeof secret === 'string') expect(problems).not.toContain(secret);
  });

  it('refuse two inline keys with one kid', () => {
    expect(problemsOf({ ...BASE, keys: { jwks: { keys: [key.jwk, { ...testKey('x').jwk, kid: 'k1' }] } } })).toMatch(
      /keys\[1\] has the "kid" of another key/,
    );
  });

  it.each<[string, unknown, JwtAlgorithm[], RegExp]>([
    ['an empty one', '', ['HS256'], /at least 32 bytes/],
    ['a short one', 'x1'.repeat(15), ['HS256'], /at least 32 bytes/],
    ['one that is short for HS512', 'x1'.repeat(16), ['HS256', 'HS512'], /at least 64 bytes for HS512/],
    ['short bytes', Buffer.alloc(31, 'ab'), ['HS256'], /at least 32 bytes/],
    ['one repeated byte', Buffer.alloc(32), ['HS256'], /repeats one byte/],
    ['a PEM', `-----BEGIN PUBLIC KEY-----\n${'A'.repeat(64)}\n-----END PUBLIC KEY-----`, ['HS256'], /PEM or JWK/],
    [
      'a PEM in bytes, with space before it',
      Buffer.from(`\n -----BEGIN RSA PUBLIC KEY-----${'A'.repeat(64)}`),
      ['HS256'],
      /PEM or JWK/,
    ],
    ['a JWK', JSON.stringify(key.jwk), ['HS256'], /PEM or JWK/],
    ['a JWK set', JSON.stringify(jwks), ['HS256'], /PEM or JWK/],
    ['an SSH key', `ssh-ed25519 ${'A'.repeat(64)}`, ['HS256'], /PEM or JWK/],
    ['a number', 7, ['HS256'], /must be a string or a Uint8Array/],
    ['an array', ['x'.repeat(40)], ['HS256'], /must be a string or a Uint8Array/],
  ])('refuse as a secret: %s, and do not repeat it', (_name, secret, algorithms, message) => {
    const problems = problemsOf({ ...BASE, algorithms, keys: { secret } });
    expect(problems).toMatch(message);
    if (typeof secret === 'string' && secret !== '') expect(problems).not.toContain(secret);
  });

  it('are read once: changing them later changes nothing', async () => {
    const keys = [{ ...key.jwk }];
    const algorithms: JwtAlgorithm[] = ['ES256'];
    const audience = [AUDIENCE];
    const api = await guarded({ issuer: ISSUER, audience, algorithms, keys: { jwks: { keys } } });
    keys.length = 0;
    algorithms.length = 0;
    audience.length = 0;
    expect((await api.get(signed(key, payload()))).status).toBe(200);
  });
});

describe('keys and algorithms', () => {
  it.each<JwtAlgorithm>(['ES256', 'ES384', 'ES512', 'Ed25519', 'RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'])(
    '%s is verified',
    async (alg) => {
      const one = testKey('one', alg);
      const api = await guarded({ ...BASE, algorithms: [alg], keys: { jwks: { keys: [one.jwk] } } });
      const token = signed(one, payload());
      expect((await api.get(token)).status).toBe(200);
      const other = signed(testKey('one', alg), payload());
      expect((await api.get(other)).status).toBe(401);
      expect((await api.get(token)).identity?.keyId).toBe('one');
    },
  );

  it.each([
    ['EdDSA', 'Ed25519'],
    ['Ed25519', 'EdDSA'],
  ] as const)('a verifier for %s takes tokens that say %s: two names of one algorithm', async (listed, said) => {
    const one = testKey('ed', 'Ed25519');
    const api = await guarded({ ...BASE, algorithms: [listed], keys: { jwks: { keys: [{ ...one.jwk, alg: said }] } } });
    for (const alg of [listed, said]) expect((await api.get(signed(one, payload(), { alg }))).status).toBe(200);
  });

  it('a key without alg serves one algorithm only, the first on the list that fits', async () => {
    const one = testKey('rsa', 'RS256');
    const api = await guarded({
      ...BASE,
      algorithms: ['PS256', 'RS256'],
      keys: { jwks: { keys: [{ ...one.jwk, alg: undefined }] } },
    });
    expect((await api.get(signed({ ...one, alg: 'PS256' }, payload()))).status).toBe(200);
    expect((await api.get(signed(one, payload()))).status).toBe(401);
  });

  it('a key without kid is known by its thumbprint', async () => {
    const api = await guarded({ ...BASE, keys: { jwks: { keys: [{ ...key.jwk, kid: undefined }] } } });
    const { identity } = await api.get(signed(key, payload(), { kid: undefined }));
    expect(identity?.keyId).toMatch(/^[A-Za-z0-9_-]{43}$/);
    expect((await api.get(signed(key, payload(), { kid: identity?.keyId }))).status).toBe(200);
    expect((await api.get(signed(key, payload()))).status).toBe(401);
  });

  it.each<[string, KeyOptions, Uint8Array]>([
    ['a text', { secret: 'correct horse battery staple, twice' }, Buffer.from('correct horse battery staple, twice')],
    [
      'bytes',
      { secret: new Uint8Array(Buffer.from('0123456789abcdef0123456789abcdef')) },
      Buffer.from('0123456789abcdef0123456789abcdef'),
    ],
    [
      'an inline oct key',
      { jwks: { keys: [{ kty: 'oct', kid: 'k1', k: segment('0123456789abcdef0123456789abcdef') }] } },
      Buffer.from('0123456789abcdef0123456789abcdef'),
    ],
  ])('a shared secret verifies HMACs: %s', async (_name, keys, secret) => {
    const api = await guarded({ ...BASE, algorithms: ['HS256'], keys });
    const sign = (bytes: Uint8Array) => {
      const kid = 'jwks' in keys ? { kid: 'k1' } : {};
      const input = `${segment({ alg: 'HS256', ...kid })}.${segment(payload())}`;
      return `${input}.${signatureOf(input, 'HS256', bytes)}`;
    };
    expect((await api.get(sign(secret))).status).toBe(200);
    expect((await api.get(sign(Buffer.from('another secret of thirty-two bytes')))).status).toBe(401);
    expect((await api.get(sign(Buffer.alloc(0)))).status).toBe(401);
    expect((await api.get(signed(key, payload()))).status).toBe(401);
  });

  it.each<[string, object[] | undefined, string, number]>([
    ['a secret', undefined, 'whatever', 200],
    ['one nameless oct key', [{}], 'whatever', 200],
    ['an oct key of that name', [{ kid: 'k1' }, {}], 'k1', 200],
    ['an oct key of another name', [{ kid: 'k1' }], 'whatever', 401],
    ['several oct keys, one of them nameless', [{ kid: 'k1' }, {}], 'whatever', 401],
  ])('an HMAC with a "kid" is verified where no other secret could be meant: %s', async (_name, names, kid, status) => {
    const secret = Buffer.from('0123456789abcdef0123456789abcdef');
    const jwks = { keys: (names ?? []).map((named) => ({ kty: 'oct', k: secret.toString('base64url'), ...named })) };
    const api = await guarded({ ...BASE, algorithms: ['HS256'], keys: names === undefined ? { secret } : { jwks } });
    const sign = (bytes: Uint8Array) => {
      const input = `${segment({ alg: 'HS256', kid })}.${segment(payload())}`;
      return `${input}.${signatureOf(input, 'HS256', bytes)}`;
    };
    const answer = await api.get(sign(secret));
    expect(answer.status).toBe(status);
    // The caller's word for the key is not the identity's.
    if (status === 200) expect(answer.identity?.keyId).toBe(kid === 'k1' ? 'k1' : undefined);
    expect((await api.get(sign(Buffer.from('another secret of thirty-two bytes')))).status).toBe(401);
  });

  it('an HMAC by jose is taken', async () => {
    const secret = (await generateSecret('HS512', { extractable: true })) as webcrypto.CryptoKey;
    const bytes = new Uint8Array(await crypto.subtle.exportKey('raw', secret));
    const api = await guarded({ ...BASE, algorithms: ['HS512'], keys: { secret: bytes } });
    const token = await new SignJWT(payload()).setProtectedHeader({ alg: 'HS512' }).sign(secret);
    expect((await api.get(token)).status).toBe(200);
  });

  it('an empty set given inline is an outage, not a refusal', async () => {
    const verifier = jwtVerifier({ ...BASE, keys: { jwks: { keys: [] } } });
    const api = await guardedApi({ verifiers: [verifier] });
    closing.push(() => api.close());
    expect(await api.get(signed(key, payload()))).toMatchObject({ status: 503, code: 'verifier_unavailable' });
    await expect(verifier.ready?.()).rejects.toMatchObject({ code: 'verifier_unavailable' });
  });
});

describe('the audience', () => {
  it.each<[string, JwtIssuerOptions['audience'], unknown, number]>([
    ['one of several', ['a', 'b'], 'b', 200],
    ['one of several in the token', 'a', ['x', 'a'], 200],
    ['none of them', ['a', 'b'], ['c'], 401],
    ['waived, and absent', null, undefined, 200],
    ['waived, and anything', null, 'c', 200],
    ['waived, and no string', null, 7, 401],
    ['waived, and an array with a number', null, ['a', 7], 401],
  ])('is %s', async (_name, audience, aud, status) => {
    const api = await guarded({ ...BASE, audience });
    expect((await api.get(signed(key, payload({ aud })))).status).toBe(status);
  });
});

describe('the time of a token', () => {
  const at = Date.UTC(2026, 5, 1);
  const now = at / 1_000;
  it.each<[string, Partial<JwtIssuerOptions>, Record<string, unknown>, number]>([
    ['expired within the tolerance', {}, { exp: now - 4 }, 200],
    ['expired at the end of the tolerance', {}, { exp: now - 5 }, 401],
    ['expired, with no tolerance', { clockToleranceSeconds: 0 }, { exp: now }, 401],
    ['expired, with a wide tolerance', { clockToleranceSeconds: 60 }, { exp: now - 59 }, 200],
    ['not valid for some seconds', {}, { nbf: now + 5 }, 200],
    ['not valid yet', {}, { nbf: now + 6 }, 401],
    ['issued in some seconds', {}, { iat: now + 5 }, 200],
    ['issued in the future', {}, { iat: now + 6 }, 401],
    ['without iat', {}, { iat: undefined }, 200],
    ['with fractions', {}, { iat: now - 0.5, exp: now + 0.5 }, 200],
    ['too old for the maximum age', { maxTokenAgeSeconds: 60 }, { iat: now - 66 }, 401],
    ['young enough', { maxTokenAgeSeconds: 60 }, { iat: now - 59 }, 200],
    ['without iat where an age is asked for', { maxTokenAgeSeconds: 60 }, { iat: undefined }, 401],
  ])('%s', async (_name, options, claims, status) => {
    const api = await guarded({ ...BASE, ...options, clock: manualClock(at) } as Parameters<typeof jwtVerifier>[0]);
    const token = signed(key, payload({ iat: now - 10, exp: now + 300, ...claims }));
    expect((await api.get(token)).status).toBe(status);
  });

  it('ends with exp or with the maximum age, whichever comes first', async () => {
    const clock = manualClock(at);
    const api = await guarded({ ...BASE, maxTokenAgeSeconds: 60, clock });
    const token = signed(key, payload({ iat: now, exp: now + 300 }));
    expect((await api.get(token)).identity).toMatchObject({ issuedAt: now, expiresAt: now + 60 });
    clock.advance(66);
    expect((await api.get(token)).status).toBe(401);
    const short = signed(key, payload({ iat: now + 66, exp: now + 70 }));
    expect((await api.get(short)).identity?.expiresAt).toBe(now + 70);
  });

  it('holds for a cached token too', async () => {
    const clock = manualClock(at);
    const api = await guarded({ ...BASE, clock });
    const token = signed(key, payload({ iat: now, exp: now + 30 }));
    expect((await api.get(token)).status).toBe(200);
    clock.advance(36);
    expect((await api.get(token)).status).toBe(401);
  });
});

describe('the type of a token', () => {
  it.each<[string | undefined, string | undefined, number]>([
    [undefined, undefined, 200],
    [undefined, 'JWT', 200],
    [undefined, 'jwt', 200],
    [undefined, 'at+jwt', 200],
    [undefined, 'application/at+jwt', 200],
    [undefined, 'Application/AT+JWT', 200],
    [undefined, 'something+jwt', 401],
    ['something+jwt', 'application/something+jwt', 200],
    ['something+jwt', 'JWT', 401],
    ['something+jwt', undefined, 401],
    ['at+jwt', 'at+jwt', 200],
    ['application/at+jwt', 'AT+JWT', 200],
    ['at+jwt', 'JWT', 401],
    ['at+jwt', undefined, 401],
  ])('wanted: %s, said: %s', async (type, typ, status) => {
    const api = await guarded({ ...BASE, type });
    const claims = payload({ client_id: 'c', jti: 'j' });
    expect((await api.get(signed(key, claims, { typ }))).status).toBe(status);
  });

  it.each(['sub', 'client_id', 'iat', 'jti'])('at+jwt demands %s (RFC 9068)', async (name) => {
    const api = await guarded({ ...BASE, type: 'at+jwt' });
    const claims = payload({ client_id: 'c', jti: 'j', [name]: undefined });
    expect((await api.get(signed(key, claims, { typ: 'at+jwt' }))).status).toBe(401);
  });
});

describe('the identity', () => {
  const identityFor = async (claims: Record<string, unknown>, options: Partial<JwtIssuerOptions> = {}) => {
    const api = await guarded({ ...BASE, ...options } as Parameters<typeof jwtVerifier>[0]);
    const answer = await api.get(signed(key, payload(claims)));
    return (answer.identity ?? answer.status) as unknown;
  };

  it('has all that the claims say', async () => {
    const claims = {
      client_id: 'client-1',
      tenant_id: 't-1',
      scope: 'a:read  b:write',
      plan: 'pro',
      groups: ['z', 'a'],
      jti: 'j-1',
      resources: [{ type: 'repository', id: '7' }],
      act: { sub: 'robot', client_id: 'robot' },
      extra: { deep: [1] },
    };
    const identity = (await identityFor(claims)) as Identity;
    expect(identity).toMatchObject({
      subject: { kind: 'user', id: 'user-7' },
      issuer: ISSUER,
      authId: 'user-7',
      tenant: 't-1',
      clientId: 'client-1',
      tokenId: 'j-1',
      keyId: 'k1',
      scopes: ['a:read', 'b:write'],
      plan: 'pro',
      resources: [{ type: 'repository', id: '7' }],
      groups: ['z', 'a'],
      actor: { kind: 'service', id: 'robot' },
      verifier: 'jwt',
    });
    expect(identity.claims).toMatchObject(claims);
  });

  it('of a bare token has what it needs and nothing else', async () => {
    const identity = (await identityFor({})) as Identity;
    expect(Object.keys(identity).sort()).toEqual(
      [
        'authId',
        'claims',
        'expiresAt',
        'groups',
        'issuedAt',
        'issuer',
        'keyId',
        'scopes',
        'subject',
        'verifier',
      ].sort(),
    );
  });

  it.each<[string, Record<string, unknown>, object]>([
    ['scp as an array', { scp: ['a:read', 'b'] }, { scopes: ['a:read', 'b'] }],
    ['scope as an array', { scope: ['a:read'] }, { scopes: ['a:read'] }],
    ['scp as a string', { scp: 'a b' }, { scopes: ['a', 'b'] }],
    ['scope before scp', { scope: 'a', scp: ['b'] }, { scopes: ['a'] }],
    ['an empty scope', { scope: '' }, { scopes: [] }],
    ['wildcards, which grant nothing', { scope: '* a:* a:any a:read' }, { scopes: ['a:read'] }],
    ['org', { org: 'o-1' }, { tenant: 'o-1' }],
    ['tenant_id before org', { tenant_id: 't', org: 'o' }, { tenant: 't' }],
    ['azp', { azp: 'c-1' }, { clientId: 'c-1' }],
    ['client_id before azp', { client_id: 'c', azp: 'z' }, { clientId: 'c' }],
    [
      'a service by its client id',
      { sub: 's', client_id: 's' },
      { subject: { kind: 'service', id: 's' }, authId: 's' },
    ],
    [
      'a service account',
      { is_service_account: true, client_id: 'c' },
      { subject: { kind: 'service', id: 'user-7' }, authId: 'c' },
    ],
    [
      'a service account without client',
      { is_service_account: true },
      { subject: { kind: 'service' }, authId: 'user-7' },
    ],
    [
      'no service account',
      { is_service_account: false, client_id: 'c' },
      { subject: { kind: 'user' }, authId: 'user-7' },
    ],
    ['auth_id', { auth_id: 'key-1', client_id: 'c', is_service_account: true }, { authId: 'key-1' }],
    ['an actor that is a user', { act: { sub: 'admin', act: { sub: 'x' } } }, { actor: { kind: 'user', id: 'admin' } }],
    [
      'an actor that is a service account',
      { act: { sub: 'ci', is_service_account: true } },
      { actor: { kind: 'service', id: 'ci' } },
    ],
    ['an actor of a kind', { act: { sub: 'pod', kind: 'workload' } }, { actor: { kind: 'workload', id: 'pod' } }],
    ['an actor of no kind of ours', { act: { sub: 'x', kind: 'root' } }, { actor: { kind: 'user', id: 'x' } }],
    ['no resources at all', { resources: [] }, { resources: [] }],
  ])('knows %s', async (_name, claims, expected) => {
    expect(await identityFor(claims)).toMatchObject(expected);
  });

  it('takes null for absent', async () => {
    const nulls = Object.fromEntries(
      [
        'tenant_id',
        'org',
        'client_id',
        'azp',
        'plan',
        'jti',
        'auth_id',
        'scope',
        'scp',
        'groups',
        'act',
        'resources',
        'is_service_account',
        'cnf',
      ].map((name) => [name, null]),
    );
    const identity = (await identityFor({ ...nulls, org: 'o' })) as Identity;
    expect(identity).toMatchObject({ tenant: 'o', authId: 'user-7', scopes: [], groups: [] });
    expect(identity).not.toHaveProperty('resources');
    expect(await identityFor({ sub: null })).toBe(401);
  });

  it('follows the map', async () => {
    const map = {
      subject: 'oid',
      tenant: ['https://example.com/tenant', 'tid'],
      scopes: '/realm_access/roles',
      groups: null,
      authId: '/ids/0',
      plan: '/a~1b/c~0d',
    };
    const claims = {
      oid: 'o-1',
      sub: 17,
      'https://example.com/tenant': 't-1',
      realm_access: { roles: ['r1', 'r2'] },
      groups: 'not a list',
      ids: ['key-9'],
      'a/b': { 'c~d': 'pro' },
    };
    expect(await identityFor(claims, { map })).toMatchObject({
      subject: { kind: 'user', id: 'o-1' },
      tenant: 't-1',
      scopes: ['r1', 'r2'],
      groups: [],
      authId: 'key-9',
      plan: 'pro',
    });
    expect(
      await identityFor({ ...claims, 'https://example.com/tenant': undefined, tid: 't-2' }, { map }),
    ).toMatchObject({ tenant: 't-2' });
    expect(await identityFor({ ...claims, realm_access: { roles: 'r1 r2' } }, { map })).toMatchObject({
      scopes: ['r1', 'r2'],
    });
    expect(await identityFor({ ...claims, realm_access: { roles: 7 } }, { map })).toBe(401);
    expect(await identityFor({ ...claims, realm_access: 'x' }, { map })).toMatchObject({ scopes: [] });
  });

  it.each([
    '/ids/length',
    '/ids/00',
    '/ids/-',
    '/ids/1',
    '/__proto__/x',
    '/constructor/name',
    'constructor',
    '__proto__',
    '/sub/length',
  ])('reads own members only: %s is no claim', async (path) => {
    const identity = (await identityFor({ ids: ['a'] }, { map: { tenant: path } })) as Identity;
    expect(identity).not.toHaveProperty('tenant');
  });

  it('may be changed by identify, which cannot prolong it', async () => {
    const identify: JwtIssuerOptions['identify'] = (claims, identity) => ({
      tenant: `${claims.sub}/${identity.tenant}`,
      subject: { kind: 'workload', id: 'w' },
      scopes: ['x:read', '*'],
      verifier: 'somebody else',
      expiresAt: 1e10,
    });
    const identity = (await identityFor({ tenant_id: 't' }, { identify })) as Identity;
    expect(identity).toMatchObject({
      tenant: 'user-7/t',
      subject: { kind: 'workload', id: 'w' },
      scopes: ['x:read'],
      verifier: 'jwt',
      authId: 'user-7',
    });
    expect(identity.expiresAt).toBeLessThan(1e10);
    expect(await identityFor({}, { identify: () => undefined })).toMatchObject({ authId: 'user-7' });
    expect(await identityFor({}, { identify: () => ({ expiresAt: 2e9 - 1e9 + 9e8 }) })).toMatchObject({
      authId: 'user-7',
    });
  });

  it.each<[string, unknown, number]>([
    [
      'throws',
      () => {
        throw new Error('secret');
      },
      503,
    ],
    [
      'throws nothing',
      () => {
        throw undefined;
      },
      503,
    ],
    [
      'refuses',
      () => {
        throw new AccessError('invalid_token', { reason: 'not one of us' });
      },
      401,
    ],
    ['returns a promise', async () => ({}), 503],
    ['returns a text', () => 'x', 503],
    ['removes the subject', () => ({ subject: undefined }), 503],
    ['returns a bad tenant', () => ({ tenant: 7 }), 503],
  ])('is refused when identify %s', async (_name, identify, status) => {
    expect(await identityFor({}, { identify: identify as JwtIssuerOptions['identify'] })).toBe(status);
  });
});

describe('several issuers', () => {
  const a = testKey('same-kid');
  const b = testKey('same-kid');
  const config = (issuer: string, one = a): JwtIssuerOptions => ({
    issuer,
    audience: AUDIENCE,
    algorithms: ['ES256'],
    keys: { jwks: { keys: [one.jwk] } },
  });

  it('each have keys and rules of their own, and share what stands beside them', async () => {
    const api = await guarded({
      issuers: [config('https://a'), { ...config('https://b', b), audience: 'b-api', map: { tenant: 'org' } }],
      map: { tenant: 'account' },
      name: 'partners',
    });
    expect((await api.get(signed(a, payload({ iss: 'https://a', account: 'x' })))).identity).toMatchObject({
      tenant: 'x',
      verifier: 'partners',
      issuer: 'https://a',
    });
    expect(
      (await api.get(signed(b, payload({ iss: 'https://b', aud: 'b-api', org: 'o', account: 'x' })))).identity,
    ).toMatchObject({ tenant: 'o' });
    expect((await api.get(signed(b, payload({ iss: 'https://a' })))).status).toBe(401);
    expect((await api.get(signed(a, payload({ iss: 'https://b', aud: 'b-api' })))).status).toBe(401);
    expect((await api.get(signed(b, payload({ iss: 'https://b' })))).status).toBe(401);
    expect((await api.get(signed(a, payload({ iss: 'https://c' })))).status).toBe(401);
  });

  it('are told to the chain: two verifiers with one issuer are refused, two with others are not', async () => {
    const one = jwtVerifier(config('https://a'));
    const two = jwtVerifier(config('https://b', b));
    const both = await guardedApi({ verifiers: [one, two] });
    closing.push(() => both.close());
    expect((await both.get(signed(a, payload({ iss: 'https://a' })))).status).toBe(200);
    expect((await both.get(signed(b, payload({ iss: 'https://b' })))).status).toBe(200);
    await expect(guardedApi({ verifiers: [one, jwtVerifier(config('https://a'))] })).rejects.toThrow(
      /two verifiers take the issuer/,
    );
  });

  it('may come from a function, which is asked for an unverified iss and trusted for what it answers', async () => {
    const known = new Map<string, () => JwtIssuerOptions>([['https://a', () => config('https://a')]]);
    const api = await guarded({ issuers: (iss) => known.get(iss)?.() });
    const token = (iss: string, n: number, one = a) => signed(one, payload({ iss, jti: `${n}` }));
    expect((await api.get(token('https://a', 1))).status).toBe(200);
    expect((await api.get(token('https://b', 1, b))).status).toBe(401);
    known.set('https://b', () => config('https://b', b));
    expect((await api.get(token('https://b', 2, b))).status).toBe(200);
    known.set('https://b', () => config('https://b', a));
    expect((await api.get(token('https://b', 3, b))).status).toBe(401);
    expect((await api.get(token('https://b', 4, a))).status).toBe(200);
    known.delete('https://a');
    expect((await api.get(token('https://a', 2))).status).toBe(401);
  });

  it.each<[string, (iss: string) => unknown]>([
    [
      'throws',
      () => {
        throw new Error('database');
      },
    ],
    ['returns a promise', async () => config('https://a')],
    ['returns another issuer', () => config('https://b')],
    ['returns no audience', () => ({ ...config('https://a'), audience: undefined })],
    ['returns a short secret', () => ({ ...config('https://a'), algorithms: ['HS256'], keys: { secret: 'short' } })],
    ['returns an empty secret', () => ({ ...config('https://a'), algorithms: ['HS256'], keys: { secret: '' } })],
    ['returns none', () => ({ ...config('https://a'), algorithms: ['none'] })],
    [
      'returns a PEM as secret',
      () => ({
        ...config('https://a'),
        algorithms: ['HS256'],
        keys: { secret: `-----BEGIN PUBLIC KEY-----${'A'.repeat(40)}` },
      }),
    ],
    ['returns true', () => true],
    ['returns a text', () => 'https://a'],
  ])('are an outage when the function %s', async (_name, issuers) => {
    const api = await guarded({ issuers: issuers as never });
    expect(await api.get(signed(a, payload({ iss: 'https://a' })))).toMatchObject({
      status: 503,
      code: 'verifier_unavailable',
    });
    expect(JSON.stringify(api.reasons)).not.toContain('BEGIN PUBLIC');
  });

  it('from a function keep their fetched keys while their configuration stays the same', async () => {
    const provider = await identityProvider([a]);
    closing.push(() => provider.close());
    let identify: JwtIssuerOptions['identify'];
    let cooldownSeconds = 30;
    const verifier = jwtVerifier({
      issuers: (issuer) => ({
        ...config(issuer),
        keys: { jwksUri: provider.jwksUri, cooldownSeconds },
        identify: identify ?? (() => ({ plan: 'first' })),
      }),
    });
    await verifier.ready?.();
    const api = await guardedApi({ verifiers: [verifier] });
    closing.push(
      () => api.close(),
      async () => verifier.close?.(),
    );
    for (let n = 0; n < 5; n++)
      expect((await api.get(signed(a, payload({ iss: 'https://a', jti: `${n}` })))).status).toBe(200);
    identify = () => ({ plan: 'second' });
    expect((await api.get(signed(a, payload({ iss: 'https://a', jti: 'x' })))).identity?.plan).toBe('second');
    expect(provider.fetches).toBe(1);
    cooldownSeconds = 29;
    expect((await api.get(signed(a, payload({ iss: 'https://a', jti: 'y' })))).status).toBe(200);
    expect(provider.fetches).toBe(2);
  });

  it('that cannot be reached are all named by ready()', async () => {
    const provider = await identityProvider([a]);
    closing.push(() => provider.close());
    const remote = (issuer: string, path: string) => ({
      ...config(issuer),
      keys: { jwksUri: `${provider.issuer}${path}` },
    });
    const verifier = jwtVerifier({
      issuers: [remote('https://a', '/x'), remote('https://b', '/jwks'), remote('https://c', '/y')],
    });
    await expect(verifier.ready?.()).rejects.toMatchObject({
      reason: expect.stringMatching(/^no keys of https:\/\/a: .* 404; https:\/\/c: .* 404$/),
    });
  });
});

describe('which credentials it takes', () => {
  it('only three segments with a listed issuer, under bearer or from extractToken', async () => {
    const issuer = await testIssuer();
    const verifier = issuer.verifier();
    const presented = (token: string | undefined, scheme: 'bearer' | 'custom' | 'dpop' | 'none' = 'bearer') =>
      verifier.accepts({ req: undefined as never, scheme, token });
    const token = issuer.token();
    expect(presented(token)).toBe(true);
    expect(presented(token, 'custom')).toBe(true);
    expect(presented(token, 'dpop')).toBe(false);
    expect(presented(undefined, 'none')).toBe(false);
    for (const other of [
      '',
      'abc',
      'a.b',
      'a.b.c',
      `${token}.x`,
      `.${token.split('.').slice(1).join('.')}`,
      'x'.repeat(300_000),
    ]) {
      expect(presented(other)).toBe(false);
    }
    expect(presented(issuer.token({ iss: 'https://other' }))).toBe(false);
    expect(verifier.issuers).toEqual([issuer.issuer]);
    await expect(
      async () =>
        await verifier.verify(
          { req: undefined as never, scheme: 'bearer', token: 'a.b.c' },
          new AbortController().signal,
        ),
    ).rejects.toMatchObject({ code: 'invalid_token' });
  });
});

describe('signatures', () => {
  /** What the verifier answers at once: its result, its refusal or a promise of either. */
  function ask(verifier: Verifier, token: string): object {
    try {
      return verifier.verify({ req: undefined as never, scheme: 'bearer', token }, new AbortController().signal);
    } catch (error) {
      return error as AccessError;
    }
  }

  async function answerOf(asked: object): Promise<string> {
    const answer = await Promise.resolve(asked).catch((error: AccessError) => error);
    return answer instanceof AccessError ? answer.code : 'taken';
  }

  /** What is none, in a few shapes: other bits, zeros, another length. */
  const forgeries: ((signature: Buffer) => Buffer)[] = [
    (bytes) => Buffer.from(bytes.map((byte, index) => (index === 0 ? byte ^ 1 : byte))),
    (bytes) => Buffer.from(bytes.map((byte, index) => (index === bytes.length - 1 ? byte ^ 128 : byte))),
    (bytes) => Buffer.alloc(bytes.length),
    (bytes) => bytes.subarray(1),
    (bytes) => Buffer.concat([bytes, Buffer.alloc(1)]),
    (bytes) => Buffer.from(bytes).reverse(),
  ];

  it.each(['ES256', 'ES384', 'ES512', 'Ed25519', 'RS256', 'PS256'] as const)(
    'of %s get one answer, in place as in the thread pool, where the most of a burst go',
    async (algorithm) => {
      const issuer = await testIssuer({ algorithm });
      const verifier = issuer.verifier();
      const tokens = Array.from({ length: 120 }, (_, index) => {
        const token = issuer.token({ jti: `${index}` });
        const forge = index % 2 === 0 ? undefined : forgeries[(index >> 1) % forgeries.length];
        if (forge === undefined) return { token, answer: 'taken' };
        const at = token.lastIndexOf('.') + 1;
        const forged = forge(Buffer.from(token.slice(at), 'base64url')).toString('base64url');
        return { token: token.slice(0, at) + forged, answer: 'invalid_token' };
      });
      const expected = tokens.map(({ answer }) => answer);
      const together = tokens.map(({ token }) => ask(verifier, token));
      const inPool = together.filter((asked) => asked instanceof Promise).length;
      expect(inPool).toBeGreaterThan(0);
      expect(inPool).toBeLessThan(tokens.length);
      expect(await Promise.all(together.map(answerOf))).toEqual(expected);
      const apart: string[] = [];
      for (const { token } of tokens) {
        const asked = ask(verifier, token);
        expect(asked).not.toBeInstanceOf(Promise);
        apart.push(await answerOf(asked));
        await new Promise((resolve) => setImmediate(resolve));
        await new Promise((resolve) => setImmediate(resolve));
      }
      expect(apart).toEqual(expected);
    },
  );

  it('of PS256 without their leading zeros are refused, in place as in the thread pool', async () => {
    // The numbers of one bit more than whole bytes: most signatures begin with a zero.
    const odd = testKey('odd', 'PS256', 2_049);
    const verifier = jwtVerifier({ ...BASE, algorithms: ['PS256'] as const, keys: { jwks: { keys: [odd.jwk] } } });
    const iat = Math.floor(Date.now() / 1_000);
    const input = `${segment({ alg: 'PS256', kid: 'odd' })}.${segment({ iss: ISSUER, aud: AUDIENCE, sub: 'u', iat, exp: iat + 300 })}`;
    let bytes: Buffer;
    do bytes = Buffer.from(signatureOf(input, 'PS256', odd.privateKey), 'base64url');
    while (bytes[0] !== 0);
    const whole = `${input}.${bytes.toString('base64url')}`;
    const short = `${input}.${bytes.subarray(1).toString('base64url')}`;
    const together = Array.from({ length: 120 }, (_, index) => ask(verifier, index % 2 === 0 ? whole : short));
    expect(together.some((asked) => asked instanceof Promise)).toBe(true);
    expect(await Promise.all(together.map(answerOf))).toEqual(
      together.map((_, index) => (index % 2 === 0 ? 'taken' : 'invalid_token')),
    );
  });

  it('are refused all the same where the global Promise was replaced, as by zone.js', async () => {
    const keys = { jwksUri: 'https://issuer.example/jwks' };
    const verifier = jwtVerifier({ ...BASE, keys, fetch: async () => Response.json(jwks) });
    const iat = Math.floor(Date.now() / 1_000);
    const claims = { iss: ISSUER, aud: AUDIENCE, sub: 'u', iat, exp: iat + 300 };
    const stranger = testKey('k1');
    const good = signed(key, claims);
    const forged = Array.from({ length: 120 }, (_, index) => signed(stranger, { ...claims, jti: `${index}` }));
    vi.stubGlobal('Promise', class extends Promise<unknown> {});
    try {
      expect(await answerOf(ask(verifier, good))).toBe('taken');
      const together = forged.map((token) => ask(verifier, token));
      expect(new Set(await Promise.all(together.map(answerOf)))).toEqual(new Set(['invalid_token']));
      expect(await answerOf(ask(verifier, good))).toBe('taken');
    } finally {
      vi.unstubAllGlobals();
    }
  });
});

describe('testIssuer', () => {
  it.each(['ES256', 'ES384', 'ES512', 'Ed25519', 'EdDSA', 'RS256', 'PS256'] as const)(
    'signs %s tokens that its verifier takes',
    async (algorithm) => {
      const issuer = await testIssuer({ algorithm, issuer: 'https://me', audience: 'mine' });
      const api = await guardedApi({ verifiers: [issuer.verifier({ type: 'at+jwt' })] });
      closing.push(() => api.close());
      const { identity } = await api.get(issuer.token({ sub: 'u-9', scope: 'a:read' }, { expiresInSeconds: 60 }));
      expect(identity).toMatchObject({
        subject: { kind: 'user', id: 'u-9' },
        scopes: ['a:read'],
        issuer: 'https://me',
      });
      expect((identity?.expiresAt ?? 0) - (identity?.issuedAt ?? 0)).toBe(60);
      expect((await api.get(issuer.token({ sub: undefined }))).status).toBe(401);
      expect((await api.get(issuer.token({}, { expiresInSeconds: -60 }))).status).toBe(401);
      expect(
        (await api.get((await testIssuer({ algorithm, issuer: 'https://me', audience: 'mine' })).token())).status,
      ).toBe(401);
    },
  );

  it('refuses what it does not know', async () => {
    await expect(testIssuer({ algorithm: 'HS256' as 'ES256' })).rejects.toThrow(/algorithm must be one of/);
    await expect(testIssuer({ isuer: 'x' } as object)).rejects.toThrow(/did you mean "issuer"/);
  });
});

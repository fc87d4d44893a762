import { createPublicKey } from 'node:crypto';
import fc from 'fast-check';
import { jwtVerifier } from 'tollkeeper';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { sized } from '../support/full-size.js';
import { type ApiAnswer, type GuardedApi, guardedApi } from '../support/guarded-api.js';
import {
  type IdentityProvider,
  identityProvider,
  segment,
  signatureOf,
  signed,
  testKey,
} from '../support/identity-provider.js';

const RUNS = sized(10_000, 100_000);

const es = testKey('es-1');
const rs = testKey('rs-1', 'RS256');
const stranger = testKey('es-1');
const AUDIENCE = 'https://api.example';
const ISSUER = 'https://issuer.example';
/** Stands in claims and must not come back in any answer to a refused request. */
const MARK = 'mark-Zq81xV';

let api: GuardedApi;
let provider: IdentityProvider;
beforeAll(async () => {
  provider = await identityProvider([]);
  api = await guardedApi({
    verifiers: [
      jwtVerifier({
        issuer: ISSUER,
        audience: AUDIENCE,
        algorithms: ['ES256', 'RS256'],
        keys: { jwks: { keys: [es.jwk, rs.jwk] } },
      }),
    ],
    maxTokenBytes: 16_384,
  });
});
afterAll(async () => {
  await api.close();
  await provider.close();
});

function claims(changes: Record<string, unknown> = {}): Record<string, unknown> {
  const now = Math.floor(Date.now() / 1_000);
  return { iss: ISSUER, aud: AUDIENCE, sub: MARK, iat: now, exp: now + 300, ...changes };
}

/** The answer is a plain 401 that tells nothing of the token. */
function expectRefusal(answer: ApiAnswer, token: string): void {
  expect(answer.status).toBe(401);
  expect(answer.code).toBe('invalid_token');
  expect(answer.headers['www-authenticate']).toMatch(/^Bearer error="invalid_token", error_description="[^"]+"$/);
  expect(answer.headers['cache-control']).toBe('no-store');
  expectNothingTold(answer, token);
}

function expectNothingTold(answer: ApiAnswer, token: string): void {
  const told = JSON.stringify(answer.headers) + answer.text + JSON.stringify(api.reasons.at(-1) ?? '');
  expect(told).not.toContain(MARK);
  for (const part of token.split('.')) if (part.length > 12) expect(told).not.toContain(part.slice(0, 12));
}

describe('a token that is as it should be', () => {
  it.each([es, rs])('is taken under $alg', async (key) => {
    const answer = await api.get(signed(key, claims()));
    expect(answer.status).toBe(200);
    expect(answer.identity).toMatchObject({ issuer: ISSUER, keyId: key.kid, subject: { kind: 'user', id: MARK } });
  });

  it('may name its key or not where only one key fits, and carry words of its own about the key', async () => {
    const header = { kid: undefined, jku: `${provider.issuer}/jwks`, x5u: provider.issuer, jwk: stranger.jwk };
    expect((await api.get(signed(es, claims(), header))).status).toBe(200);
    expect(provider.requests).toEqual([]);
  });
});

const hs = (input: string, secret: string) => signatureOf(input, 'HS256', Buffer.from(secret));
const withHeader = (header: Record<string, unknown>, sign: (input: string) => string) => {
  const input = `${segment(header)}.${segment(claims())}`;
  return `${input}.${sign(input)}`;
};
const pem = (jwk: Record<string, unknown>) =>
  createPublicKey({ key: jwk, format: 'jwk' }).export({ type: 'spki', format: 'pem' }).toString();

/** Name, and a token that must be refused. */
const HEADER_ATTACKS: [string, () => string][] = [
  ['alg none with an empty signature', () => `${segment({ alg: 'none' })}.${segment(claims())}.`],
  [
    'alg none with a signature',
    () => withHeader({ alg: 'none', kid: 'es-1' }, (i) => signatureOf(i, 'ES256', es.privateKey)),
  ],
  ['alg None', () => withHeader({ alg: 'None' }, (i) => signatureOf(i, 'ES256', es.privateKey))],
  ['alg in lower case', () => withHeader({ alg: 'es256', kid: 'es-1' }, (i) => signatureOf(i, 'ES256', es.privateKey))],
  ['an HMAC with the public PEM as secret', () => withHeader({ alg: 'HS256', kid: 'rs-1' }, (i) => hs(i, pem(rs.jwk)))],
  [
    'an HMAC with the public JWK as secret',
    () => withHeader({ alg: 'HS256', kid: 'es-1' }, (i) => hs(i, JSON.stringify(es.jwk))),
  ],
  [
    'an HMAC with the RSA modulus as secret',
    () => withHeader({ alg: 'HS256', kid: 'rs-1' }, (i) => hs(i, String(rs.jwk.n))),
  ],
  ['an algorithm that is not on the list', () => signed(testKey('es-1', 'ES384'), claims())],
  [
    'RS512 with a key for RS256',
    () => withHeader({ alg: 'RS512', kid: 'rs-1' }, (i) => signatureOf(i, 'RS512', rs.privateKey)),
  ],
  [
    'PS256 with a key for RS256',
    () => withHeader({ alg: 'PS256', kid: 'rs-1' }, (i) => signatureOf(i, 'PS256', rs.privateKey)),
  ],
  ['the kid of a key for another algorithm', () => signed(es, claims(), { kid: 'rs-1' })],
  ['another key under a known kid', () => signed(stranger, claims())],
  ['an embedded jwk', () => signed(stranger, claims(), { jwk: stranger.jwk })],
  ['an embedded jwk and no kid', () => signed(stranger, claims(), { kid: undefined, jwk: stranger.jwk })],
  ['a jku', () => signed(stranger, claims(), { jku: provider.jwksUri })],
  ['an x5u', () => signed(stranger, claims(), { x5u: provider.jwksUri })],
  ['an x5c', () => signed(stranger, claims(), { x5c: ['MIIB'] })],
  ...[
    '../../dev/null',
    "' OR 1=1 --",
    '/etc/passwd',
    '\0',
    'es-1\0',
    '__proto__',
    'constructor',
    'x'.repeat(8_000),
  ].map((kid): [string, () => string] => [
    `the kid ${JSON.stringify(kid.slice(0, 20))}`,
    () => signed(es, claims(), { kid }),
  ]),
  ...[1, true, null, {}, ['es-1'], ''].map((kid): [string, () => string] => [
    `a kid that is ${JSON.stringify(kid)}`,
    () => signed(es, claims(), { kid }),
  ]),
  ...[['exp'], [], 'exp', null, ['b64'], {}].map((crit): [string, () => string] => [
    `crit ${JSON.stringify(crit)}`,
    () => signed(es, claims(), { crit, b64: undefined }),
  ]),
  ['b64 false', () => signed(es, claims(), { b64: false })],
  ['b64 false, critical', () => signed(es, claims(), { b64: false, crit: ['b64'] })],
  ['an enc', () => signed(es, claims(), { enc: 'A256GCM' })],
  ...[undefined, null, 256, {}, ['ES256'], '', '__proto__', 'constructor', 'toString'].map(
    (alg): [string, () => string] => [
      `alg ${JSON.stringify(alg)}`,
      () => withHeader({ alg, kid: 'es-1' }, (i) => signatureOf(i, 'ES256', es.privateKey)),
    ],
  ),
  ...[
    'dpop+jwt',
    'application/DPoP+JWT',
    'logout+jwt',
    'client-authentication+jwt',
    'secevent+jwt',
    'token-introspection+jwt',
    'application/token-introspection+jwt',
    'oauth-authz-req+jwt',
    'kb+jwt',
    'dc+sd-jwt',
    'entity-statement+jwt',
    'id_token',
    'JOSE',
    '',
  ].map((typ): [string, () => string] => [`typ ${typ}`, () => signed(es, claims(), { typ })]),
  ...[1, null, {}, ['JWT']].map((typ): [string, () => string] => [
    `a typ that is ${JSON.stringify(typ)}`,
    () => signed(es, claims(), { typ }),
  ]),
  ['a header that names alg twice', () => signed(es, claims(), '{"alg":"none","kid":"es-1","alg":"ES256"}')],
  [
    'a header that names kid twice in two spellings',
    () => signed(es, claims(), '{"alg":"ES256","kid":"rs-1","k\\u0069d":"es-1"}'),
  ],
  ...['[]', '"ES256"', 'null', '1', '{', '', 'ES256', '{"alg":"ES256"}x', '\uFEFF{"alg":"ES256","kid":"es-1"}'].map(
    (text): [string, () => string] => [`a header that is ${JSON.stringify(text)}`, () => signed(es, claims(), text)],
  ),
];

describe('a token with a hostile header', () => {
  it.each(HEADER_ATTACKS)('is refused: %s', async (_name, make) => {
    const token = make();
    expectRefusal(await api.get(token), token);
    expect(provider.requests).toEqual([]);
  });

  it('is refused when it is encrypted', async () => {
    const token = `${segment({ alg: 'dir', enc: 'A256GCM' })}..${segment('iv')}.${segment('text')}.${segment('tag')}`;
    expectRefusal(await api.get(token), token);
  });
});

const good = () => signed(es, claims());
const parts = () => good().split('.') as [string, string, string];
const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';

/** The other last characters that decode to the same bytes. */
function respelt(text: string): string[] {
  const step = text.length % 4 === 2 ? 16 : text.length % 4 === 3 ? 4 : 1;
  const last = ALPHABET.indexOf(text.at(-1) as string);
  return Array.from({ length: step - 1 }, (_, i) => text.slice(0, -1) + ALPHABET[last + i + 1]);
}

describe('a token in another spelling', () => {
  it('is refused with each of the other last characters of its signature', async () => {
    for (const key of [es, rs]) {
      const token = signed(key, claims());
      const others = respelt(token);
      expect(others).toHaveLength(15);
      for (const other of others) {
        const bytes = (text: string) => Buffer.from(text.split('.')[2] as string, 'base64url');
        expect(bytes(other)).toEqual(bytes(token));
        expectRefusal(await api.get(other), other);
      }
      expect((await api.get(token)).status).toBe(200);
    }
  });

  it('is refused with other last characters of its payload, signed like that', async () => {
    // A length of 3n+1 bytes leaves four unused bits.
    for (const pad of ['', 'x', 'xx']) {
      const payload = segment(claims({ pad }));
      for (const other of respelt(payload)) {
        const input = `${segment({ alg: 'ES256', kid: 'es-1' })}.${other}`;
        const token = `${input}.${signatureOf(input, 'ES256', es.privateKey)}`;
        expectRefusal(await api.get(token), token);
      }
    }
  });

  it.each<[string, () => string, number]>([
    ['padding at the end', () => `${good()}=`, 401],
    ['two characters of padding', () => `${good()}==`, 401],
    ['padding in the middle', () => parts().join('=.'), 400],
    [
      'the other base64 alphabet',
      () =>
        parts()
          .with(2, `+${parts()[2].slice(1)}`)
          .join('.'),
      401,
    ],
    [
      'a slash',
      () =>
        parts()
          .with(2, `${parts()[2].slice(0, -1)}/`)
          .join('.'),
      401,
    ],
    ['a tilde', () => `${good()}~`, 401],
    ['white space inside', () => parts().join(' .'), 400],
    ['two segments', () => parts().slice(0, 2).join('.'), 401],
    ['four segments', () => `${good()}.${segment('x')}`, 401],
    ['six segments', () => `${good()}.a.b.c`, 401],
    ['an empty header', () => parts().with(0, '').join('.'), 401],
    ['an empty payload', () => parts().with(1, '').join('.'), 401],
    ['an empty signature', () => parts().with(2, '').join('.'), 401],
    ['a signature that is too short', () => good().slice(0, -4), 401],
    ['a signature that is too long', () => `${good()}AAAA`, 401],
    ['a signature of one character', () => parts().with(2, 'A').join('.'), 401],
    [
      'a DER signature',
      () =>
        parts()
          .with(2, Buffer.concat([Buffer.from('3044', 'hex'), Buffer.alloc(68, 2)]).toString('base64url'))
          .join('.'),
      401,
    ],
    ['a signature of zeros', () => parts().with(2, Buffer.alloc(64).toString('base64url')).join('.'), 401],
    [
      'the payload of another token',
      () =>
        parts()
          .with(1, segment(claims({ sub: 'somebody' })))
          .join('.'),
      401,
    ],
    [
      'the header of another token',
      () =>
        parts()
          .with(0, segment({ alg: 'ES256', kid: 'es-1', x: 1 }))
          .join('.'),
      401,
    ],
    ['nothing but dots', () => '..', 401],
    [
      'a flattened JWS',
      () => segment(JSON.stringify({ protected: parts()[0], payload: parts()[1], signature: parts()[2] })),
      401,
    ],
  ])('is refused: %s', async (_name, make, status) => {
    const token = make();
    const answer = await api.get(token);
    expect(answer.status).toBe(status);
    expectNothingTold(answer, token);
  });

  it('is refused when an object of the payload names a member twice', async () => {
    const text = JSON.stringify(claims());
    for (const payload of [
      text.replace('{', '{"sub":"first",'),
      text.replace('{', '{"s\\u0075b":"first",'),
      text.replace('{', '{"act":{"sub":"a","sub":"b"},'),
      text.replace('{', '{ "x" : [ { "a\\"" : 1 , "a\\"" : 2 } ] , '),
      text.replace('{', '{"__proto__":1,"__proto__":2,'),
    ]) {
      const token = signed(es, payload);
      expectRefusal(await api.get(token), token);
    }
    const harmless = text.replace('{', '{ "x":[{"a":"a\\":","b":"\\\\"},{"a":1}], "sub " : "\\"sub\\":" , ');
    expect((await api.get(signed(es, harmless))).status).toBe(200);
  });

  it.each([
    ['no JSON', '{"iss":'],
    ['a text', JSON.stringify('claims')],
    ['an array', '[]'],
    ['null', 'null'],
    ['a byte order mark', `\uFEFF${JSON.stringify(claims())}`],
    ['a number', '1'],
  ])('is refused when its payload is %s', async (_name, payload) => {
    const token = signed(es, payload);
    expectRefusal(await api.get(token), token);
  });

  it('is refused when its payload is no UTF-8', async () => {
    const bytes = Buffer.from(JSON.stringify(claims({ sub: 'x?x' })));
    bytes[bytes.indexOf('?')] = 0xff;
    const input = `${segment({ alg: 'ES256', kid: 'es-1' })}.${bytes.toString('base64url')}`;
    const token = `${input}.${signatureOf(input, 'ES256', es.privateKey)}`;
    expectRefusal(await api.get(token), token);
  });

  it('is refused when it is too long, or nested beyond measure', async () => {
    const long = signed(es, claims({ x: 'x'.repeat(13_000) }));
    expect(long.length).toBeGreaterThan(16_384);
    for (const payload of [
      JSON.stringify(claims()).replace('{', `{"x":${'['.repeat(5_000)}${']'.repeat(5_000)},`),
      JSON.stringify(claims()).replace('{', `{"x":${'{"a":'.repeat(100)}1${'}'.repeat(100)},`),
    ]) {
      const token = signed(es, payload);
      expect(token.length).toBeLessThan(16_384);
      expectRefusal(await api.get(token), token);
    }
    expectRefusal(await api.get(long), 'x');
  });
});

const HOSTILE: unknown[] = [[], ['x', 1], [null], 0, -1, 1e300, true, false, {}, { a: 1 }, '', { toString: 'x' }];

describe('a registered claim with a hostile value', () => {
  const now = Math.floor(Date.now() / 1_000);
  const without = (name: string) => claims({ [name]: undefined });
  it.each<[string, Record<string, unknown> | string]>([
    ...HOSTILE.map((value): [string, Record<string, unknown>] => [
      `iss ${JSON.stringify(value)}`,
      claims({ iss: value }),
    ]),
    ['iss in an array', claims({ iss: [ISSUER] })],
    ['iss null', claims({ iss: null })],
    ['no iss', without('iss')],
    ['another iss', claims({ iss: 'https://evil.example' })],
    ['iss with a slash at the end', claims({ iss: `${ISSUER}/` })],
    ['iss in capitals', claims({ iss: ISSUER.toUpperCase() })],
    ['iss as a pattern', claims({ iss: '.*' })],
    ['iss __proto__', claims({ iss: '__proto__' })],
    ...HOSTILE.filter((value) => JSON.stringify(value) !== '1').map((value): [string, Record<string, unknown>] => [
      `aud ${JSON.stringify(value)}`,
      claims({ aud: value }),
    ]),
    ['aud beside something that is no string', claims({ aud: [AUDIENCE, 1] })],
    ['aud null', claims({ aud: null })],
    ['no aud', without('aud')],
    ['another aud', claims({ aud: 'https://other.example' })],
    ['aud as a prefix', claims({ aud: `${AUDIENCE}/x` })],
    ['aud as a list in a string', claims({ aud: `${AUDIENCE} other` })],
    ['no exp', without('exp')],
    ['exp null', claims({ exp: null })],
    ['exp as a string', claims({ exp: String(now + 300) })],
    ['exp in an array', claims({ exp: [now + 300] })],
    ['exp an object', claims({ exp: {} })],
    ['exp true', claims({ exp: true })],
    ['exp beyond all time', claims({ exp: 1e300 })],
    ['exp infinite', JSON.stringify(claims({ exp: 0 })).replace('"exp":0', '"exp":1e999')],
    ['exp past', claims({ exp: now - 60 })],
    ['exp negative', claims({ exp: -1 })],
    ['nbf in the future', claims({ nbf: now + 60 })],
    ...[null, '1', [], {}, true, -1e300].map((nbf): [string, Record<string, unknown>] => [
      `nbf ${JSON.stringify(nbf)}`,
      claims({ nbf }),
    ]),
    ['iat in the future', claims({ iat: now + 60 })],
    ...[null, '1', [], {}, true, -1e300].map((iat): [string, Record<string, unknown>] => [
      `iat ${JSON.stringify(iat)}`,
      claims({ iat }),
    ]),
    ['cnf with a thumbprint', claims({ cnf: { jkt: 'x' } })],
    ...[{}, 'x', 1, [], true].map((cnf): [string, Record<string, unknown>] => [
      `cnf ${JSON.stringify(cnf)}`,
      claims({ cnf }),
    ]),
  ])('refuses the token: %s', async (_name, payload) => {
    const token = signed(es, payload);
    expectRefusal(await api.get(token), token);
  });
});

describe('a mapped claim with a hostile value', () => {
  const texts = ['sub', 'tenant_id', 'org', 'client_id', 'azp', 'plan', 'jti', 'auth_id'];
  const lists = ['scope', 'scp', 'groups'];
  const values: [string, unknown][] = [
    ['an array', ['x', 1]],
    ['an empty array', []],
    ['a number', 7],
    ['true', true],
    ['an object', { id: 'x' }],
    ['an empty string', ''],
    ['an object with __proto__', JSON.parse('{"__proto__":{"x":1}}')],
    ['64 KiB', 'x'.repeat(65_536)],
  ];
  const cases: [string, string, unknown][] = [];
  for (const name of texts) for (const [what, value] of values) cases.push([name, what, value]);
  for (const name of lists) {
    for (const [what, value] of values) {
      const isFine = what === 'an empty array' || (what === 'an empty string' && name !== 'groups');
      if (!isFine) cases.push([name, what, value]);
    }
    cases.push([name, 'an array with an empty string', ['']], [name, 'an array in an array', [['x']]]);
  }
  cases.push(['groups', 'a string', 'x'], ['is_service_account', 'a string', 'true'], ['is_service_account', '1', 1]);
  for (const act of ['x', 1, [], {}, { sub: 1 }, { sub: '' }, { sub: 'x', is_service_account: 'true' }, true]) {
    cases.push(['act', JSON.stringify(act), act]);
  }
  for (const resources of ['x', 1, {}, ['x'], [{}], [{ type: 'a' }], [{ type: 'a', id: 1 }], [null], true]) {
    cases.push(['resources', JSON.stringify(resources), resources]);
  }

  it.each(cases)('refuses the token: %s is %s', async (name, _what, value) => {
    const token = signed(es, claims({ [name]: value }));
    expectRefusal(await api.get(token), token);
  });

  it('is checked even where another claim comes first', async () => {
    const token = signed(es, claims({ scope: 'a:read', scp: 1 }));
    expectRefusal(await api.get(token), token);
  });

  it('changes no prototype', async () => {
    const payload = JSON.stringify(claims()).replace('{', '{"__proto__":{"tenant_id":"t-9","scope":"a:admin"},');
    const { status, identity } = await api.get(signed(es, payload));
    expect(status).toBe(200);
    expect(identity?.tenant).toBeUndefined();
    expect(identity?.scopes).toEqual([]);
    expect(({} as Record<string, unknown>).scope).toBeUndefined();
  });
});

describe('a valid token that was changed anywhere', () => {
  it(`is refused, ${RUNS} times, and nothing of it comes back`, async () => {
    const originals = [es, rs].map((key) => signed(key, claims({ scope: 'a:read', tenant_id: MARK })));
    const character = fc.constantFrom(...ALPHABET, '.', '=', '+', '/', '~');
    const change = fc.oneof(
      fc.record({ kind: fc.constant('replace' as const), at: fc.nat(), by: character }),
      fc.record({ kind: fc.constant('insert' as const), at: fc.nat(), by: character }),
      fc.record({ kind: fc.constant('delete' as const), at: fc.nat(), by: fc.constant('') }),
      fc.record({ kind: fc.constant('swap' as const), at: fc.nat(), by: fc.constant('') }),
      fc.record({ kind: fc.constant('cut' as const), at: fc.nat(), by: fc.constant('') }),
    );
    const before = api.handled;
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...originals),
        fc.array(change, { minLength: 1, maxLength: 3 }),
        async (original, changes) => {
          let token = original;
          for (const { kind, at, by } of changes) {
            const index = at % Math.max(1, token.length);
            const [left, right] = [token.slice(0, index), token.slice(index)];
            if (kind === 'insert') token = left + by + right;
            else if (kind === 'replace') token = left + by + right.slice(1);
            else if (kind === 'delete') token = left + right.slice(1);
            else if (kind === 'swap') token = left.slice(0, -1) + right.slice(0, 1) + left.slice(-1) + right.slice(1);
            else token = left;
          }
          fc.pre(token !== original && token !== '');
          const answer = await api.get(token);
          expect([400, 401]).toContain(answer.status);
          expectNothingTold(answer, answer.status === 401 && token.length > 40 ? token : '');
        },
      ),
      { numRuns: RUNS },
    );
    expect(api.handled).toBe(before);
    for (const original of originals) expect((await api.get(original)).status).toBe(200);
  }, 120_000);
});

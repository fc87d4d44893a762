import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createKeyRing, jwtVerifier, type KeyOptions, type Verifier } from 'tollkeeper';
import { type ManualClock, manualClock } from 'tollkeeper/testing';
import { afterEach, describe, expect, it } from 'vitest';
import { type GuardedApi, guardedApi } from '../support/guarded-api.js';
import {
  type Answer,
  type IdentityProvider,
  identityProvider,
  signed,
  status,
  type TestKey,
  testKey,
} from '../support/identity-provider.js';
import { tempFolder } from '../support/temp-folder.js';

const AUDIENCE = 'https://api.example';
const first = testKey('first');
const second = testKey('second');
const third = testKey('third');

const closing: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

/** Resolves when an attempt to fetch keys, which nobody need wait for, has failed and is over. */
function failedAttempt(): Promise<void> {
  return new Promise((resolve) => {
    const heard = (message: unknown): void => {
      if ((message as { type?: string }).type !== 'keys_unavailable') return;
      unsubscribe('tollkeeper:verifier', heard);
      setImmediate(resolve);
    };
    subscribe('tollkeeper:verifier', heard);
  });
}

interface Setup {
  readonly clock: ManualClock;
  readonly provider: IdentityProvider;
  readonly verifier: Verifier;
  readonly api: GuardedApi;
  token(key: TestKey, claims?: Record<string, unknown>, header?: Record<string, unknown>): string;
}

async function setup(
  options: {
    keys?: readonly TestKey[];
    cache?: false;
    remote?: object;
    source?: (p: IdentityProvider) => KeyOptions;
  } = {},
): Promise<Setup> {
  const clock = manualClock(Date.now());
  const provider = await identityProvider(options.keys ?? [first]);
  const verifier = jwtVerifier({
    issuer: provider.issuer,
    audience: AUDIENCE,
    algorithms: ['ES256'],
    keys: options.source?.(provider) ?? { jwksUri: provider.jwksUri, timeoutSeconds: 1, ...options.remote },
    clock,
  });
  const api = await guardedApi({ verifiers: [verifier], clock, cache: options.cache ?? { ttlSeconds: 100_000 } });
  closing.push(
    () => api.close(),
    async () => verifier.close?.(),
    () => provider.close(),
  );
  const token = (key: TestKey, claims = {}, header = {}) => {
    const now = Math.floor(clock.now() / 1_000);
    return signed(key, { iss: provider.issuer, aud: AUDIENCE, sub: 'u', iat: now, exp: now + 1e6, ...claims }, header);
  };
  return { clock, provider, verifier, api, token };
}

describe('a JWK set that is fetched', () => {
  it('is fetched once for a hundred tokens at the same time, and not before the first', async () => {
    const { provider, api, token } = await setup();
    expect(provider.fetches).toBe(0);
    const answers = await Promise.all(Array.from({ length: 100 }, (_, i) => api.get(token(first, { jti: `${i}` }))));
    expect(answers.map(({ status }) => status)).toEqual(new Array(100).fill(200));
    expect(provider.fetches).toBe(1);
  });

  it('tells each of a burst by its own signature, and forgets none of those that wait for their turn', async () => {
    const { api, token } = await setup();
    const impostor = testKey('first');
    const good = (index: number): boolean => index % 3 !== 1;
    const tokens = Array.from({ length: 300 }, (_, i) => token(good(i) ? first : impostor, { jti: `${i}` }));
    const answers = await Promise.all(tokens.map((each) => api.get(each)));
    expect(answers.map(({ status }) => status)).toEqual(tokens.map((_, index) => (good(index) ? 200 : 401)));
    expect((await api.get(token(first))).status).toBe(200);
  });

  it('can be fetched before the first request, by ready()', async () => {
    const { provider, api, verifier, token } = await setup();
    await verifier.ready?.();
    await verifier.ready?.();
    expect(provider.fetches).toBe(1);
    expect((await api.get(token(first))).status).toBe(200);
    expect(provider.fetches).toBe(1);
  });

  it('makes ready() reject while it cannot be had, and answers 503 with the time until the next attempt', async () => {
    const { provider, api, verifier, token, clock } = await setup();
    provider.answer = status(500);
    await expect(verifier.ready?.()).rejects.toMatchObject({ code: 'verifier_unavailable' });
    clock.advance(10);
    const answer = await api.get(token(first));
    expect(answer).toMatchObject({ status: 503, code: 'verifier_unavailable' });
    expect(answer.headers['retry-after']).toBe('20');
    expect(answer.headers['www-authenticate']).toBeUndefined();
    expect(provider.fetches).toBe(1);
    provider.answer = undefined;
    clock.advance(20);
    expect((await api.get(token(first))).status).toBe(200);
  });

  it('is fetched for nothing that can be refused without it', async () => {
    const { provider, api, token } = await setup();
    const bad = [
      token(first, { iss: 'https://evil.example' }),
      token(first, { exp: 1 }),
      token(first, { aud: 'other' }),
      token(first, {}, { alg: 'none' }),
      token(first, {}, { typ: 'dpop+jwt' }),
      `${token(first)}=`,
    ];
    for (const one of bad) expect((await api.get(one)).status).toBe(401);
    expect(provider.fetches).toBe(0);
  });
});

describe('a kid that nobody has', () => {
  it('costs one fetch per cooldown, however many come', async () => {
    const { provider, api, token, clock } = await setup();
    expect((await api.get(token(first))).status).toBe(200);
    const round = async (name: string) => {
      const tokens = Array.from({ length: 1_000 }, (_, i) => token(second, {}, { kid: `${name}-${i}` }));
      for (let i = 0; i < tokens.length; i += 50) {
        const answers = await Promise.all(tokens.slice(i, i + 50).map((one) => api.get(one)));
        for (const { status } of answers) expect(status).toBe(401);
      }
    };
    await round('within');
    expect(provider.fetches).toBe(1);
    clock.advance(30);
    await round('after');
    expect(provider.fetches).toBe(2);
    clock.advance(29);
    await round('again');
    expect(provider.fetches).toBe(2);
    expect((await api.get(token(first, { jti: 'x' }))).status).toBe(200);
  });

  it('costs one fetch per cooldown while fetches fail too, and is then an outage', async () => {
    const { provider, api, token, clock } = await setup();
    expect((await api.get(token(first))).status).toBe(200);
    provider.answer = status(503);
    clock.advance(30);
    for (let round = 1; round <= 2; round++) {
      for (let i = 0; i < 500; i += 50) {
        const tokens = Array.from({ length: 50 }, (_, n) => token(second, {}, { kid: `${round}-${i + n}` }));
        for (const { status } of await Promise.all(tokens.map((one) => api.get(one)))) expect(status).toBe(503);
      }
      expect(provider.fetches).toBe(1 + round);
      clock.advance(30);
    }
    expect((await api.get(token(first, { jti: 'known key, new token' }))).status).toBe(200);
  });

  it('works as soon as it is published and the cooldown is over', async () => {
    const { provider, api, token, clock } = await setup();
    expect((await api.get(token(first))).status).toBe(200);
    expect((await api.get(token(second))).status).toBe(401);
    provider.keys = [first.jwk, second.jwk];
    clock.advance(30);
    expect((await api.get(token(second))).status).toBe(200);
    expect(provider.fetches).toBe(2);
  });

  it('is needed where several keys fit', async () => {
    const { api, token } = await setup({ keys: [first, second] });
    expect((await api.get(token(first, {}, { kid: undefined }))).status).toBe(401);
    const single = await setup();
    expect((await single.api.get(single.token(first, {}, { kid: undefined }))).status).toBe(200);
  });
});

describe('a key that is withdrawn', () => {
  it('stops working within the lifetime of the set, for cached identities too', async () => {
    const { provider, api, token, clock } = await setup({ keys: [first, second] });
    const known = token(first);
    expect((await api.get(known)).status).toBe(200);
    provider.keys = [second.jwk];
    clock.advance(599);
    expect((await api.get(known)).status).toBe(200);
    clock.advance(1);
    expect((await api.get(known)).status).toBe(401);
    expect((await api.get(token(first, { jti: 'new' }))).status).toBe(401);
    expect((await api.get(token(second))).status).toBe(200);
    expect(provider.fetches).toBe(2);
  });

  it('stops working within a lifetime that is shorter than the cooldown, and fetches that fail wait for it', async () => {
    const { provider, api, token, clock } = await setup({ keys: [first, second], remote: { maxAgeSeconds: 10 } });
    const known = token(first);
    expect((await api.get(known)).status).toBe(200);
    clock.advance(9);
    expect((await api.get(known)).status).toBe(200);
    expect(provider.fetches).toBe(1);
    provider.keys = [second.jwk];
    clock.advance(1);
    expect((await api.get(known)).status).toBe(401);
    expect(provider.fetches).toBe(2);
    provider.answer = status(500);
    clock.advance(10);
    let failed = failedAttempt();
    for (const later of [0, 10, 19]) {
      clock.advance(later);
      expect((await api.get(token(second, { jti: `${later}` }))).status).toBe(200);
      await failed;
      expect(provider.fetches).toBe(3);
    }
    clock.advance(1);
    failed = failedAttempt();
    expect((await api.get(token(second, { jti: 'x' }))).status).toBe(200);
    await failed;
    expect(provider.fetches).toBe(4);
  });

  it('takes its cached identities along at the refresh that another kid caused', async () => {
    const { provider, api, token, clock } = await setup();
    const known = token(first);
    expect((await api.get(known)).status).toBe(200);
    provider.keys = [second.jwk];
    clock.advance(30);
    expect((await api.get(token(second))).status).toBe(200);
    expect((await api.get(known)).status).toBe(401);
  });

  it('is withdrawn too when other key material takes its kid', async () => {
    const { provider, api, token, clock } = await setup();
    const impostor = testKey('first');
    const known = token(first);
    expect((await api.get(known)).status).toBe(200);
    provider.keys = [impostor.jwk, second.jwk];
    clock.advance(30);
    expect((await api.get(token(second))).status).toBe(200);
    expect((await api.get(known)).status).toBe(401);
    expect((await api.get(token(impostor, { jti: 'new' }))).status).toBe(200);
  });

  it('does not disturb the identities of the keys that stay', async () => {
    const { provider, api, token, clock } = await setup({ keys: [first, second] });
    const kept = token(second);
    expect((await api.get(kept)).status).toBe(200);
    provider.keys = [second.jwk, third.jwk];
    clock.advance(30);
    expect((await api.get(token(third))).status).toBe(200);
    provider.answer = status(500);
    expect((await api.get(kept)).status).toBe(200);
  });

  it('refuses a token whose verification was under way when its key went', async () => {
    const { provider, api, token, clock, verifier } = await setup();
    expect((await api.get(token(first))).status).toBe(200);
    provider.keys = [second.jwk];
    clock.advance(30);
    const late = token(first, { jti: 'late' });
    const [old, fresh] = await Promise.all([api.get(late), api.get(token(second))]);
    expect(fresh.status).toBe(200);
    expect((await api.get(late)).status).toBe(401);
    expect([200, 401]).toContain(old.status);
    expect(verifier.revocations?.version).toBeGreaterThan(0);
  });
});

const hang: Answer = () => {};
const BROKEN: [string, Answer][] = [
  ['answers with 500', status(500)],
  ['answers with 404', status(404)],
  ['answers with 204', status(204)],
  ['redirects', (_req, res) => void res.writeHead(302, { location: '/elsewhere' }).end()],
  ['answers with garbage', (_req, res) => void res.end('<html>')],
  ['answers with half a document', (_req, res) => void res.end('{"keys":[')],
  ['answers with no JWK set', (_req, res) => void res.end('{"keys":{}}')],
  ['answers with null', (_req, res) => void res.end('null')],
  ['answers with an empty set', (_req, res) => void res.end('{"keys":[]}')],
  [
    'answers with keys that must not be used',
    (_req, res) => void res.end(JSON.stringify({ keys: [{ ...first.jwk, use: 'enc' }, 1, null] })),
  ],
  [
    'answers with more than a megabyte',
    (_req, res) => void res.end(JSON.stringify({ keys: [first.jwk], x: 'x'.repeat(1_100_000) })),
  ],
  [
    'never ends',
    (_req, res) => {
      const timer = setInterval(() => res.write('x'.repeat(65_536)), 1);
      res.on('close', () => clearInterval(timer));
    },
  ],
  ['hangs', hang],
  ['hangs in the middle of the body', (_req, res) => void res.write('{"keys":[')],
  ['closes the connection', (req) => void req.socket.destroy()],
];

describe('an identity provider that', () => {
  it.each(BROKEN)(
    '%s lets known callers work, up to the maximum age, and answers others with 503',
    async (_name, answer) => {
      const { provider, api, token, clock, verifier } = await setup();
      const known = token(first);
      expect((await api.get(known)).status).toBe(200);
      provider.answer = answer;
      clock.advance(600);
      expect((await api.get(known)).status).toBe(200);
      expect((await api.get(token(first, { jti: 'another' }))).status).toBe(200);
      expect(await api.get(token(second))).toMatchObject({ status: 503, code: 'verifier_unavailable' });
      expect(provider.requests).not.toContain('/elsewhere');
      clock.advance(86_400 - 601);
      expect((await api.get(known)).status).toBe(200);
      // Wait for the attempt that the last request started in the background.
      await verifier.ready?.();
      clock.advance(1);
      expect(await api.get(known)).toMatchObject({ status: 503, code: 'verifier_unavailable' });
      provider.answer = undefined;
      clock.advance(30);
      expect((await api.get(known)).status).toBe(200);
    },
  );

  it.each(BROKEN)('%s at the start is an outage, never a refusal and never access', async (_name, answer) => {
    const { provider, api, token, clock } = await setup();
    provider.answer = answer;
    const answers = await Promise.all([first, second].map((key) => api.get(token(key))));
    for (const one of answers) expect(one).toMatchObject({ status: 503, code: 'verifier_unavailable' });
    expect(provider.fetches).toBe(1);
    expect(api.handled).toBe(0);
    provider.answer = undefined;
    clock.advance(30);
    expect((await api.get(token(first))).status).toBe(200);
  });

  it('is out of reach lets nobody wait for it while there is a key', async () => {
    const { provider, api, token, clock } = await setup({ remote: { timeoutSeconds: 60 } });
    expect((await api.get(token(first))).status).toBe(200);
    provider.answer = status(500);
    clock.advance(600);
    const failed = failedAttempt();
    expect((await api.get(token(first, { jti: '1' }))).status).toBe(200);
    await failed;
    provider.answer = hang;
    clock.advance(30);
    // The attempt hangs for a minute; this answer does not.
    expect((await api.get(token(first, { jti: '2' }))).status).toBe(200);
    await expect.poll(() => provider.fetches, { timeout: 10_000 }).toBe(3);
  });

  it('tells operators on the diagnostics channel, without a word of the answer', async () => {
    const messages: { type?: string; reason?: string }[] = [];
    const listen = (message: unknown) => messages.push(message as { type?: string });
    subscribe('tollkeeper:verifier', listen);
    const { provider, api, token, clock } = await setup();
    provider.answer = (_req, res) => void res.end('secret-in-the-body');
    await api.get(token(first));
    provider.answer = undefined;
    clock.advance(30);
    await api.get(token(first));
    provider.keys = [second.jwk];
    clock.advance(600);
    await api.get(token(second));
    unsubscribe('tollkeeper:verifier', listen);
    expect(messages).toMatchObject([
      { type: 'keys_unavailable', verifier: 'jwt', issuer: provider.issuer, reason: 'its answer is no JSON' },
      { type: 'keys_withdrawn', keyIds: ['first'] },
    ]);
    expect(JSON.stringify([messages, api.reasons])).not.toContain('secret-in-the-body');
  });
});

describe('keys that must not be used', () => {
  it('are skipped when they are fetched', async () => {
    const { provider, api, token } = await setup();
    provider.keys = [
      { kty: 'oct', k: 'x'.repeat(43), kid: 'oct' },
      { ...second.jwk, use: 'enc' },
      { ...testKey('rsa', 'RS256', 1_024).jwk },
      { ...third.jwk, key_ops: ['encrypt'] },
      { ...first.jwk },
      { ...second.jwk, kid: 'first' },
      { ...third.jwk, kid: 7 },
    ];
    expect((await api.get(token(first))).status).toBe(200);
    expect((await api.get(token(second))).status).toBe(401);
    expect((await api.get(token(third))).status).toBe(401);
  });
});

describe('discovery', () => {
  const discovered = (remote: object = {}) =>
    setup({ source: () => ({ discover: true, timeoutSeconds: 2, ...remote }) });

  it.each(['/.well-known/openid-configuration', '/.well-known/oauth-authorization-server'])(
    'finds the keys through %s',
    async (path) => {
      const { provider, api, token } = await discovered();
      provider.metadata.set(path, { issuer: provider.issuer, jwks_uri: provider.jwksUri });
      expect((await api.get(token(first))).status).toBe(200);
      expect(provider.requests.at(-2)).toBe(path);
    },
  );

  it('knows where the metadata of an issuer with a path is', async () => {
    const provider = await identityProvider([first]);
    closing.push(() => provider.close());
    const issuer = `${provider.issuer}/tenant/a/`;
    const paths = ['/tenant/a/.well-known/openid-configuration', '/.well-known/oauth-authorization-server/tenant/a'];
    for (const path of paths) {
      provider.metadata.clear();
      provider.metadata.set(path, { issuer, jwks_uri: provider.jwksUri });
      const verifier = jwtVerifier({ issuer, audience: null, algorithms: ['ES256'], keys: { discover: true } });
      await verifier.ready?.();
      expect(provider.requests.at(-2)).toBe(path);
    }
  });

  it.each<[string, (p: IdentityProvider) => unknown]>([
    ['names another issuer', (p) => ({ issuer: 'https://evil.example', jwks_uri: p.jwksUri })],
    ['names the issuer with a slash', (p) => ({ issuer: `${p.issuer}/`, jwks_uri: p.jwksUri })],
    ['names the issuer in an array', (p) => ({ issuer: [p.issuer], jwks_uri: p.jwksUri })],
    ['names no issuer', (p) => ({ jwks_uri: p.jwksUri })],
    ['has no jwks_uri', (p) => ({ issuer: p.issuer })],
    ['has a jwks_uri that is no URL', (p) => ({ issuer: p.issuer, jwks_uri: '/jwks' })],
    ['has a jwks_uri over plain HTTP elsewhere', (p) => ({ issuer: p.issuer, jwks_uri: 'http://keys.example/jwks' })],
    ['has a jwks_uri that is a file', (p) => ({ issuer: p.issuer, jwks_uri: 'file:///etc/passwd' })],
    ['is null', () => null],
    ['is an array', () => []],
  ])('answers with 503 when the metadata %s, and recovers', async (_name, metadata) => {
    const { provider, api, token, clock } = await discovered();
    provider.metadata.set('/.well-known/openid-configuration', metadata(provider));
    expect(await api.get(token(first))).toMatchObject({ status: 503, code: 'verifier_unavailable' });
    expect(provider.fetches).toBe(0);
    provider.metadata.set('/.well-known/openid-configuration', { issuer: provider.issuer, jwks_uri: provider.jwksUri });
    clock.advance(30);
    expect((await api.get(token(first))).status).toBe(200);
  });
});

describe('a JWK set in a file', () => {
  it('is read anew like a remote one', async () => {
    const folder = tempFolder('jwks');
    const path = join(folder.path, 'jwks.json');
    const { api, token, clock } = await setup({ source: () => ({ jwksFile: path }) });
    expect((await api.get(token(first))).status).toBe(503);
    writeFileSync(path, JSON.stringify({ keys: [first.jwk] }));
    clock.advance(30);
    expect((await api.get(token(first))).status).toBe(200);
    writeFileSync(path, 'garbage');
    clock.advance(600);
    expect((await api.get(token(first, { jti: '1' }))).status).toBe(200);
    writeFileSync(path, JSON.stringify({ keys: [second.jwk], x: 'x'.repeat(1_100_000) }));
    clock.advance(30);
    expect((await api.get(token(second))).status).toBe(503);
    writeFileSync(path, JSON.stringify({ keys: [second.jwk] }));
    clock.advance(30);
    expect((await api.get(token(second))).status).toBe(200);
    expect((await api.get(token(first))).status).toBe(401);
  });
});

describe('the keys of a key ring', () => {
  it('hold at once, and a revoked key takes its cached identities along', async () => {
    const clock = manualClock(Date.now());
    const keyRing = await createKeyRing({ algorithm: 'ES256', clock });
    const verifier = jwtVerifier({ issuer: 'ring', audience: null, algorithms: ['ES256'], keys: { keyRing }, clock });
    const api = await guardedApi({ verifiers: [verifier], clock });
    closing.push(
      () => api.close(),
      async () => verifier.close?.(),
      () => keyRing.close(),
    );
    await verifier.ready?.();
    const token = async () => {
      const { kid, alg, sign } = keyRing.signer();
      const now = Math.floor(clock.now() / 1_000);
      const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
      const input = `${encode({ alg, kid })}.${encode({ iss: 'ring', sub: 'u', iat: now, exp: now + 600 })}`;
      return `${input}.${Buffer.from(await sign(Buffer.from(input))).toString('base64url')}`;
    };
    const old = await token();
    expect((await api.get(old)).status).toBe(200);
    const { kid } = keyRing.signer();
    await keyRing.stage();
    await keyRing.revoke(kid);
    expect((await api.get(old)).status).toBe(401);
    expect((await api.get(await token())).status).toBe(200);
  });

  it('are an outage when none of them may be used', async () => {
    const keyRing = await createKeyRing({ algorithm: 'ES256' });
    const verifier = jwtVerifier({ issuer: 'ring', audience: null, algorithms: ['RS256'], keys: { keyRing } });
    const api = await guardedApi({ verifiers: [verifier] });
    closing.push(
      () => api.close(),
      () => keyRing.close(),
    );
    await expect(verifier.ready?.()).rejects.toMatchObject({ code: 'verifier_unavailable' });
    const key = testKey('k', 'RS256');
    const token = signed(key, { iss: 'ring', sub: 'u', exp: Date.now() / 1_000 + 60 });
    expect((await api.get(token)).status).toBe(503);
  });
});

describe('a verifier that is closed', () => {
  it('fetches nothing any more, and closes twice', async () => {
    const { provider, api, verifier, token } = await setup();
    await verifier.close?.();
    await verifier.close?.();
    expect((await api.get(token(first))).status).toBe(503);
    expect(provider.fetches).toBe(0);
  });

  it('ends a fetch that is under way', async () => {
    const { provider, api, verifier, token } = await setup({ remote: { timeoutSeconds: 60 } });
    provider.answer = hang;
    const waiting = api.get(token(first));
    while (provider.fetches === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    await verifier.close?.();
    expect((await waiting).status).toBe(503);
  });
});

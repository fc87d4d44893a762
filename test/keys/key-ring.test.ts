import { createPrivateKey, generateKeyPairSync, sign, verify } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { calculateJwkThumbprint, createLocalJWKSet, importJWK, type JWK, jwtVerify } from 'jose';
import {
  type Clock,
  createKeyRing,
  type KeyRing,
  type KeyRingOptions,
  type KeyStore,
  memoryKeyStore,
  type StoredKeyRing,
} from 'tollkeeper';
import { afterAll, describe, expect, it, vi } from 'vitest';
import { tempFolder } from '../support/index.js';

const folder = tempFolder('keys');
afterAll(() => folder.remove());
let files = 0;

const START = Date.parse('2026-03-01T12:00:00Z');

/** A clock that stands until it is moved. */
function fakeClock(): Clock & { advance(seconds: number): void } {
  let elapsed = 0;
  return {
    now: () => START + elapsed,
    monotonic: () => elapsed,
    advance(seconds) {
      elapsed += seconds * 1_000;
    },
  };
}

const TIMES = { publishSeconds: 100, keepSeconds: 1_000 };

const privateJwk = (): JWK =>
  generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' }) as JWK;
const pkcs8 = (): string =>
  generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ type: 'pkcs8', format: 'pem' }) as string;
const kidOf = (jwk: JWK): Promise<string> => calculateJwkThumbprint(jwk);

async function stateOf(ring: KeyRing): Promise<Record<string, string>> {
  return Object.fromEntries(ring.keys().map(({ kid, state }) => [kid, state]));
}

/** A JWS by the ring's own signer, verified by a stock library from the published keys. */
async function signsFor(ring: KeyRing): Promise<string> {
  const { kid, alg, sign: raw } = ring.signer();
  const input = [{ alg, kid }, { sub: 'a' }]
    .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
    .join('.');
  const jwt = `${input}.${Buffer.from(await raw(Buffer.from(input))).toString('base64url')}`;
  const { protectedHeader } = await jwtVerify(jwt, createLocalJWKSet(ring.jwks() as { keys: JWK[] }));
  return protectedHeader.kid as string;
}

describe('createKeyRing', () => {
  it.each(['ES256', 'Ed25519', 'RS256'] as const)(
    'makes a %s key that signs, named by its thumbprint',
    async (algorithm) => {
      const ring = await createKeyRing({ algorithm });
      const [jwk, ...rest] = ring.jwks().keys;
      expect(rest).toEqual([]);
      expect(jwk).toMatchObject({ alg: algorithm, use: 'sig' });
      expect(await kidOf(jwk as JWK)).toBe(jwk?.kid);
      expect(await signsFor(ring)).toBe(jwk?.kid);
      await importJWK(jwk as JWK, algorithm);
    },
  );

  it('makes ES256 keys by default, keeps them for a day and two minutes, and publishes them for 16 minutes first', async () => {
    const ring = await createKeyRing();
    expect(ring.keys()).toEqual([expect.objectContaining({ alg: 'ES256', state: 'active' })]);
    expect(ring.publishSeconds).toBe(960);
    expect(ring.keepSeconds).toBe(86_520);
  });

  it('publishes no private part, anywhere', async () => {
    const material = privateJwk();
    const ring = await createKeyRing({ keys: { privateKeys: [material] } });
    const seen = JSON.stringify([ring.jwks(), ring.keys(), ring.signer()]) + inspect(ring, { depth: 8 });
    expect(seen).not.toContain(material.d);
    expect(Object.keys(ring.jwks().keys[0] ?? {}).sort()).toEqual(['alg', 'crv', 'kid', 'kty', 'use', 'x', 'y']);
  });

  it('cannot be changed through what it hands out', async () => {
    const ring = await createKeyRing();
    expect(() => ring.jwks().keys.push({})).toThrow(TypeError);
    expect(() => Object.assign(ring.jwks().keys[0] as JWK, { kid: 'x' })).toThrow(TypeError);
    expect(() => Object.assign(ring.signer(), { kid: 'x' })).toThrow(TypeError);
  });

  it.each([
    [{ algorithm: 'none' }, /algorithm must be one of/],
    [{ algorithm: 'HS256' }, /algorithm must be one of/],
    [{ publishSecond: 1 }, /did you mean "publishSeconds"/],
    [{ publishSeconds: -1, keepSeconds: Number.NaN }, /publishSeconds must be.*keepSeconds must be/],
    [{ keys: {} }, /keys must have one of/],
    [{ keys: { file: 'a', store: memoryKeyStore() } }, /keys must have one of/],
    [{ keys: { store: {} } }, /load and save/],
    [{ keys: { file: '' } }, /keys.file/],
    [{ keys: { privateKeys: [] } }, /keys.privateKeys/],
    [{ keys: { external: 'x' } }, /keys.external/],
    [{ revocations: {} }, /revocations/],
    [{ onReloadError: 1 }, /onReloadError/],
  ])('refuses the options %j', async (options, message) => {
    await expect(createKeyRing(options as KeyRingOptions)).rejects.toThrow(TypeError);
    await expect(createKeyRing(options as KeyRingOptions)).rejects.toThrow(message);
  });

  it.each<[string, () => string | JWK]>([
    ['garbage', () => 'garbage'],
    ['a number', () => 1 as unknown as string],
    ['a public key', () => ({ ...privateJwk(), d: undefined })],
    ['P-384', () => generateKeyPairSync('ec', { namedCurve: 'P-384' }).privateKey.export({ format: 'jwk' }) as JWK],
    ['X25519', () => generateKeyPairSync('x25519').privateKey.export({ format: 'jwk' }) as JWK],
    [
      'RSA of 1024 bits',
      () => generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey.export({ format: 'jwk' }) as JWK,
    ],
    ['a key for encryption', () => ({ ...privateJwk(), use: 'enc' })],
    ['a key that may only verify', () => ({ ...privateJwk(), key_ops: ['verify'] })],
    ['another algorithm', () => ({ ...privateJwk(), alg: 'RS256' })],
    ['a shared secret', () => ({ kty: 'oct', k: 'AAAA', d: 'x' })],
    ['a broken key', () => ({ ...privateJwk(), d: 'AAAA' })],
    ['the halves of two keys', () => ({ ...privateJwk(), d: privateJwk().d as string })],
  ])('refuses as a private key: %s, and quotes nothing of it', async (_, make) => {
    const material = make();
    const error = await createKeyRing({ keys: { privateKeys: [material] } }).then(
      () => undefined,
      (cause: Error) => cause,
    );
    expect(error).toBeInstanceOf(TypeError);
    expect(error?.cause).toBeUndefined();
    const text = typeof material === 'object' ? material.d : material;
    if (typeof text === 'string' && text.length > 3) expect(String(error?.stack)).not.toContain(text);
  });

  it('refuses a first key of another algorithm than the one that is stated', async () => {
    await expect(createKeyRing({ algorithm: 'RS256', keys: { privateKeys: [privateJwk()] } })).rejects.toThrow(
      'the first key is not for RS256',
    );
  });

  it('takes an Ed25519 key under the older name of its algorithm', async () => {
    const jwk = generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' }) as JWK;
    const ring = await createKeyRing({
      keys: { privateKeys: [{ ...jwk, alg: 'EdDSA', use: 'sig', key_ops: ['sign'] }] },
    });
    expect(ring.jwks().keys[0]?.alg).toBe('Ed25519');
  });
});

describe('the life of a key', () => {
  it('goes from next to active to retiring to retired, each at its time', async () => {
    const clock = fakeClock();
    const ring = await createKeyRing({ ...TIMES, clock });
    const [first] = ring.keys();
    const { kid } = await ring.stage();
    expect(ring.jwks().keys.map((jwk) => jwk.kid)).toEqual([first?.kid, kid]);
    expect(ring.signer().kid).toBe(first?.kid);
    expect(ring.keys()[1]?.activatableAt).toBe(START / 1_000 + 100);

    clock.advance(99.999);
    await expect(ring.activate(kid)).rejects.toMatchObject({
      code: 'conflict',
      message: expect.stringContaining('2026-03-01T12:01:40.000Z'),
    });
    clock.advance(0.001);
    await ring.activate(kid);
    expect(ring.signer().kid).toBe(kid);
    expect(ring.jwks().keys.map((jwk) => jwk.kid)).toEqual([kid, first?.kid]);
    expect(ring.keys()[0]?.retirableAt).toBe(START / 1_000 + 1_100);

    clock.advance(999.999);
    await expect(ring.retire(first?.kid as string)).rejects.toMatchObject({ code: 'conflict' });
    expect(ring.jwks().keys).toHaveLength(2);
    clock.advance(0.001);
    await ring.retire(first?.kid as string);
    expect(ring.jwks().keys.map((jwk) => jwk.kid)).toEqual([kid]);
    expect(await stateOf(ring)).toEqual({ [first?.kid as string]: 'retired', [kid]: 'active' });
  });

  it('refuses every step that skips one', async () => {
    const clock = fakeClock();
    const ring = await createKeyRing({ ...TIMES, clock });
    const first = ring.signer().kid;
    await expect(ring.retire(first)).rejects.toMatchObject({ code: 'conflict' });
    await expect(ring.activate('nobody')).rejects.toMatchObject({ code: 'not_found' });
    await expect(ring.retire('nobody')).rejects.toMatchObject({ code: 'not_found' });
    await expect(ring.revoke('nobody')).rejects.toMatchObject({ code: 'not_found' });
    await ring.activate(first);
    const { kid } = await ring.stage();
    clock.advance(100);
    await ring.activate(kid);
    await expect(ring.activate(first)).rejects.toMatchObject({ code: 'conflict' });
    await ring.revoke(first);
    await expect(ring.retire(first)).rejects.toMatchObject({ code: 'conflict' });
    await expect(ring.activate(first)).rejects.toMatchObject({ code: 'conflict' });
    await ring.revoke(first);
    expect(await stateOf(ring)).toEqual({ [first]: 'revoked', [kid]: 'active' });
  });

  it('withdraws a key that never signed at any time', async () => {
    const ring = await createKeyRing(TIMES);
    const { kid } = await ring.stage();
    await ring.retire(kid);
    await ring.retire(kid);
    expect(await stateOf(ring)).toMatchObject({ [kid]: 'retired' });
  });

  it('promotes the key that was published the longest when the active one is revoked, and denies the revoked one for ever', async () => {
    const clock = fakeClock();
    const revoke = vi.fn(async () => undefined);
    const ring = await createKeyRing({ ...TIMES, clock, revocations: { revoke } });
    const bad = ring.signer().kid;
    await expect(ring.revoke(bad)).rejects.toMatchObject({ code: 'conflict' });
    expect(ring.signer().kid).toBe(bad);
    expect(revoke).not.toHaveBeenCalled();

    const { kid: heir } = await ring.stage();
    clock.advance(1);
    await ring.stage();
    const changes: unknown[] = [];
    ring.onChange((withdrawn) => changes.push(withdrawn));
    await ring.revoke(bad);
    expect(ring.signer().kid).toBe(heir);
    expect(await signsFor(ring)).toBe(heir);
    expect(ring.jwks().keys.map((jwk) => jwk.kid)).not.toContain(bad);
    expect(changes).toEqual([[bad]]);
    expect(revoke).toHaveBeenCalledExactlyOnceWith({ keyId: bad });
  });

  it('tells its listeners of every change, and grows its version', async () => {
    const clock = fakeClock();
    const ring = await createKeyRing({ ...TIMES, clock });
    const first = ring.signer().kid;
    const seen: [number, readonly string[]][] = [];
    const stop = ring.onChange((withdrawn) => seen.push([ring.version, withdrawn]));
    const start = ring.version;
    const { kid } = await ring.stage();
    clock.advance(100);
    await ring.activate(kid);
    clock.advance(1_000);
    await ring.retire(first);
    expect(seen).toEqual([
      [start + 1, []],
      [start + 2, []],
      [start + 3, [first]],
    ]);
    stop();
    await ring.stage();
    expect(seen).toHaveLength(3);
    const same = ring.jwks();
    expect(ring.jwks()).toBe(same);
    await ring.ready();
    await ring.close();
    await ring.close();
  });

  it('gives one snapshot per signature: key id, algorithm and key always belong together', async () => {
    const clock = fakeClock();
    const ring = await createKeyRing({ ...TIMES, clock });
    const before = ring.signer();
    const jwks = ring.jwks();
    const { kid } = await ring.stage();
    clock.advance(100);
    await ring.activate(kid);
    const data = Buffer.from('data');
    const jwk = jwks.keys[0] as JWK;
    const signature = (await before.sign(data)) as Uint8Array;
    expect(before.kid).toBe(jwk.kid);
    expect(verify('sha256', data, { key: jwk as never, format: 'jwk', dsaEncoding: 'ieee-p1363' }, signature)).toBe(
      true,
    );
  });
});

describe('a key ring over a file', () => {
  const keyFile = async (content: string) => {
    const path = join(folder.path, `keys-${files++}`);
    await writeFile(path, content);
    return path;
  };

  it.each<[string, () => string]>([
    ['PKCS#8 PEM', pkcs8],
    ['a JWK', () => JSON.stringify(privateJwk())],
    ['a JWK set', () => JSON.stringify({ keys: [privateJwk()] })],
  ])('signs with the key of %s', async (_, make) => {
    const ring = await createKeyRing({ keys: { file: await keyFile(make()) } });
    expect(await signsFor(ring)).toBe(ring.jwks().keys[0]?.kid);
    await ring.close();
  });

  it('follows the file: publishes what is new, signs with the first when its time has come, keeps what has left', async () => {
    const clock = fakeClock();
    const [a, b] = [privateJwk(), privateJwk()];
    const [kidA, kidB] = [await kidOf(a), await kidOf(b)];
    const path = await keyFile(JSON.stringify({ keys: [a] }));
    const ring = await createKeyRing({ ...TIMES, clock, keys: { file: path } });
    const version = ring.version;
    await ring.reload();
    expect(ring.version).toBe(version);

    await writeFile(path, JSON.stringify({ keys: [b, a] }));
    await ring.reload();
    expect(await stateOf(ring)).toEqual({ [kidA]: 'active', [kidB]: 'next' });
    clock.advance(100);
    await ring.reload();
    expect(await stateOf(ring)).toEqual({ [kidA]: 'retiring', [kidB]: 'active' });

    await writeFile(path, JSON.stringify(b));
    clock.advance(999);
    await ring.reload();
    expect(await stateOf(ring)).toEqual({ [kidA]: 'retiring', [kidB]: 'active' });
    expect(ring.jwks().keys).toHaveLength(2);
    clock.advance(1);
    await ring.reload();
    expect(await stateOf(ring)).toEqual({ [kidA]: 'retired', [kidB]: 'active' });
    await ring.close();
  });

  it('keeps a further key that left the file as long as one that has signed: another process may have used it', async () => {
    const clock = fakeClock();
    const [a, b] = [privateJwk(), privateJwk()];
    const path = await keyFile(JSON.stringify({ keys: [a, b] }));
    const ring = await createKeyRing({ ...TIMES, clock, keys: { file: path } });
    await writeFile(path, JSON.stringify({ keys: [a] }));
    await ring.reload();
    expect(await stateOf(ring)).toMatchObject({ [await kidOf(b)]: 'retiring' });
    clock.advance(1_000);
    await ring.reload();
    expect(await stateOf(ring)).toMatchObject({ [await kidOf(b)]: 'retired' });
    await ring.close();
  });

  it('does not take a revoked key back while it is still in the file', async () => {
    const [a, b] = [privateJwk(), privateJwk()];
    const path = await keyFile(JSON.stringify({ keys: [a, b] }));
    const ring = await createKeyRing({ ...TIMES, keys: { file: path } });
    await ring.revoke(await kidOf(a));
    await ring.reload();
    expect(await stateOf(ring)).toEqual({ [await kidOf(a)]: 'revoked', [await kidOf(b)]: 'active' });
    expect(ring.jwks().keys).toHaveLength(1);
    await ring.close();
  });

  it('goes on with its keys when the file is gone or broken, and says so', async () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
    try {
      const path = await keyFile(pkcs8());
      const errors: Error[] = [];
      const ring = await createKeyRing({
        keys: { file: path },
        reloadSeconds: 1,
        onReloadError: (error) => errors.push(error),
      });
      await writeFile(path, 'garbage');
      await expect(ring.reload()).rejects.toThrow('neither PKCS#8 PEM nor a JWK');
      vi.advanceTimersByTime(1_000);
      await vi.waitFor(() => expect(errors).toHaveLength(1));
      expect(await signsFor(ring)).toBe(ring.keys()[0]?.kid);
      await ring.close();
      vi.advanceTimersByTime(5_000);
      expect(errors).toHaveLength(1);
    } finally {
      vi.useRealTimers();
    }
  });

  it.each<[string, () => string, RegExp]>([
    ['nothing', () => '', /neither PKCS#8/],
    ['broken JSON', () => '{"d":"secretsecret', /no JSON/],
    ['an empty set', () => '{"keys":[]}', /no key/],
    [
      'SEC1',
      () =>
        generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ type: 'sec1', format: 'pem' }) as string,
      /must hold PKCS#8/,
    ],
    [
      'an encrypted key',
      () =>
        generateKeyPairSync('ed25519').privateKey.export({
          type: 'pkcs8',
          format: 'pem',
          cipher: 'aes-256-cbc',
          passphrase: 'p',
        }) as string,
      /must hold PKCS#8/,
    ],
  ])('refuses a file with %s', async (_, make, message) => {
    const error: Error = await createKeyRing({ keys: { file: await keyFile(make()) } }).catch((cause) => cause);
    expect(error.message).toMatch(message);
    expect(String(error.stack)).not.toContain('secretsecret');
  });

  it('refuses a file that is not there, and makes no keys of its own', async () => {
    await expect(createKeyRing({ keys: { file: join(folder.path, 'none') } })).rejects.toThrow('(ENOENT)');
    const ring = await createKeyRing({ keys: { file: await keyFile(pkcs8()) } });
    await expect(ring.stage()).rejects.toMatchObject({ code: 'conflict' });
    await ring.close();
  });
});

describe('a key ring over a store', () => {
  it('shares one ring between processes: all publish a key before any signs with it', async () => {
    const clock = fakeClock();
    const store = memoryKeyStore();
    const [one, two] = await Promise.all([
      createKeyRing({ ...TIMES, clock, keys: { store } }),
      createKeyRing({ ...TIMES, clock, keys: { store } }),
    ]);
    expect(two.jwks()).toEqual(one.jwks());
    const { kid } = await one.stage();
    await two.reload();
    expect(two.jwks()).toEqual(one.jwks());
    clock.advance(100);
    await two.activate(kid);
    expect(await signsFor(two)).toBe(kid);
    await one.reload();
    expect(await signsFor(one)).toBe(kid);
    const restarted = await createKeyRing({ ...TIMES, clock, keys: { store } });
    expect(restarted.keys()).toEqual(one.keys());
    expect(await signsFor(restarted)).toBe(kid);
  });

  it('loses no change when two processes change it at once', async () => {
    const store = memoryKeyStore();
    const rings = await Promise.all(Array.from({ length: 3 }, () => createKeyRing({ keys: { store } })));
    await Promise.all(rings.map((ring) => ring.stage()));
    await Promise.all(rings.map((ring) => ring.reload()));
    for (const ring of rings) expect(ring.keys()).toHaveLength(4);
  });

  it('forgets the private part of a key that is withdrawn', async () => {
    const store = memoryKeyStore();
    const ring = await createKeyRing({ keys: { store } });
    const { kid } = await ring.stage();
    await ring.revoke(kid);
    const stored = (await store.load(new AbortController().signal)) as StoredKeyRing;
    expect(stored.keys.map(({ privateJwk: key }) => key !== undefined)).toEqual([true, false]);
  });

  it('signs nothing once the store has not been read for too long', async () => {
    const clock = fakeClock();
    const store = memoryKeyStore();
    const ring = await createKeyRing({ clock, keys: { store }, maxStaleSeconds: 60 });
    store.load = async () => {
      throw new Error('gone');
    };
    clock.advance(60);
    await expect(ring.reload()).rejects.toThrow('gone');
    expect(ring.signer().kid).toBe(ring.keys()[0]?.kid);
    clock.advance(0.001);
    expect(() => ring.signer()).toThrow('has not been read for too long');
  });

  it.each<[string, (stored: StoredKeyRing) => StoredKeyRing | undefined]>([
    ['nothing any more', () => undefined],
    ['no active key', ({ version, keys }) => ({ version, keys: keys.map((key) => ({ ...key, state: 'next' })) })],
    [
      'a private key of another key',
      ({ version, keys }) => ({ version, keys: keys.map((key) => ({ ...key, kid: 'x' })) }),
    ],
    [
      'no private key',
      ({ version, keys }) => ({ version, keys: keys.map(({ privateJwk: _, ...key }) => ({ ...key, kid: 'y' })) }),
    ],
  ])('refuses a store that holds %s', async (_, change) => {
    const inner = memoryKeyStore();
    const store: KeyStore = { load: (signal) => inner.load(signal), save: (...args) => inner.save(...args) };
    const ring = await createKeyRing({ keys: { store } });
    const before = ring.jwks();
    store.load = async (signal) => change((await inner.load(signal)) as StoredKeyRing);
    await expect(ring.reload()).rejects.toThrow('the key store');
    expect(ring.jwks()).toBe(before);
  });

  it('gives up when other processes keep changing the store', async () => {
    const inner = memoryKeyStore();
    const ring = await createKeyRing({ keys: { store: inner } });
    inner.save = async () => false;
    await expect(ring.stage()).rejects.toMatchObject({ code: 'conflict' });
  });
});

describe('keys that live elsewhere', () => {
  const kms = (type: 'ec' | 'ed25519' | 'rsa', dsaEncoding: 'der' | 'ieee-p1363' = 'der') => {
    const { privateKey, publicKey } =
      type === 'ec'
        ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
        : type === 'rsa'
          ? generateKeyPairSync('rsa', { modulusLength: 2048 })
          : generateKeyPairSync('ed25519');
    return {
      publicKey: publicKey.export({ format: 'jwk' }) as JWK,
      sign: async (input: Uint8Array) =>
        sign(type === 'ed25519' ? null : 'sha256', input, { key: privateKey, dsaEncoding }),
    };
  };

  it.each([
    ['ec', 'der'],
    ['ec', 'ieee-p1363'],
    ['ed25519', 'der'],
    ['rsa', 'der'],
  ] as const)('signs by a callback: %s, %s', async (type, encoding) => {
    const ring = await createKeyRing({ keys: { external: [kms(type, encoding)] } });
    for (let round = 0; round < 20; round++) expect(await signsFor(ring)).toBe(ring.jwks().keys[0]?.kid);
  });

  it('rotates to another key that is handed in', async () => {
    const clock = fakeClock();
    const ring = await createKeyRing({ ...TIMES, clock, keys: { external: [kms('ec')] } });
    const next = kms('ec');
    const { kid } = await ring.stage(next);
    await expect(ring.stage(next)).rejects.toMatchObject({ code: 'conflict' });
    await expect(ring.stage()).rejects.toMatchObject({ code: 'invalid_input' });
    clock.advance(100);
    await ring.activate(kid);
    expect(await signsFor(ring)).toBe(kid);
    const own = await createKeyRing();
    await expect(own.stage(next)).rejects.toMatchObject({ code: 'invalid_input' });
  });

  const mine = kms('ec');
  it.each<[string, object]>([
    ['no function', { publicKey: mine.publicKey }],
    ['no public key', { sign: mine.sign }],
    ['a private key', { ...mine, publicKey: privateJwk() }],
    ['a broken public key', { ...mine, publicKey: { kty: 'EC' } }],
    ['another algorithm', { ...mine, publicKey: { ...mine.publicKey, alg: 'RS256' } }],
    ['a signature that is no bytes', { ...mine, sign: async () => 'signature' }],
    ['a signature of another kind', { ...mine, sign: async () => new Uint8Array(70) }],
    ['a signature by another key', { ...mine, sign: kms('ec').sign }],
  ])('refuses an external key with %s', async (_, external) => {
    await expect(createKeyRing({ keys: { external: [external as never] } })).rejects.toThrow(Error);
  });
});

describe('what private keys look like', () => {
  it('reads the very key that was given', async () => {
    const pem = pkcs8();
    const ring = await createKeyRing({ keys: { privateKeys: [pem] } });
    const jwk = createPrivateKey(pem).export({ format: 'jwk' }) as JWK;
    expect(ring.signer().kid).toBe(await kidOf(jwk));
  });
});

import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import express from 'express';
import fc from 'fast-check';
import request from 'supertest';
import {
  authenticate,
  type ChangeTarget,
  createPipeline,
  createRevocations,
  type Identity,
  type IdentityInput,
  memoryRevocationStore,
  memorySink,
  meter,
  type RevocationTarget,
  type Verifier,
} from 'tollkeeper';
import { asIdentity, manualClock } from 'tollkeeper/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { identity } from './identity.js';

const NOW = 1_800_000_000;

function inMemory() {
  const clock = manualClock(NOW * 1_000);
  return { clock, revocations: createRevocations({ store: memoryRevocationStore(), clock }) };
}

/** Every kind of watermark, and an identity that it covers. */
const WATERMARKS: [string, RevocationTarget, Partial<IdentityInput>][] = [
  ['client', { clientId: 'c1' }, { clientId: 'c1' }],
  ['client of an issuer', { clientId: 'c1', issuer: 'https://a' }, { clientId: 'c1', issuer: 'https://a' }],
  ['tenant', { tenant: 't1' }, { tenant: 't1' }],
  ['subject', { subject: 's1', issuer: 'https://a' }, { subject: { kind: 'service', id: 's1' }, issuer: 'https://a' }],
  ['issuer', { issuer: 'https://a' }, { issuer: 'https://a' }],
  ['key', { keyId: 'k1' }, { keyId: 'k1' }],
  ['all', { all: true }, {}],
];

describe('createRevocations with the memory store', () => {
  it('is ready at once and never stale', async () => {
    const { clock, revocations } = inMemory();
    expect(revocations.check(identity())).toBe('live');
    clock.advance(1_000_000);
    expect(revocations.check(identity())).toBe('live');
    expect(revocations.staleAt).toBe(Number.POSITIVE_INFINITY);
    await revocations.ready();
    await revocations.close();
    await revocations.close();
  });

  it('denies a token at once, in the same tick, until its expiry and the clocks’ tolerance are over', () => {
    const { clock, revocations } = inMemory();
    const { version } = revocations;
    void revocations.revoke({ tokenId: 'j1' }, { expiresAt: NOW + 100 });
    expect(revocations.version).toBeGreaterThan(version);
    expect(revocations.check(identity({ tokenId: 'j1', issuedAt: NOW + 50 }))).toBe('revoked');
    expect(revocations.check(identity({ tokenId: 'j2' }))).toBe('live');
    clock.advance(159);
    expect(revocations.check(identity({ tokenId: 'j1' }))).toBe('revoked');
    clock.advance(1);
    expect(revocations.check(identity({ tokenId: 'j1' }))).toBe('live');
  });

  it('denies a token without an expiry for ever, whatever `before` says', () => {
    const { clock, revocations } = inMemory();
    void revocations.revoke({ tokenId: 'j1' }, { before: 10 });
    clock.advance(10 * 365 * 86_400);
    expect(revocations.check(identity({ tokenId: 'j1', issuedAt: NOW }))).toBe('revoked');
  });

  it('keeps token ids of two issuers apart when the issuer is named, and denies both when it is not', () => {
    const { revocations } = inMemory();
    const mine = identity({ tokenId: 'j1', issuer: 'https://a' });
    const theirs = identity({ tokenId: 'j1', issuer: 'https://b' });
    void revocations.revoke({ tokenId: 'j1', issuer: 'https://a' });
    expect([revocations.check(mine), revocations.check(theirs)]).toEqual(['revoked', 'live']);
    void revocations.revoke({ tokenId: 'j1' });
    expect(revocations.check(theirs)).toBe('revoked');
  });

  it.each(WATERMARKS)('a watermark on a %s denies what was issued up to that second', (_, target, covered) => {
    const { revocations } = inMemory();
    void revocations.revoke(target, { before: NOW });
    expect(revocations.check(identity({ ...covered, issuedAt: NOW - 1 }))).toBe('revoked');
    expect(revocations.check(identity({ ...covered, issuedAt: NOW }))).toBe('revoked');
    expect(revocations.check(identity({ ...covered, issuedAt: NOW + 0.9 }))).toBe('revoked');
    expect(revocations.check(identity({ ...covered, issuedAt: NOW + 1 }))).toBe('live');
    expect(revocations.check(identity(covered))).toBe('revoked');
  });

  it.each(WATERMARKS.filter(([name]) => name !== 'all'))(
    'a watermark on a %s leaves everybody else alone',
    (_, target) => {
      const { revocations } = inMemory();
      void revocations.revoke(target);
      const others = { clientId: 'c2', tenant: 't2', keyId: 'k2', issuer: 'https://b', tokenId: 'j' };
      expect(revocations.check(identity({ ...others, subject: { kind: 'user', id: 's1' } }))).toBe('live');
    },
  );

  it('denies up to now by default, within the whole second', () => {
    const { clock, revocations } = inMemory();
    clock.advance(0.7);
    void revocations.revoke({ tenant: 't1' });
    expect(revocations.check(identity({ tenant: 't1', issuedAt: NOW }))).toBe('revoked');
    expect(revocations.check(identity({ tenant: 't1', issuedAt: NOW + 0.6 }))).toBe('revoked');
    expect(revocations.check(identity({ tenant: 't1', issuedAt: NOW + 1 }))).toBe('live');
  });

  it('denies whatever a leaked key signs, whenever it says that it was issued', () => {
    const { revocations } = inMemory();
    void revocations.revoke({ keyId: 'k1' });
    expect(revocations.check(identity({ keyId: 'k1', issuedAt: NOW + 86_400 }))).toBe('revoked');
    expect(revocations.check(identity({ keyId: 'k1', issuedAt: 1e15 }))).toBe('revoked');
  });

  it('takes Infinity as a watermark that nothing passes', () => {
    const { revocations } = inMemory();
    void revocations.revoke({ clientId: 'c1' }, { before: Number.POSITIVE_INFINITY });
    expect(revocations.check(identity({ clientId: 'c1', issuedAt: NOW + 86_400 }))).toBe('revoked');
  });

  it('denies an identity that does not say when it was issued even under a watermark at 0', () => {
    const { revocations } = inMemory();
    void revocations.revoke({ all: true }, { before: 0 });
    void revocations.revoke({ clientId: 'c1' }, { before: 0 });
    expect(revocations.check(identity())).toBe('revoked');
    expect(revocations.check(identity({ issuedAt: 5, clientId: 'c1' }))).toBe('live');
  });

  it('cuts off at the maximum of all watermarks, and an older one undoes nothing', () => {
    const { revocations } = inMemory();
    void revocations.revoke({ tenant: 't1' }, { before: NOW - 50 });
    void revocations.revoke({ clientId: 'c1' }, { before: NOW - 10 });
    const { version } = revocations;
    void revocations.revoke({ clientId: 'c1' }, { before: NOW - 100 });
    void revocations.revoke({ all: true }, { before: NOW - 90 });
    void revocations.revoke({ all: true }, { before: NOW - 95 });
    expect(revocations.version).toBe(version + 1);
    expect(revocations.check(identity({ tenant: 't1', clientId: 'c1', issuedAt: NOW - 10 }))).toBe('revoked');
    expect(revocations.check(identity({ tenant: 't1', clientId: 'c1', issuedAt: NOW - 9 }))).toBe('live');
    expect(revocations.check(identity({ tenant: 't1', issuedAt: NOW - 10 }))).toBe('live');
    expect(revocations.check(identity({ issuedAt: NOW - 90 }))).toBe('revoked');
  });

  it('takes a new watermark where an old one has expired, not the old one again', () => {
    const { clock, revocations } = inMemory();
    void revocations.revoke({ clientId: 'c1' }, { before: NOW + 500, expiresAt: NOW + 100 });
    clock.advance(160);
    void revocations.revoke({ clientId: 'c1' });
    expect(revocations.check(identity({ clientId: 'c1', issuedAt: NOW + 160 }))).toBe('revoked');
    expect(revocations.check(identity({ clientId: 'c1', issuedAt: NOW + 161 }))).toBe('live');
  });

  it('forgets a watermark on everything when it has expired', () => {
    const { clock, revocations } = inMemory();
    void revocations.revoke({ all: true }, { before: NOW, expiresAt: NOW + 100 });
    void revocations.revoke({ all: true }, { before: NOW - 5, expiresAt: NOW + 200 });
    clock.advance(259);
    expect(revocations.check(identity({ issuedAt: NOW }))).toBe('revoked');
    clock.advance(1);
    expect(revocations.check(identity({ issuedAt: NOW }))).toBe('live');
    void revocations.revoke({ all: true }, { before: NOW - 7 });
    expect(revocations.check(identity({ issuedAt: NOW }))).toBe('live');
    expect(revocations.check(identity({ issuedAt: NOW - 7 }))).toBe('revoked');
  });

  it('makes stale only what a change names, and only what was decided before it', () => {
    const { revocations } = inMemory();
    for (const [target, covered] of [
      [{ tokenId: 'j1' }, { tokenId: 'j1' }],
      [
        { tokenId: 'j2', issuer: 'https://a' },
        { tokenId: 'j2', issuer: 'https://a' },
      ],
      [{ clientId: 'c1' }, { clientId: 'c1' }],
      [{ keyId: 'k1' }, { keyId: 'k1' }],
    ] as [ChangeTarget, Partial<IdentityInput>][]) {
      const decidedAt = revocations.version;
      void revocations.changed(target);
      expect(revocations.check(identity(covered), decidedAt)).toBe('changed');
      expect(revocations.check(identity(covered), revocations.version)).toBe('live');
      expect(revocations.check(identity(covered))).toBe('live');
      expect(revocations.check(identity({ tokenId: 'x', clientId: 'x', keyId: 'x' }), decidedAt)).toBe('live');
      expect(revocations.check(identity({ tokenId: 'j2', issuer: 'https://b' }), decidedAt)).toBe('live');
    }
  });

  it('answers revoked rather than changed', () => {
    const { revocations } = inMemory();
    void revocations.changed({ tokenId: 'j1' });
    void revocations.revoke({ tokenId: 'j1' });
    expect(revocations.check(identity({ tokenId: 'j1' }), 0)).toBe('revoked');
  });

  it('verifies anew whatever was decided before a change that it has forgotten', () => {
    const { clock, revocations } = inMemory();
    const decidedAt = revocations.version;
    void revocations.changed({ tokenId: 'j1' });
    const between = revocations.version;
    clock.advance(3_601);
    // Enough to make every part of the sets be swept.
    for (let count = 0; count < 64 * 257; count++) void revocations.revoke({ tenant: `t${count % 5}` });
    expect(revocations.check(identity({ tokenId: 'other' }), decidedAt)).toBe('changed');
    expect(revocations.check(identity({ tokenId: 'j1' }), between)).toBe('live');
  });

  it('is shared by whatever is created on the same store', () => {
    const store = memoryRevocationStore();
    const [one, other] = [createRevocations({ store }), createRevocations({ store })];
    void one.revoke({ tokenId: 'j1' });
    expect(other.check(identity({ tokenId: 'j1' }))).toBe('revoked');
    expect(other.version).toBe(one.version);
  });

  it('bounds how many changes it remembers: beyond, everything decided so far is verified anew', () => {
    const { revocations } = inMemory();
    const decidedAt = revocations.version;
    for (let count = 0; count < 262_144; count++) void revocations.changed({ tokenId: `j${count}` });
    expect(revocations.check(identity({ tokenId: 'other' }), decidedAt)).toBe('live');
    void revocations.changed({ tokenId: 'one more' });
    expect(revocations.check(identity({ tokenId: 'other' }), decidedAt)).toBe('changed');
    expect(revocations.check(identity({ tokenId: 'j5' }), decidedAt)).toBe('changed');
    expect(revocations.check(identity({ tokenId: 'other' }), revocations.version)).toBe('live');
  });
});

describe('what revoke and changed refuse', () => {
  const BAD_TARGETS: [unknown, RegExp][] = [
    [undefined, /target must be an object/],
    [null, /target must be an object/],
    ['j1', /target must be an object/],
    [{}, /names nothing/],
    [{ tokenId: undefined }, /names nothing/],
    [{ tokenId: '' }, /target.tokenId must be a string/],
    [{ tokenId: 5 }, /target.tokenId must be a string/],
    [{ tokenId: ['j1'] }, /target.tokenId must be a string/],
    [{ tokenid: 'j1' }, /did you mean "tokenId"/],
    [{ tokenId: 'j1', clientId: 'c1' }, /one thing only/],
    [{ tokenId: 'j1', all: true }, /one thing only/],
    [{ tokenId: 'j1', issuer: '' }, /target.issuer must be a string/],
    [{ subject: 's1' }, /needs target.issuer/],
    [{ tenant: 't1', issuer: 'https://a' }, /takes no issuer/],
    [{ keyId: 'k1', issuer: 'https://a' }, /takes no issuer/],
    [{ all: false }, /target.all must be true/],
    [{ all: true, issuer: 'https://a' }, /stand alone/],
    [{ issuer: 5 }, /target.issuer must be a string/],
  ];

  it.each(BAD_TARGETS)('the target %j', async (target, message) => {
    const { revocations } = inMemory();
    const error = await revocations.revoke(target as RevocationTarget).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(TypeError);
    expect((error as Error).message).toMatch(message);
    expect(revocations.version).toBe(0);
    await expect(revocations.changed(target as ChangeTarget)).rejects.toThrow(TypeError);
  });

  it.each([{ tenant: 't1' }, { issuer: 'https://a' }, { all: true }, { subject: 's', issuer: 'https://a' }])(
    'a change of %j',
    async (target) => {
      const { revocations } = inMemory();
      await expect(revocations.changed(target as unknown as ChangeTarget)).rejects.toThrow(
        /tokenId, a clientId or a keyId/,
      );
    },
  );

  it.each([
    [{ before: NOW * 1_000 }, /before must be epoch seconds \(not milliseconds\)/],
    [{ before: -1 }, /before/],
    [{ before: Number.NaN }, /before/],
    [{ before: '5' }, /before/],
    [{ expiresAt: NOW * 1_000 }, /expiresAt must be epoch seconds/],
    [{ expiresAt: new Date() }, /expiresAt/],
    [{ reason: 5 }, /reason/],
    [{ reason: 'x'.repeat(501) }, /reason/],
    [{ reason: 'a\nb' }, /reason/],
    [{ until: 5 }, /unknown option "options.until"/],
    ['soon', /options must be an object/],
  ])('the options %j', async (options, message) => {
    const { revocations } = inMemory();
    const revoke = revocations.revoke as (target: RevocationTarget, options: unknown) => Promise<void>;
    await expect(revoke.call(revocations, { tokenId: 'j1' }, options)).rejects.toThrow(message);
    expect(revocations.check(identity({ tokenId: 'j1' }))).toBe('live');
  });

  it('takes hostile ids as ids', () => {
    const { revocations } = inMemory();
    for (const tokenId of ['__proto__', 'constructor', '\u0000', '\ud800', 'x'.repeat(65_536), '["revoke"]']) {
      expect(revocations.check(identity({ tokenId }))).toBe('live');
      void revocations.revoke({ tokenId });
      expect(revocations.check(identity({ tokenId }))).toBe('revoked');
    }
    expect(revocations.check(identity({ tokenId: 'x'.repeat(65_535) }))).toBe('live');
  });
});

describe('the options of createRevocations', () => {
  it.each([
    [{}, /store must be a revocation store/],
    [{ store: memoryRevocationStore }, /did you call its factory/],
    [{ store: memoryRevocationStore(), pollSeconds: 0 }, /pollSeconds/],
    [{ store: memoryRevocationStore(), pollSeconds: '5' }, /pollSeconds/],
    [{ store: memoryRevocationStore(), maxStalenessSeconds: 4 }, /at least pollSeconds/],
    [{ store: memoryRevocationStore(), maxStalenesSeconds: 4 }, /did you mean "maxStalenessSeconds"/],
    [{ pollSeconds: -1, maxStalenessSeconds: Number.NaN }, /store.*pollSeconds.*maxStalenessSeconds/],
  ])('%# are refused with every problem', (options, message) => {
    expect(() => createRevocations(options as Parameters<typeof createRevocations>[0])).toThrow(message);
    expect(() => createRevocations(options as Parameters<typeof createRevocations>[0])).toThrow(TypeError);
  });
});

describe('random histories', () => {
  const id = fc.constantFrom('a', 'b');
  const issuer = fc.constantFrom('https://a', 'https://b');
  const target: fc.Arbitrary<RevocationTarget> = fc.oneof(
    fc.record({ tokenId: id, issuer }, { requiredKeys: ['tokenId'] }),
    fc.record({ clientId: id, issuer }, { requiredKeys: ['clientId'] }),
    fc.record({ tenant: id }),
    fc.record({ subject: id, issuer }),
    fc.record({ issuer }),
    fc.record({ keyId: id }),
    fc.constant({ all: true as const }),
  );
  const seconds = fc.integer({ min: 0, max: 200 });
  const step = fc.oneof(
    fc.record({
      do: fc.constant('revoke' as const),
      target,
      before: fc.option(seconds, { nil: undefined }),
      life: fc.option(seconds, { nil: undefined }),
    }),
    fc.record({ do: fc.constant('change' as const), target: fc.record({ tokenId: id }) }),
    fc.record({ do: fc.constant('wait' as const), seconds }),
  );
  const caller = fc.record(
    {
      tokenId: id,
      clientId: id,
      tenant: id,
      keyId: id,
      issuer,
      subject: fc.record({ kind: fc.constant('user' as const), id }),
      issuedAt: seconds.map((offset) => NOW + offset - 100),
    },
    { requiredKeys: ['issuer', 'subject'] },
  );

  it('agree with a plain model after every step', () => {
    fc.assert(
      fc.property(
        fc.array(step, { maxLength: 25 }),
        fc.array(caller, { minLength: 5, maxLength: 5 }),
        (steps, callers) => {
          const { clock, revocations } = inMemory();
          const denials = new Map<string, { target: Record<string, unknown>; before: number; until: number }>();
          const changes = new Map<string, number>();
          const start = revocations.version;
          let now = NOW;
          const identities = callers.map((input) => identity(input));
          for (const each of steps) {
            const decidedAt = revocations.version;
            changes.clear();
            if (each.do === 'wait') {
              clock.advance(each.seconds);
              now += each.seconds;
            } else if (each.do === 'change') {
              void revocations.changed(each.target);
              changes.set(each.target.tokenId, 1);
            } else {
              const before = each.before === undefined ? undefined : NOW - 100 + each.before;
              const expiresAt = each.life === undefined ? undefined : now + each.life - 60;
              void revocations.revoke(each.target, { before, expiresAt });
              const key = JSON.stringify(each.target, Object.keys(each.target).sort());
              const known = denials.get(key);
              const absolute = 'tokenId' in each.target || ('keyId' in each.target && before === undefined);
              const cut = absolute ? Number.POSITIVE_INFINITY : (before ?? now);
              const until = expiresAt === undefined ? Number.POSITIVE_INFINITY : expiresAt + 60;
              if (until <= now) continue;
              const kept = known !== undefined && known.until > now ? known : { before: 0, until: 0 };
              denials.set(key, {
                target: each.target as unknown as Record<string, unknown>,
                before: Math.max(kept.before, cut),
                until: Math.max(kept.until, until),
              });
            }
            for (const who of identities) {
              const revoked = [...denials.values()].some(
                ({ target, before, until }) => until > now && names(target, who) && !((who.issuedAt ?? 0) > before),
              );
              expect(revocations.check(who)).toBe(revoked ? 'revoked' : 'live');
              const changed = who.tokenId !== undefined && changes.has(who.tokenId);
              const expected = changed ? 'changed' : 'live';
              expect(revocations.check(who, decidedAt)).toBe(revoked ? 'revoked' : expected);
            }
          }
          expect(revocations.version).toBeGreaterThanOrEqual(start);
        },
      ),
      { numRuns: 300 },
    );
  });

  function names(target: Record<string, unknown>, who: Identity): boolean {
    const facts: Record<string, unknown> = { ...who, subject: who.subject.id, all: true };
    return Object.entries(target).every(([name, value]) => facts[name] === value);
  }

  it('of many tokens: exactly those that were revoked and have not expired are denied', () => {
    const { clock, revocations } = inMemory();
    const COUNT = 20_000;
    for (let n = 0; n < COUNT; n++) {
      void revocations.revoke({ tokenId: `j${n}` }, n % 2 === 0 ? { expiresAt: NOW + (n % 7) * 100 } : {});
    }
    for (const [wait, lasts] of [
      [0, 0],
      [200, 200],
      [300, 500],
      [1_000, 1_500],
    ] as const) {
      clock.advance(wait);
      for (let n = 0; n < COUNT; n += 3) {
        const denied = n % 2 === 1 || (n % 7) * 100 + 60 > lasts;
        expect(revocations.check(identity({ tokenId: `j${n}` }))).toBe(denied ? 'revoked' : 'live');
        expect(revocations.check(identity({ tokenId: `k${n}` }))).toBe('live');
      }
      // Growing rebuilds the sets, and drops what has expired.
      for (let n = 0; n < COUNT; n += 5) void revocations.revoke({ tokenId: `${wait}-${n}` });
    }
  });
});

describe('authenticate over HTTP with createRevocations', () => {
  function appWith(verify: () => ReturnType<Verifier['verify']>) {
    const revocations = createRevocations({ store: memoryRevocationStore() });
    let calls = 0;
    const verifier: Verifier = {
      name: 'letters',
      accepts: () => true,
      verify: () => {
        calls += 1;
        return verify();
      },
    };
    const app = express();
    app.use(authenticate({ verifiers: [verifier], revocations }), (_req, res) => {
      res.json('ok');
    });
    return { revocations, calls: () => calls, ask: () => request(app).get('/').set('authorization', 'Bearer t1') };
  }
  const caller = { subject: { kind: 'user', id: 'u' }, authId: 'a', tokenId: 'j1', clientId: 'c1' } as const;

  it('answers a cached caller who was revoked with 401 on the very next request', async () => {
    const { revocations, ask } = appWith(() => caller);
    expect((await ask()).status).toBe(200);
    void revocations.revoke({ clientId: 'c1' });
    const res = await ask();
    expect([res.status, res.body.code]).toEqual([401, 'invalid_token']);
    expect(res.headers['www-authenticate']).toContain('error="invalid_token"');
  });

  it('verifies a caller anew after a change, once', async () => {
    const { revocations, ask, calls } = appWith(() => caller);
    await ask();
    await ask();
    expect(calls()).toBe(1);
    void revocations.changed({ tokenId: 'j1' });
    await ask();
    await ask();
    expect(calls()).toBe(2);
  });

  it('sees a revocation, and a change, that land while a verification is in flight', async () => {
    let release = (_: typeof caller): void => {};
    const { revocations, ask, calls } = appWith(() => new Promise((resolve) => (release = resolve)));
    const first = ask().then((res) => res.status);
    await vi.waitFor(() => expect(calls()).toBe(1));
    void revocations.changed({ tokenId: 'j1' });
    release(caller);
    await vi.waitFor(() => expect(calls()).toBe(2));
    void revocations.revoke({ tokenId: 'j1' });
    release(caller);
    expect(await first).toBe(401);
  });
});

describe('the diagnostics channel tollkeeper:revocations', () => {
  const seen: unknown[] = [];
  const listen = (message: unknown): void => {
    seen.push(message);
  };
  afterEach(() => {
    unsubscribe('tollkeeper:revocations', listen);
  });

  it('tells of revocations and changes without naming whom', () => {
    subscribe('tollkeeper:revocations', listen);
    const { revocations } = inMemory();
    void revocations.revoke({ tokenId: 'j1' });
    void revocations.changed({ clientId: 'c1' });
    expect(seen).toEqual([
      { type: 'revoked', kind: 'token' },
      { type: 'changed', kind: 'client' },
    ]);
  });
});

describe('asIdentity and manualClock', () => {
  it('signs a caller in without a credential', async () => {
    const app = express();
    app.use(asIdentity({ subject: { kind: 'user', id: 'u1' }, authId: 'a1' }), (req, res) => {
      res.json({ authId: req.identity?.authId, issuer: req.identity?.issuer });
    });
    const res = await request(app).get('/');
    expect([res.status, res.body]).toEqual([200, { authId: 'a1', issuer: 'as-identity' }]);
    expect(() => asIdentity({ authId: 'a1' } as IdentityInput)).toThrow(/subject/);
  });

  it('refuses to sign anybody in behind meter', async () => {
    const pipeline = createPipeline({ sinks: [memorySink()], spool: 'memory', source: 'test' });
    const app = express();
    const signIn = asIdentity({ subject: { kind: 'user', id: 'u1' }, authId: 'a1' });
    let ran = false;
    app.use(signIn, meter({ pipeline, type: 't' }), signIn, () => {
      ran = true;
    });
    const res = await request(app).get('/');
    expect([res.status, res.body.code, ran]).toEqual([500, 'middleware_order', false]);
    await pipeline.close();
  });

  it('moves both clocks forward, and the monotonic one never back', () => {
    const clock = manualClock(5_000);
    clock.advance(1.5);
    expect([clock.now(), clock.monotonic()]).toEqual([6_500, 1_500]);
    clock.set(1_000);
    expect([clock.now(), clock.monotonic()]).toEqual([1_000, 1_500]);
    clock.set(2_000);
    expect([clock.now(), clock.monotonic()]).toEqual([2_000, 2_500]);
    expect(() => clock.advance(-1)).toThrow(RangeError);
    expect(manualClock().now()).toBe(Date.UTC(2026, 0, 1));
  });
});

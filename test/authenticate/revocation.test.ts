import express from 'express';
import request from 'supertest';
import { authenticate, type Clock, type Identity, type Revocations, type Verifier } from 'tollkeeper';
import { describe, expect, it } from 'vitest';

/** Revocations that answer what the test says, by token id. */
function stubRevocations() {
  const stub = {
    version: 0,
    staleAt: Number.POSITIVE_INFINITY,
    asked: 0,
    answers: new Map<string, ReturnType<Revocations['check']>>(),
    readied: 0,
    whenReady: () => {},
    say(tokenId: string, answer: ReturnType<Revocations['check']>) {
      stub.answers.set(tokenId, answer);
      stub.version += 1;
    },
    check({ tokenId }: Identity, _version?: number) {
      stub.asked += 1;
      return stub.answers.get(tokenId as string) ?? 'live';
    },
    async ready() {
      stub.readied += 1;
      stub.whenReady();
    },
    async close() {},
    async revoke() {},
    async changed() {},
  };
  return stub;
}

function appWith(revocations: Revocations | undefined, overrides: Partial<Verifier> = {}, clock?: Clock) {
  const verifier = {
    name: 'letters',
    calls: 0,
    accepts: () => true,
    verify: ({ token = '' }): ReturnType<Verifier['verify']> => {
      verifier.calls += 1;
      return { subject: { kind: 'user', id: 'u' }, authId: 'k', tokenId: token };
    },
    ...overrides,
  };
  const app = express();
  app.use(authenticate({ verifiers: [verifier], revocations, clock }), (req, res) => {
    res.json(req.identity?.tokenId);
  });
  return { verifier, ask: () => request(app).get('/').set('authorization', 'Bearer t1') };
}

describe('authenticate with revocations', () => {
  it('refuses a revoked caller on the very next request, though it is cached', async () => {
    const revocations = stubRevocations();
    const { ask, verifier } = appWith(revocations);
    expect((await ask()).status).toBe(200);
    revocations.say('t1', 'revoked');
    const res = await ask();
    expect([res.status, res.body.code]).toEqual([401, 'invalid_token']);
    expect((await ask()).status).toBe(401);
    expect(verifier.calls).toBe(2);
  });

  it("asks the verifier's own revocations beside its own", async () => {
    const own = stubRevocations();
    const others = stubRevocations();
    const { ask } = appWith(own, { revocations: others });
    expect((await ask()).status).toBe(200);
    others.say('t1', 'revoked');
    expect((await ask()).status).toBe(401);
  });

  it('verifies a changed caller anew', async () => {
    const revocations = stubRevocations();
    const { ask, verifier } = appWith(revocations);
    await ask();
    await ask();
    expect(verifier.calls).toBe(1);
    let once = true;
    revocations.check = () => {
      const answer = once ? 'changed' : 'live';
      once = false;
      return answer;
    };
    revocations.version += 1;
    expect((await ask()).status).toBe(200);
    expect(verifier.calls).toBe(2);
  });

  it('asks nothing while the view is fresh and has nothing new', async () => {
    const revocations = stubRevocations();
    const { ask } = appWith(revocations);
    for (let i = 0; i < 5; i++) await ask();
    expect(revocations.asked).toBe(1);
    revocations.version += 1;
    for (let i = 0; i < 5; i++) await ask();
    expect(revocations.asked).toBe(2);
  });

  it('answers 503 with Retry-After when the view is too old, for known and unknown callers alike', async () => {
    const clock = { wall: 0, mono: 0, now: () => clock.wall, monotonic: () => clock.mono };
    const revocations = stubRevocations();
    revocations.staleAt = 1_000;
    const { ask } = appWith(revocations, {}, clock);
    expect((await ask()).status).toBe(200);
    revocations.check = () => 'unknown';
    clock.mono = 999;
    expect((await ask()).status).toBe(200);
    clock.mono = 1_000;
    const known = await ask();
    expect([known.status, known.body.code]).toEqual([503, 'revocation_stale']);
    expect(Number(known.headers['retry-after'])).toBeGreaterThan(0);
    expect(known.headers['www-authenticate']).toBeUndefined();
    const { ask: askUnknown } = appWith(revocations, {}, clock);
    expect((await askUnknown()).body.code).toBe('revocation_stale');
  });

  it('waits for the first view, then decides', async () => {
    for (const [answer, status] of [
      ['live', 200],
      ['revoked', 401],
      ['unknown', 503],
    ] as const) {
      const revocations = stubRevocations();
      revocations.answers.set('t1', 'unknown');
      revocations.whenReady = () => revocations.answers.set('t1', answer);
      const { ask } = appWith(revocations);
      expect((await ask()).status).toBe(status);
      expect(revocations.readied).toBe(1);
    }
  });

  it('answers 503 when the view cannot be had', async () => {
    const revocations = stubRevocations();
    revocations.answers.set('t1', 'unknown');
    revocations.ready = () => Promise.reject(new Error('down'));
    const { ask } = appWith(revocations);
    expect((await ask()).body.code).toBe('revocation_stale');
  });

  it('does not let a verification that was in flight undo a revocation', async () => {
    const revocations = stubRevocations();
    const decided: (number | undefined)[] = [];
    const { ask } = appWith(revocations, {
      verify: async ({ token = '' }) => {
        // The verifier has read its store; now the token is revoked.
        revocations.say(token, 'revoked');
        return { subject: { kind: 'user', id: 'u' }, authId: 'k', tokenId: token };
      },
    });
    const { check } = revocations;
    revocations.check = (identity, version) => {
      decided.push(version);
      return check(identity, version);
    };
    expect((await ask()).status).toBe(401);
    expect(decided).toEqual([0]);
  });

  it('verifies anew what changed during the verification, and gives up as an outage when it never settles', async () => {
    const revocations = stubRevocations();
    let calls = 0;
    const { ask } = appWith(revocations, {
      verify: async ({ token = '' }) => {
        calls += 1;
        revocations.say(token, calls < 3 ? 'changed' : 'live');
        return { subject: { kind: 'user', id: 'u' }, authId: 'k', tokenId: token };
      },
    });
    expect((await ask()).status).toBe(200);
    expect(calls).toBe(3);
    revocations.say('t1', 'changed');
    revocations.check = () => 'changed';
    const res = await ask();
    expect([res.status, res.body.code]).toEqual([503, 'verifier_unavailable']);
  });

  it('verifies anew what changed while the first view was awaited', async () => {
    const revocations = stubRevocations();
    revocations.answers.set('t1', 'unknown');
    revocations.whenReady = () => revocations.answers.set('t1', 'changed');
    const { ask, verifier } = appWith(revocations);
    const res = await ask();
    expect([res.status, res.body.code]).toEqual([503, 'verifier_unavailable']);
    expect(verifier.calls).toBe(4);
  });

  it.each<[ReturnType<Revocations['check']>, number, string | undefined]>([
    ['revoked', 401, 'invalid_token'],
    ['changed', 503, 'verifier_unavailable'],
    ['unknown', 503, 'revocation_stale'],
    ['live', 200, undefined],
  ])('asks again after a checkRequest that took its time: %s is %s', async (answer, status, code) => {
    const revocations = stubRevocations();
    let proofs = 0;
    const { ask } = appWith(revocations, {
      verify: ({ token = '' }) => ({
        identity: { subject: { kind: 'user', id: 'u' }, authId: 'k', tokenId: token },
        async checkRequest() {
          proofs += 1;
          await new Promise((resolve) => setTimeout(resolve, 5));
          if (proofs % 2 === 0) revocations.say('t1', answer);
        },
      }),
    });
    expect((await ask()).status).toBe(200);
    const res = await ask();
    expect([res.status, res.body.code]).toEqual([status, code]);
    if (status === 503) expect(Number(res.headers['retry-after'])).toBeGreaterThan(0);
    // A proof may be good once: it is not shown again.
    expect(proofs).toBe(2);
  });
});

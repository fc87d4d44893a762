import { Agent, get } from 'node:http';
import {
  authenticate,
  createKeyRing,
  createRevocations,
  jwtVerifier,
  memoryRevocationStore,
  type Verifier,
} from 'tollkeeper';
import { createIssuer } from 'tollkeeper/issuer';
import { manualClock } from 'tollkeeper/testing';
import { describe, expect, it } from 'vitest';
import { serve } from '../support/index.js';
import { AUDIENCE, CLIENTS, ISSUER } from './issuer-fixture.js';

const REQUESTS = 10_000;
const ROTATIONS = 10;
const TTL = 3_600;

/** Seconds between a withdrawal and its effect at a verifier that only fetches the key set: `maxAgeSeconds`. */
const REMOTE_BOUND = 600;

async function setup() {
  const clock = manualClock();
  const revocations = createRevocations({ store: memoryRevocationStore(), clock });
  const keyRing = await createKeyRing({ clock, keepSeconds: TTL + 65, revocations });
  const issuer = createIssuer({
    issuer: ISSUER,
    audience: AUDIENCE,
    keyRing,
    clients: CLIENTS,
    maxTtlSeconds: TTL,
    revocations,
    clock,
  });
  const issued = await serve(issuer.handler());
  const rules = { issuer: ISSUER, audience: AUDIENCE, algorithms: ['ES256'], clock } as const;
  const jwksUri = `${issued.url}/.well-known/jwks.json`;
  const agent = new Agent({ keepAlive: true });
  const api = async (verifier: Verifier, denied?: typeof revocations) => {
    const gate = authenticate({
      verifiers: [verifier],
      clock,
      ...(denied === undefined ? {} : { revocations: denied }),
    });
    const served = await serve((req, res) => gate(req, res, () => res.end()));
    const call = (token: string) =>
      new Promise<number | undefined>((resolve, reject) => {
        get(served.url, { agent, headers: { authorization: `Bearer ${token}` } }, (res) => {
          res.resume();
          res.on('end', () => resolve(res.statusCode));
        }).on('error', reject);
      });
    return { call, close: served.close };
  };
  const apis = {
    /** Another process: it sees the published key set, and keeps it for ten minutes. */
    remote: await api(jwtVerifier({ ...rules, keys: { jwksUri } })),
    /** Another process that also hears of revocations. */
    informed: await api(jwtVerifier({ ...rules, keys: { jwksUri } }), revocations),
    /** The issuer's own process. */
    inner: await api(jwtVerifier({ ...rules, keys: { keyRing } })),
  };
  return {
    clock,
    keyRing,
    apis,
    issue: async () =>
      (await issuer.issueServiceToken({ tenantId: 'acme', clientId: 'ci', scopes: [], ttlSeconds: TTL })) as {
        token: string;
        expiresAt: number;
      },
    close: async () => {
      agent.destroy();
      for (const { close } of [...Object.values(apis), issued]) await close();
      await issuer.close();
      await keyRing.close();
    },
  };
}

describe('keys that rotate under load', () => {
  it(`fail not one of ${REQUESTS} requests with tokens of every age, while ${ROTATIONS} keys follow each other`, {
    timeout: 120_000,
  }, async () => {
    const { clock, keyRing, apis, issue, close } = await setup();
    const perRotation = Math.ceil(REQUESTS / ROTATIONS);
    const tokens: { token: string; expiresAt: number }[] = [];
    const kids = new Set<string>();
    const failures: unknown[] = [];
    const ages: number[] = [];
    let sent = 0;
    let staged: string | undefined;
    let activated = 0;
    // A rotation every 20 minutes of the fake clock: the oldest tokens are three keys old.
    const step = 1_200 / perRotation;
    const random = lcg(7);
    while (sent < REQUESTS) {
      if (sent % perRotation === 0) staged = (await keyRing.stage()).kid;
      const now = clock.now() / 1_000;
      const due = keyRing.keys().find(({ kid }) => kid === staged)?.activatableAt;
      if (staged !== undefined && due !== undefined && now >= due) {
        await keyRing.activate(staged);
        activated += 1;
        staged = undefined;
      }
      for (const { kid, retirableAt } of keyRing.keys())
        if (retirableAt !== undefined && now >= retirableAt) await keyRing.retire(kid);
      if (sent % 5 === 0) tokens.push(await issue());
      kids.add(keyRing.signer().kid);
      while ((tokens[0]?.expiresAt ?? 0) <= now) tokens.shift();
      // The newest and the oldest more often than the rest.
      const at = [0, tokens.length - 1, Math.floor(random() * tokens.length)][sent % 3] as number;
      const { token, expiresAt } = tokens[at] as { token: string; expiresAt: number };
      ages.push(TTL - (expiresAt - now));
      const api = sent % 2 === 0 ? apis.remote : apis.inner;
      const status = await api.call(token);
      if (status !== 200) failures.push({ sent, status });
      sent += 1;
      clock.advance(step);
    }
    expect(failures).toEqual([]);
    expect(activated).toBe(ROTATIONS);
    expect(kids.size).toBe(ROTATIONS + 1);
    expect(keyRing.keys().filter(({ state }) => state === 'retired').length).toBeGreaterThan(ROTATIONS / 2);
    expect(Math.min(...ages)).toBeLessThan(10);
    expect(Math.max(...ages)).toBeGreaterThan(TTL - 10);
    await close();
  });

  it('accept nothing of a key that was revoked: at once where revocations are heard of, after the bound elsewhere', async () => {
    const { clock, keyRing, apis, issue, close } = await setup();
    const honest = await issue();
    const stolen = keyRing.signer();
    /** Whoever has the key dates tokens at will. */
    const forge = async (iat: number) => {
      const claims = {
        iss: ISSUER,
        aud: AUDIENCE,
        sub: 'ci',
        client_id: 'ci',
        jti: crypto.randomUUID(),
        iat,
        exp: iat + 86_400,
      };
      const input = [{ alg: stolen.alg, kid: stolen.kid, typ: 'at+jwt' }, claims]
        .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
        .join('.');
      return `${input}.${Buffer.from(await stolen.sign(Buffer.from(input))).toString('base64url')}`;
    };
    const now = () => Math.floor(clock.now() / 1_000);
    const early = await forge(now());
    for (const { call } of Object.values(apis)) {
      expect(await call(early)).toBe(200);
      expect(await call(honest.token)).toBe(200);
    }
    await keyRing.stage();
    await keyRing.revoke(stolen.kid);
    const fresh = await issue();

    for (const { call } of [apis.informed, apis.inner]) {
      for (const token of [early, honest.token, await forge(now()), await forge(now() - 50)])
        expect(await call(token)).toBe(401);
    }
    clock.advance(100);
    for (const { call } of [apis.informed, apis.inner]) expect(await call(await forge(now()))).toBe(401);
    clock.advance(REMOTE_BOUND - 100);
    let accepted = 0;
    for (let round = 0; round < 20; round++) {
      for (const token of [early, honest.token, await forge(now()), await forge(now() - round)]) {
        for (const { call } of Object.values(apis)) if ((await call(token)) !== 401) accepted += 1;
      }
      clock.advance(7);
    }
    expect(accepted).toBe(0);
    for (const { call } of Object.values(apis)) expect(await call(fresh.token)).toBe(200);
    await close();
  });
});

/** Numbers from 0 to 1 that are the same in every run. */
function lcg(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

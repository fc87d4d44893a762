import express from 'express';
import request from 'supertest';
import {
  authenticate,
  createTokenRegistry,
  memoryTokenStore,
  opaqueTokenVerifier,
  type StaticToken,
  staticTokenVerifier,
} from 'tollkeeper';
import { describe, expect, it } from 'vitest';
import { pepper } from '../tokens/registry-app.js';

const shared = 'legacy-shared-token-7f3a';
const identity = { subject: { kind: 'organization', id: 'everybody' }, authId: 'legacy' } as const;

function appWith(tokens: readonly StaticToken[], before: Parameters<typeof authenticate>[0]['verifiers'] = []) {
  const app = express();
  app.use(authenticate({ verifiers: [...before, staticTokenVerifier({ tokens })] }), (req, res) => {
    res.json(req.identity);
  });
  return (token: string) => request(app).get('/').set('authorization', `Bearer ${token}`);
}

describe('staticTokenVerifier', () => {
  it('lets a configured token in, with a copy of its identity that is completed', async () => {
    const given = { ...identity, scopes: ['a:read'], groups: ['2', '1'] };
    const ask = appWith([{ token: shared, identity: given }]);
    given.groups.push('admin');
    given.scopes.push('a:write');
    const res = await ask(shared);
    expect([res.status, res.body]).toEqual([
      200,
      { ...identity, issuer: 'static', verifier: 'static', scopes: ['a:read'], groups: ['2', '1'], claims: {} },
    ]);
    expect(Object.isFrozen(given)).toBe(false);
  });

  it.each([
    'legacy-shared-token-7f3b',
    'legacy-shared-token-7f3',
    'legacy-shared-token-7f3aa',
    'LEGACY-SHARED-TOKEN-7F3A',
    'x',
  ])('refuses %s', async (token) => {
    const res = await appWith([{ token: shared, identity }])(token);
    expect([res.status, res.body.code]).toEqual([401, 'invalid_token']);
    expect(JSON.stringify([res.body, res.headers])).not.toContain(shared);
  });

  it('finds every entry, wherever it stands', async () => {
    const tokens = Array.from({ length: 5 }, (_, n) => ({
      token: `${shared}-${n}`,
      identity: { ...identity, authId: `k${n}` },
    }));
    const ask = appWith(tokens);
    for (const [n, { token }] of tokens.entries()) expect((await ask(token)).body.authId).toBe(`k${n}`);
  });

  it('works beside other verifiers, in any order', async () => {
    const registry = createTokenRegistry({ store: memoryTokenStore(), peppers: { current: pepper }, prefix: 'acme' });
    const client = await registry.createClient({ name: 'c' });
    const { token } = await registry.issueToken({ clientId: client.id, scopes: [] });
    const ask = appWith([{ token: shared, identity }], [opaqueTokenVerifier({ registry })]);
    expect([(await ask(shared)).status, (await ask(token)).status, (await ask('nonsense')).status]).toEqual([
      200, 200, 401,
    ]);
  });

  it('refuses wrong options with all problems at once, and without any token', () => {
    const secret = 'legacy with a space, quite long';
    const make = () =>
      staticTokenVerifier({
        tokens: [
          { token: 'too-short', identity },
          { token: secret, identity },
          { token: shared, identity: { subject: { kind: 'robot', id: '' } } },
          { token: shared, identity, idnetity: 1 },
          null,
        ] as never,
        name: '',
        toknes: [],
      } as never);
    expect(make).toThrow(TypeError);
    expect(make).toThrow(
      /unknown option "toknes" \(did you mean "tokens"\?\).*name must be.*tokens\[0\]\.token is too short.*tokens\[1\]\.token has characters.*tokens\[2\]: identity: authId must.*unknown option "tokens\[3\]\.idnetity".*tokens\[4\] must be an object/,
    );
    expect(make).not.toThrow(new RegExp(`${secret}|${shared}|too-short`));
    const twice = () =>
      staticTokenVerifier({
        tokens: [
          { token: shared, identity },
          { token: shared, identity },
        ],
      });
    expect(twice).toThrow(/tokens\[1\]\.token is that of another entry/);
    for (const tokens of [[], undefined, {}])
      expect(() => staticTokenVerifier({ tokens: tokens as never })).toThrow(/at least one/);
  });

  it('refuses what it did not accept, if it is asked all the same', async () => {
    const verifier = staticTokenVerifier({ tokens: [{ token: shared, identity }] });
    const req = {} as never;
    expect(verifier.accepts({ req, scheme: 'dpop', token: shared })).toBe(false);
    expect(verifier.accepts({ req, scheme: 'none' })).toBe(false);
    expect(verifier.accepts({ req, scheme: 'custom', token: shared })).toBe(true);
    expect(() => verifier.verify({ req, scheme: 'bearer', token: 'x' }, new AbortController().signal)).toThrow();
  });
});

import type { IncomingMessage } from 'node:http';
import {
  AccessError,
  introspectionVerifier,
  jwtVerifier,
  type Presented,
  type Verifier,
  workloadVerifier,
} from 'tollkeeper';
import { testIssuer, type VerifierUnderTest, verifierContract } from 'tollkeeper/testing';
import { describe, expect, it } from 'vitest';
import { signed, testKey } from '../support/identity-provider.js';
import { serve } from '../support/serve.js';

const key = testKey('k');
const exp = Math.floor(Date.now() / 1_000) + 600;
const presented = (token: string, scheme: Presented['scheme'] = 'bearer'): Presented => ({
  req: { headers: {} } as IncomingMessage,
  scheme,
  token,
});
const others = [
  presented('opaque'),
  presented('a.b.c'),
  { req: { headers: {} } as IncomingMessage, scheme: 'none' as const },
];

async function jwt(): Promise<VerifierUnderTest> {
  const issuer = await testIssuer();
  return {
    verifier: issuer.verifier(),
    accepted: presented(issuer.token()),
    refused: [presented(issuer.token({ exp: 1 })), presented((await testIssuer()).token())],
    foreign: [...others, presented(issuer.token(), 'dpop'), presented(issuer.token({ iss: 'https://other.test' }))],
  };
}

async function workload(): Promise<VerifierUnderTest> {
  const claims = { iss: 'https://ci.test', aud: 'a', sub: 's', iat: exp - 600, exp };
  return {
    verifier: workloadVerifier({
      issuers: [{ issuer: claims.iss, kind: 'oidc', keys: { jwks: { keys: [key.jwk] } } }],
      policies: [
        {
          id: 'p',
          issuer: claims.iss,
          audience: 'a',
          match: { sub: 's' },
          grant: { tenantId: 't', clientId: 'c', scopes: [] },
        },
      ],
    }),
    accepted: presented(signed(key, claims)),
    refused: [presented(signed(key, { ...claims, sub: 'x' })), presented(signed(testKey('k'), claims))],
    foreign: others,
  };
}

async function introspection(): Promise<VerifierUnderTest> {
  const served = await serve(async (req, res) => {
    let body = '';
    for await (const chunk of req) body += chunk;
    const active = new URLSearchParams(body).get('token') === 'a-good-token-of-theirs';
    res.end(JSON.stringify(active ? { active, sub: 'u', client_id: 'c' } : { active }));
  });
  return {
    verifier: introspectionVerifier({ endpoint: served.url, credentials: { clientId: 'a', clientSecret: 'b' } }),
    accepted: presented('a-good-token-of-theirs'),
    refused: [presented('a-bad-token-of-theirs')],
    foreign: [],
    end: () => served.close(),
  };
}

describe.each([
  ['jwtVerifier', jwt],
  ['workloadVerifier', workload],
  ['introspectionVerifier', introspection],
])('%s', (_name, make) => {
  for (const { name, run } of verifierContract(make)) it(name, run);
});

describe("a verifier of one's own", () => {
  const own =
    (changes: Partial<Verifier>): (() => Promise<VerifierUnderTest>) =>
    async () => ({
      verifier: {
        name: 'own',
        accepts: ({ token }) => token?.startsWith('own-') === true,
        verify({ token }) {
          if (token !== 'own-0123456789abcdef') throw new AccessError('invalid_token', { reason: 'unknown' });
          return { subject: { kind: 'user', id: 'u' }, authId: 'u' };
        },
        ...changes,
      },
      accepted: presented('own-0123456789abcdef'),
      refused: [presented('own-fedcba9876543210')],
      foreign: others,
    });

  for (const { name, run } of verifierContract(own({}))) it(name, run);

  let calls = 0;
  it.each<[string, Partial<Verifier>]>([
    ['has no name', { name: '' }],
    ['takes everything', { accepts: () => true }],
    ['answers later', { accepts: (async () => true) as unknown as Verifier['accepts'] }],
    ['lets everybody in', { verify: () => ({ subject: { kind: 'user', id: 'u' }, authId: 'u' }) }],
    [
      'says something of the token',
      {
        verify({ token }) {
          if (token !== 'own-0123456789abcdef') throw new AccessError('invalid_token', { reason: `no ${token}` });
          return { subject: { kind: 'user', id: 'u' }, authId: 'u' };
        },
      },
    ],
    [
      'throws what is no AccessError',
      {
        verify({ token }) {
          if (token !== 'own-0123456789abcdef') throw new Error('unknown');
          return { subject: { kind: 'user', id: 'u' }, authId: 'u' };
        },
      },
    ],
    [
      'calls a bad credential an outage',
      {
        verify({ token }) {
          if (token !== 'own-0123456789abcdef') throw new AccessError('verifier_unavailable');
          return { subject: { kind: 'user', id: 'u' }, authId: 'u' };
        },
      },
    ],
    [
      'looks at the start only',
      {
        verify({ token }) {
          if (!token?.startsWith('own-012345')) throw new AccessError('invalid_token');
          return { subject: { kind: 'user', id: 'u' }, authId: 'u' };
        },
      },
    ],
    [
      'gives another id each time',
      {
        verify({ token }) {
          if (token !== 'own-0123456789abcdef') throw new AccessError('invalid_token');
          calls += 1;
          return { subject: { kind: 'user', id: 'u' }, authId: `u-${calls}` };
        },
      },
    ],
    [
      'counts in milliseconds',
      {
        verify({ token }) {
          if (token !== 'own-0123456789abcdef') throw new AccessError('invalid_token');
          return { subject: { kind: 'user', id: 'u' }, authId: 'u', expiresAt: Date.now() + 60_000 };
        },
      },
    ],
  ])('does not pass when it %s', async (_name, changes) => {
    const outcomes = await Promise.allSettled(verifierContract(own(changes)).map(({ run }) => run()));
    expect(outcomes.filter(({ status }) => status === 'rejected').length).toBeGreaterThan(0);
  });
});

it('a JWT verifier passes with fetched keys too', async () => {
  const served = await serve((_req, res) => void res.end(JSON.stringify({ keys: [key.jwk] })));
  const make = async (): Promise<VerifierUnderTest> => ({
    verifier: jwtVerifier({
      issuer: 'https://a',
      audience: null,
      algorithms: ['ES256'],
      keys: { jwksUri: `${served.url}/` },
    }),
    accepted: presented(signed(key, { iss: 'https://a', sub: 's', exp })),
    refused: [presented(signed(testKey('other'), { iss: 'https://a', sub: 's', exp }))],
    foreign: others,
  });
  for (const { run } of verifierContract(make)) await run();
  await served.close();
});

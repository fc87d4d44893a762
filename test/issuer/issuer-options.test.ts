import { generateKeyPairSync } from 'node:crypto';
import type { JWK } from 'jose';
import { createKeyRing, type KeyRing } from 'tollkeeper';
import { createIssuer, hashClientSecret, type IssuerOptions } from 'tollkeeper/issuer';
import { manualClock } from 'tollkeeper/testing';
import { beforeAll, describe, expect, it } from 'vitest';
import { AUDIENCE, CLIENT_JWK, ISSUER, SECRET } from './issuer-fixture.js';

let keyRing: KeyRing;
beforeAll(async () => {
  keyRing = await createKeyRing();
});

const problemsOf = (options: Partial<Record<keyof IssuerOptions, unknown>>): string => {
  try {
    createIssuer({
      issuer: ISSUER,
      audience: AUDIENCE,
      keyRing,
      clients: [],
      maxTtlSeconds: 60,
      ...options,
    } as IssuerOptions);
  } catch (error) {
    expect(error).toBeInstanceOf(TypeError);
    return (error as Error).message;
  }
  return '';
};

const client = (change: object = {}) => ({
  id: 'ci',
  scopes: ['repo:read'],
  tenant: 'acme',
  unconstrainedResources: true,
  ...change,
});

describe('createIssuer', () => {
  it('lists every problem of every client at once', () => {
    const message = problemsOf({
      reservedClientIds: ['admin', 'web'],
      clients: [
        client(),
        client(),
        client({ id: 'admin' }),
        client({ id: 'web', scopes: ['repo:any', '*', 'a b'] }),
        client({ id: 'lost', tenant: undefined }),
        client({ id: 'torn', crossTenant: true, resources: [] }),
        client({ id: 'typo', scope: [] }),
      ],
    });
    for (const part of [
      'client "ci" is configured twice',
      'client "admin" has a reserved id',
      'client "web" has a reserved id',
      'client "web": the scope "repo:any" is a wildcard',
      'client "web": the scope "*" is a wildcard',
      'client "web": a scope must be visible ASCII',
      'client "lost" needs either a tenant or crossTenant: true',
      'client "torn" needs either a tenant or crossTenant: true',
      'client "torn" has both resources and unconstrainedResources',
      'unknown option "clients[6].scope" (did you mean "scopes"?)',
    ]) {
      expect(message).toContain(part);
    }
  });

  const rsa = (bits: number) =>
    generateKeyPairSync('rsa', { modulusLength: bits }).publicKey.export({ format: 'jwk' }) as JWK;
  it.each<[object, string]>([
    [{ id: '' }, 'clients[0].id must be'],
    [{ id: 'a:b' }, 'clients[0].id must be'],
    [{ id: 'a b' }, 'clients[0].id must be'],
    [{ id: 5 }, 'clients[0].id must be'],
    [{ id: 'x'.repeat(201) }, 'clients[0].id must be'],
    [{ name: '' }, 'name must be a string'],
    [{ tenant: '' }, 'tenant must be a string'],
    [{ tenant: 5 }, 'tenant must be a string'],
    [{ tenant: undefined, crossTenant: 'yes' }, 'crossTenant must be one of true'],
    [{ unconstrainedResources: 1 }, 'unconstrainedResources must be one of true'],
    [{ scopes: undefined }, 'scopes must be an array'],
    [{ scopes: 'repo:read' }, 'scopes must be an array'],
    [{ scopes: [5] }, 'a scope must be visible ASCII'],
    [{ scopes: ['any'] }, 'is a wildcard'],
    [{ unconstrainedResources: undefined, resources: 'A' }, 'resources must be an array'],
    [{ unconstrainedResources: undefined, resources: [{ type: 'a' }] }, 'resources must be an array'],
    [{ unconstrainedResources: undefined, resources: [null] }, 'resources must be an array'],
    [{ ttlSeconds: 0 }, 'ttlSeconds must be a number from 1'],
    [{ secretHashes: [] }, 'secretHashes must be an array of one hash, or of two'],
    [
      { secretHashes: [1, 2, 3].map(() => hashClientSecret(SECRET)) },
      'secretHashes must be an array of one hash, or of two',
    ],
    [{ secretHashes: SECRET }, 'secretHashes must be an array'],
    [{ secretHashes: [SECRET] }, 'secretHashes must come from hashClientSecret'],
    [{ jwks: {} }, 'jwks must be a JWK set'],
    [{ jwks: { keys: [] } }, 'jwks must be a JWK set'],
    [{ jwks: { keys: [rsa(1024)] } }, 'fewer than 2048 bits'],
    [{ jwks: { keys: [{ kty: 'oct', k: 'AAAA' }] } }, 'shared secret'],
    [{ introspects: 'everything' }, 'introspects must be one of'],
  ])('refuses a client with %j, and quotes no secret', (change, problem) => {
    const message = problemsOf({ clients: [client(change)] });
    expect(message).toContain(problem);
    expect(message).not.toContain(SECRET);
  });

  it.each<[string, object, string]>([
    ['no issuer', { issuer: undefined }, 'issuer must be an https URL'],
    ['plain http', { issuer: 'http://issuer.example' }, 'issuer must be an https URL'],
    ['a query', { issuer: `${ISSUER}?a` }, 'issuer must be an https URL'],
    ['a fragment', { issuer: `${ISSUER}#a` }, 'issuer must be an https URL'],
    ['no audience', { audience: undefined }, 'audience must be'],
    ['an empty list of audiences', { audience: [] }, 'audience must be'],
    ['no key ring', { keyRing: undefined }, 'keyRing must be a key ring'],
    ['a promised key ring', { keyRing: Promise.resolve() }, 'await it'],
    ['no maximum', { maxTtlSeconds: undefined }, 'maxTtlSeconds must be an integer from 1'],
    ['a maximum of 0', { maxTtlSeconds: 0 }, 'maxTtlSeconds must be an integer from 1'],
    ['no clients', { clients: undefined }, 'clients must be an array'],
    ['no ids', { reservedClientIds: [5] }, 'reservedClientIds must be'],
    ['no revocations', { revocations: {} }, 'revocations must come from'],
    ['no replay store', { replayStore: {} }, 'replayStore must have take'],
    ['no registry', { registry: {} }, 'registry must come from'],
    ['an empty resource type', { resourceType: '' }, 'resourceType must be'],
    ['a realm with a quote', { realm: '"' }, 'realm must be'],
    ['no function', { onReject: 1, fetch: 1 }, 'fetch must be a function; onReject must be a function'],
    ['policies without issuers', { workloadPolicies: [] }, 'need each other'],
    ['issuers without policies', { workloadIssuers: [] }, 'need each other'],
    ['a claim that means something else', { map: { tenant: 'sub' } }, 'map.tenant must be a claim'],
    ['a claim of the prototype', { map: { tenant: '__proto__' } }, 'map.tenant must be a claim'],
    ['a JSON Pointer for a claim', { map: { scopes: '/a/b' } }, 'map.scopes must be a claim'],
    ['a claim without a name', { map: { resources: '' } }, 'map.resources must be a claim'],
    ['several names for a claim', { map: { tenant: ['a', 'b'] } }, 'map.tenant must be a claim'],
    ['one claim for two fields', { map: { tenant: 'scope' } }, 'map gives two fields the same claim'],
    ['a field that cannot be renamed', { map: { subject: 'uid' } }, 'unknown option "map.subject"'],
    ['a typo', { maxTtlSecond: 5 }, 'did you mean "maxTtlSeconds"'],
  ])('refuses %s', (_, change, problem) => {
    expect(problemsOf(change)).toContain(problem);
  });

  it('keeps keys until the longest token has ended, whatever the ring was told', async () => {
    const clock = manualClock();
    const ring = await createKeyRing({ publishSeconds: 0, keepSeconds: 10, clock });
    const old = ring.signer().kid;
    expect(problemsOf({ keyRing: ring, maxTtlSeconds: 3_600 })).toBe('');
    expect(ring.keepSeconds).toBe(3_665);
    expect(problemsOf({ keyRing: ring, maxTtlSeconds: 60 })).toBe('');
    expect(ring.keepSeconds).toBe(3_665);
    await ring.activate((await ring.stage()).kid);
    clock.advance(3_664);
    await expect(ring.retire(old)).rejects.toMatchObject({ code: 'conflict' });
    clock.advance(1);
    await ring.retire(old);
  });

  const workloadIssuers = [{ issuer: 'https://k8s.example', kind: 'oidc', keys: { jwks: { keys: [CLIENT_JWK] } } }];
  const policy = (grant: object) => ({
    id: 'p',
    issuer: 'https://k8s.example',
    audience: ISSUER,
    match: { sub: 'w' },
    grant: { tenantId: 'acme', clientId: 'ci', scopes: ['repo:read'], ...grant },
  });
  it.each<[object, string]>([
    [{ clientId: 'a b' }, 'grant.clientId cannot be a client id'],
    [{ clientId: 'admin' }, 'grants a reserved client id'],
    [{ tenantId: 'globex' }, 'another tenant than its own'],
    [{ scopes: ['repo:write'] }, 'scopes that it has not'],
    [{ scopes: ['repo:any'] }, 'without wildcards'],
    [{ clientId: 'pinned' }, 'resources that it has not'],
    [{ clientId: 'pinned', resources: [{ type: 'repository', id: 'B' }] }, 'resources that it has not'],
    [{ clientId: 'naming' }, 'does not name any'],
  ])('refuses a policy that grants %j', (grant, problem) => {
    const options = {
      clients: [
        client(),
        client({ id: 'pinned', unconstrainedResources: undefined, resources: [{ type: 'repository', id: 'A' }] }),
        client({ id: 'naming', unconstrainedResources: undefined }),
      ],
      reservedClientIds: ['admin'],
      workloadIssuers,
      workloadPolicies: [policy(grant)],
    };
    expect(problemsOf(options)).toContain(problem);
  });

  it('takes a policy that stays within what the client has', () => {
    const own = [{ type: 'repository', id: 'A' }];
    expect(
      problemsOf({
        clients: [
          client({ id: 'pinned', unconstrainedResources: undefined, resources: own }),
          client({ id: 'naming', unconstrainedResources: undefined }),
        ],
        workloadIssuers,
        workloadPolicies: ['pinned', 'naming'].map((clientId) => ({
          ...policy({ clientId, resources: own }),
          id: clientId,
        })),
      }),
    ).toBe('');
  });
});

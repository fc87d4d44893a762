import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { type WorkloadIssuer, type WorkloadPolicy, workloadVerifier } from 'tollkeeper';
import { type ManualClock, manualClock } from 'tollkeeper/testing';
import { afterEach, describe, expect, it } from 'vitest';
import { type GuardedApi, guardedApi } from '../support/guarded-api.js';
import { identityProvider, signed, testKey } from '../support/identity-provider.js';
import { tempFolder } from '../support/temp-folder.js';

const cluster = testKey('cluster', 'RS256');
const github = testKey('github', 'RS256');
const other = testKey('other', 'ES256');
const AUDIENCE = 'https://api.example';
const NOW = Date.UTC(2026, 10, 1, 12) / 1_000;

const closing: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

/** The claims of a projected service-account token, as a cluster of version 1.33 writes them. */
const kubernetes = () => ({
  aud: [AUDIENCE],
  exp: NOW + 3_607,
  iat: NOW,
  iss: 'https://kubernetes.default.svc.cluster.local',
  jti: 'ea28ed49-2e11-4280-9ec5-bc3d1d84661a',
  'kubernetes.io': {
    namespace: 'kura',
    node: { name: '127.0.0.1', uid: '58456cb0-dd00-45ed-b797-5578fdceaced' },
    pod: { name: 'kura-69cbfb9798-jv9gn', uid: '778a530c-b3f4-47c0-9cd5-ab018fb64f33' },
    serviceaccount: { name: 'kura-worker', uid: 'a087d5a0-e1dd-43ec-93ac-f13d89cd13af' },
    warnafter: NOW + 3_600,
  },
  nbf: NOW,
  sub: 'system:serviceaccount:kura:kura-worker',
});

/** The claims of a GitHub Actions token: ids are strings. */
const actions = () => ({
  jti: '6f3a2c1e-0c1f-4f3c-9a51-1f2f7b1f6f10',
  sub: 'repo:octo-org/octo-repo:environment:prod',
  aud: AUDIENCE,
  ref: 'refs/heads/main',
  sha: '2c6b1d6f0e8d4a1c9e5d7f3b2a190c8d7e6f5a4b',
  repository: 'octo-org/octo-repo',
  repository_owner: 'octo-org',
  repository_owner_id: '65',
  run_id: '1234567890',
  run_number: '10',
  run_attempt: '2',
  repository_visibility: 'private',
  repository_id: '74',
  actor_id: '12',
  actor: 'octocat',
  workflow: 'deploy',
  head_ref: '',
  base_ref: '',
  event_name: 'workflow_dispatch',
  environment: 'prod',
  ref_protected: 'true',
  ref_type: 'branch',
  workflow_ref: 'octo-org/octo-repo/.github/workflows/deploy.yml@refs/heads/main',
  workflow_sha: '2c6b1d6f0e8d4a1c9e5d7f3b2a190c8d7e6f5a4b',
  job_workflow_ref: 'octo-org/shared/.github/workflows/deploy.yml@refs/heads/main',
  job_workflow_sha: '9a7c1d6f0e8d4a1c9e5d7f3b2a190c8d7e6f5a4b',
  runner_environment: 'github-hosted',
  iss: 'https://token.actions.githubusercontent.com',
  nbf: NOW - 300,
  exp: NOW + 600,
  iat: NOW,
});

const grant = (changes: object = {}) => ({
  tenantId: 't-1',
  clientId: 'worker',
  scopes: ['cache:read', 'cache:write'],
  maxTtlSeconds: 600,
  ...changes,
});

const ISSUERS: WorkloadIssuer[] = [
  { issuer: kubernetes().iss, kind: 'kubernetes', keys: { jwks: { keys: [cluster.jwk] } } },
  { issuer: actions().iss, kind: 'github-actions', keys: { jwks: { keys: [github.jwk] } } },
];
const CLUSTER_POLICY: WorkloadPolicy = {
  id: 'kura',
  issuer: kubernetes().iss,
  audience: AUDIENCE,
  match: {
    sub: 'system:serviceaccount:kura:kura-worker',
    '/kubernetes.io/serviceaccount/uid': 'a087d5a0-e1dd-43ec-93ac-f13d89cd13af',
  },
  grant: grant({ resources: [{ type: 'cache', id: 'c-1' }] }),
  maxSubjectLifetimeSeconds: 7_200,
};
const ACTIONS_POLICY: WorkloadPolicy = {
  id: 'deploy',
  issuer: actions().iss,
  audience: AUDIENCE,
  match: {
    repository_id: '74',
    repository_owner_id: '65',
    ref: { in: ['refs/heads/main', 'refs/heads/release'] },
    job_workflow_ref: { prefix: 'octo-org/shared/.github/workflows/deploy.yml@' },
    event_name: 'workflow_dispatch',
    environment: { glob: 'pro*' },
  },
  grant: grant({ clientId: 'ci' }),
  maxSubjectAgeSeconds: 300,
};

interface Setup {
  readonly api: GuardedApi;
  readonly clock: ManualClock;
}

async function setup(
  policies: readonly unknown[] = [CLUSTER_POLICY, ACTIONS_POLICY],
  issuers: readonly WorkloadIssuer[] = ISSUERS,
): Promise<Setup> {
  const clock = manualClock(NOW * 1_000);
  const verifier = workloadVerifier({ issuers, policies: policies as WorkloadPolicy[], clock });
  const api = await guardedApi({ verifiers: [verifier], clock });
  closing.push(
    () => api.close(),
    () => verifier.close(),
  );
  return { api, clock };
}

/** A copy with one member, named by a path of names, set; undefined removes it. */
function changed(claims: object, path: string, value: unknown): Record<string, unknown> {
  const copy = structuredClone(claims) as Record<string, unknown>;
  const steps = path.split(' ');
  let target = copy;
  for (const step of steps.slice(0, -1)) target = target[step] as Record<string, unknown>;
  target[steps.at(-1) as string] = value;
  return copy;
}

describe('a Kubernetes workload', () => {
  it('becomes what its policy grants', async () => {
    const { api } = await setup();
    const { status, identity } = await api.get(signed(cluster, kubernetes(), { typ: undefined }));
    expect(status).toBe(200);
    expect(identity).toMatchObject({
      subject: { kind: 'workload', id: 'system:serviceaccount:kura:kura-worker' },
      issuer: kubernetes().iss,
      authId: 'worker',
      tenant: 't-1',
      clientId: 'worker',
      scopes: ['cache:read', 'cache:write'],
      resources: [{ type: 'cache', id: 'c-1' }],
      tokenId: kubernetes().jti,
      keyId: 'cluster',
      issuedAt: NOW,
      expiresAt: NOW + 3_607,
      verifier: 'workload',
      claims: kubernetes(),
    });
  });

  const wrong = (path: string, values: readonly unknown[]) => values.map((value): [string, unknown] => [path, value]);
  it.each<[string, unknown]>([
    ...wrong('iss', [undefined, 'https://evil.example', 7, [kubernetes().iss]]),
    ...wrong('aud', [
      undefined,
      [],
      ['other'],
      [AUDIENCE, 'other'],
      ['other', AUDIENCE],
      'other',
      7,
      [AUDIENCE, AUDIENCE],
      null,
    ]),
    ...wrong('exp', [undefined, NOW - 60, '9999999999', NOW + 7_201, NOW + 31_536_000, null]),
    ...wrong('iat', [undefined, NOW + 60, NOW - 7_200, String(NOW), null]),
    ...wrong('nbf', [undefined, NOW + 60, String(NOW), null]),
    ...wrong('jti', [7, '', null, {}]),
    ...wrong('sub', [
      undefined,
      'system:serviceaccount:kura:default',
      'system:serviceaccount:other:kura-worker',
      'system:serviceaccount:kura:kura-worker2',
      'system:serviceaccount:kura',
      'system:serviceaccount::kura-worker',
      'system:node:kura-worker',
      ['system:serviceaccount:kura:kura-worker'],
      7,
      null,
    ]),
    ...wrong('kubernetes.io', [undefined, null, [], 'x', {}]),
    ...wrong('kubernetes.io namespace', [undefined, 'other', 7, null]),
    ...wrong('kubernetes.io serviceaccount', [undefined, null, 'x', []]),
    ...wrong('kubernetes.io serviceaccount name', [undefined, 'default', 7]),
    // Deleted and created anew under the same name.
    ...wrong('kubernetes.io serviceaccount uid', [undefined, 'b187d5a0-e1dd-43ec-93ac-f13d89cd13af', '', 7]),
    ...wrong('kubernetes.io pod', [undefined, null, {}, 'x', { name: 'x' }, { name: 1, uid: 'x' }]),
    ...wrong('kubernetes.io node', [null, 'x', {}, { name: 'x', uid: 1 }]),
    ...wrong('cnf', [{ jkt: 'x' }]),
  ])('is refused when %s is %j', async (path, value) => {
    const { api } = await setup();
    const answer = await api.get(signed(cluster, changed(kubernetes(), path, value)));
    expect(answer).toMatchObject({ status: 401, code: 'invalid_token' });
    expect(api.handled).toBe(0);
  });

  it('is refused with a key of another platform, and with an unknown one', async () => {
    const { api } = await setup();
    expect((await api.get(signed(github, kubernetes()))).status).toBe(401);
    expect((await api.get(signed({ ...other, kid: 'cluster' }, kubernetes()))).status).toBe(401);
  });

  it('may come without a pod only where that is said', async () => {
    const { api } = await setup([{ ...CLUSTER_POLICY, allowWithoutPod: true }]);
    expect((await api.get(signed(cluster, changed(kubernetes(), 'kubernetes.io pod', undefined)))).status).toBe(200);
    expect((await api.get(signed(cluster, changed(kubernetes(), 'kubernetes.io pod', {})))).status).toBe(401);
  });

  it('may be pinned by namespace and name, and may have no node and no jti', async () => {
    const match = {
      '/kubernetes.io/namespace': 'kura',
      '/kubernetes.io/serviceaccount/name': { in: ['kura-worker', 'x'] },
    };
    const { api } = await setup([{ ...CLUSTER_POLICY, match }]);
    const claims = changed(changed(kubernetes(), 'kubernetes.io node', undefined), 'jti', undefined);
    const { status, identity } = await api.get(signed(cluster, claims));
    expect(status).toBe(200);
    expect(identity).not.toHaveProperty('tokenId');
  });

  it('must say which service account it is of, even where the policy does not care', async () => {
    const { api } = await setup([{ ...CLUSTER_POLICY, match: { sub: kubernetes().sub } }]);
    expect((await api.get(signed(cluster, kubernetes()))).status).toBe(200);
    for (const uid of [undefined, '', 7, null]) {
      const token = signed(cluster, changed(kubernetes(), 'kubernetes.io serviceaccount uid', uid));
      expect((await api.get(token)).status).toBe(401);
    }
  });

  it('lives a day at most unless its policy says otherwise', async () => {
    const { api } = await setup([{ ...CLUSTER_POLICY, maxSubjectLifetimeSeconds: undefined }]);
    expect((await api.get(signed(cluster, changed(kubernetes(), 'exp', NOW + 86_400)))).status).toBe(200);
    expect((await api.get(signed(cluster, changed(kubernetes(), 'exp', NOW + 86_401)))).status).toBe(401);
  });
});

describe('a GitHub Actions job', () => {
  it.each([
    'repo:octo-org/octo-repo:environment:prod',
    'repo:octo-org@65/octo-repo@74:environment:prod',
    'repo:octo-org/octo-repo:ref:refs/heads/main',
    'repo:octo-org@65/octo-repo@74:ref:refs/heads/main',
    'repository_owner_id:65:whatever:the:organization:chose',
  ])('is taken under both forms of sub, by its structured claims: %s', async (sub) => {
    const { api } = await setup();
    const { status, identity } = await api.get(signed(github, changed(actions(), 'sub', sub)));
    expect(status).toBe(200);
    expect(identity).toMatchObject({ subject: { kind: 'workload', id: sub }, authId: 'ci', expiresAt: NOW + 300 });
  });

  const wrong = (path: string, values: readonly unknown[]) => values.map((value): [string, unknown] => [path, value]);
  it.each<[string, unknown]>([
    ...wrong('iss', [undefined, 'https://token.actions.githubusercontent.com/', 'https://evil.example']),
    ...wrong('aud', [undefined, 'https://github.com/octo-org', [AUDIENCE, 'x'], 7]),
    ...wrong('exp', [undefined, NOW - 60, '1']),
    ...wrong('iat', [undefined, NOW - 400, '1']),
    ...wrong('nbf', [NOW + 60, '1']),
    ...wrong('sub', [undefined, '', 7, []]),
    ...wrong('repository_id', [undefined, '75', 74, ['74'], '', '074']),
    ...wrong('repository_owner_id', [undefined, '66', 65, '']),
    ...wrong('repository', [undefined, 7, '']),
    ...wrong('repository_owner', [undefined, 7, '']),
    ...wrong('ref', [undefined, 'refs/heads/evil', 'refs/heads/main2', 'xrefs/heads/main', 7, ['refs/heads/main']]),
    ...wrong('job_workflow_ref', [
      undefined,
      'octo-org/shared/.github/workflows/deploy.yml',
      'evil/octo-org/shared/.github/workflows/deploy.yml@x',
      'octo-org/shared/.github/workflows/deploy.yml.evil@refs/heads/main',
      7,
    ]),
    ...wrong('event_name', [undefined, 'pull_request', 7]),
    ...wrong('environment', [undefined, 'dev', 'xprod', 'pro:d', 'pro/d', 7]),
    ...['run_id', 'actor_id', 'sha', 'workflow_ref', 'runner_environment', 'ref_type', 'jti'].flatMap((name) =>
      wrong(name, [7, null, {}, ['x']]),
    ),
  ])('is refused when %s is %j', async (path, value) => {
    const { api } = await setup();
    const answer = await api.get(signed(github, changed(actions(), path, value)));
    expect(answer).toMatchObject({ status: 401, code: 'invalid_token' });
    expect(api.handled).toBe(0);
  });

  it('ends when it is older than the policy lets it be', async () => {
    const { api, clock } = await setup();
    const token = signed(github, actions());
    expect((await api.get(token)).status).toBe(200);
    clock.advance(299);
    expect((await api.get(token)).status).toBe(200);
    clock.advance(10);
    expect((await api.get(token)).status).toBe(401);
    expect(api.reasons).toEqual(['the token is older than the policy allows']);
  });
});

describe('a workload of another OpenID issuer', () => {
  const ISSUER = 'https://gitlab.example';
  const pins = ['project_id'];
  const issuers: WorkloadIssuer[] = [{ issuer: ISSUER, kind: 'oidc', keys: { jwks: { keys: [other.jwk] } }, pins }];
  const claims = {
    iss: ISSUER,
    aud: AUDIENCE,
    sub: 'project_path:g/p:ref_type:branch:ref:main',
    project_id: '9',
    iat: NOW,
    exp: NOW + 300,
  };
  const policy = (match: object, changes: object = {}) => ({
    id: 'p',
    issuer: ISSUER,
    audience: AUDIENCE,
    match,
    grant: grant(),
    ...changes,
  });

  it('is taken by whatever pins it down', async () => {
    for (const match of [
      { project_id: '9' },
      { sub: { prefix: 'project_path:g/p:' } },
      { sub: { glob: 'project_path:g/p:**' } },
    ]) {
      const { api } = await setup([policy(match)], issuers);
      expect((await api.get(signed(other, claims))).status).toBe(200);
      expect(
        (await api.get(signed(other, { ...claims, sub: 'project_path:g/px:ref:main', project_id: '10' }))).status,
      ).toBe(401);
      expect((await api.get(signed(other, { ...claims, sub: undefined }))).status).toBe(401);
    }
  });

  it('is refused when nothing matches, or no policy is about it', async () => {
    const { api } = await setup([policy({ project_id: '9' }), policy({ project_id: '10' }, { id: 'q' })], issuers);
    expect((await api.get(signed(other, { ...claims, project_id: '11' }))).status).toBe(401);
    const none = await setup([], issuers);
    expect((await none.api.get(signed(other, claims))).status).toBe(401);
  });

  it('has nothing of the policies that are about other issuers', async () => {
    const two: WorkloadIssuer[] = [
      ...issuers,
      { issuer: 'https://b', kind: 'oidc', keys: { jwks: { keys: [other.jwk] } }, pins: ['/project_id'] },
    ];
    const { api } = await setup(
      [policy({ project_id: '9' }), { ...policy({ project_id: '10' }), id: 'b', issuer: 'https://b' }],
      two,
    );
    expect((await api.get(signed(other, { ...claims, iss: 'https://b' }))).status).toBe(401);
    expect((await api.get(signed(other, { ...claims, project_id: '10' }))).status).toBe(401);
    expect((await api.get(signed(other, { ...claims, iss: 'https://b', project_id: '10' }))).status).toBe(200);
  });

  it('is refused when two policies match, since none can be named', async () => {
    const { api } = await setup([policy({ project_id: '9' }), policy({ sub: claims.sub }, { id: 'q' })], issuers);
    expect((await api.get(signed(other, claims))).status).toBe(401);
    expect(api.reasons).toEqual(['several policies match and none was named']);
    expect((await api.get(signed(other, { ...claims, project_id: '8' }))).status).toBe(200);
  });

  it('can be used once where the policy says so', async () => {
    const { api, clock } = await setup([policy({ project_id: '9' }, { replay: 'once' })], issuers);
    const token = signed(other, { ...claims, jti: 'j-1' });
    expect((await api.get(token)).status).toBe(200);
    expect((await api.get(token)).status).toBe(401);
    expect((await api.get(signed(other, { ...claims, jti: 'j-1', x: 1 }))).status).toBe(401);
    expect((await api.get(signed(other, { ...claims, jti: 'j-2' }))).status).toBe(200);
    expect((await api.get(signed(other, claims))).status).toBe(401);
    clock.advance(10);
    expect((await api.get(token)).status).toBe(401);
    const twice = signed(other, { ...claims, jti: 'j-3' });
    const answers = await Promise.all([api.get(twice), api.get(twice), api.get(twice)]);
    expect(answers.map(({ status }) => status).sort()).toEqual([200, 401, 401]);
  });

  it('is an outage without keys: inline, in a file and behind a URL', async () => {
    const provider = await identityProvider([]);
    const folder = tempFolder('workload');
    const path = join(folder.path, 'jwks.json');
    writeFileSync(path, JSON.stringify({ keys: [] }));
    closing.push(() => provider.close());
    for (const keys of [{ jwks: { keys: [] } }, { jwksFile: path }, { jwksUri: provider.jwksUri }]) {
      const { api, clock } = await setup([policy({ project_id: '9' })], [{ issuer: ISSUER, kind: 'oidc', keys, pins }]);
      expect(await api.get(signed(other, claims))).toMatchObject({ status: 503, code: 'verifier_unavailable' });
      provider.keys = [other.jwk];
      writeFileSync(path, JSON.stringify({ keys: [other.jwk] }));
      clock.advance(30);
      expect((await api.get(signed(other, claims))).status).toBe('jwks' in keys ? 503 : 200);
      provider.keys = [];
      writeFileSync(path, JSON.stringify({ keys: [] }));
    }
  });
});

describe('a glob', () => {
  /** What the pattern means, written down as a regular expression. */
  const reference = (pattern: string) =>
    new RegExp(
      `^${pattern.replace(/\*\*|[\s\S]/g, (step) =>
        step === '**'
          ? '[\\s\\S]*'
          : step === '*'
            ? '[^/:]*'
            : step === '?'
              ? '[^/:]'
              : step.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'),
      )}$`,
    );

  it('is anchored at both ends and means what it says', async () => {
    const issuer = { issuer: 'https://i', kind: 'oidc', keys: { jwks: { keys: [other.jwk] } } } as const;
    const step = fc.constantFrom('a', 'b', '/', ':', '*', '**', '?', '.', '+');
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { minLength: 1, maxLength: 7 }).map((steps) => steps.join('')),
        fc.array(fc.constantFrom('a', 'b', '/', ':', '.', '+', 'ab'), { maxLength: 8 }).map((text) => text.join('')),
        async (pattern, value) => {
          const verifier = workloadVerifier({
            issuers: [issuer],
            policies: [
              {
                id: 'p',
                issuer: 'https://i',
                audience: 'a',
                match: { sub: 's', x: { glob: pattern } },
                grant: grant(),
              },
            ],
            clock: manualClock(NOW * 1_000),
          });
          const token = signed(other, { iss: 'https://i', aud: 'a', sub: 's', x: value, iat: NOW, exp: NOW + 60 });
          const decided = await Promise.resolve(
            verifier.verify({ req: undefined as never, scheme: 'bearer', token }, new AbortController().signal),
          ).then(
            () => true,
            () => false,
          );
          expect(decided).toBe(reference(pattern).test(value));
        },
      ),
      { numRuns: 300 },
    );
  });

  it('takes no long value and no time', async () => {
    const match = { sub: 'system:serviceaccount:kura:kura-worker', x: { glob: `${'*a'.repeat(100)}b` } };
    const { api } = await setup([{ ...CLUSTER_POLICY, match }]);
    for (const length of [2_000, 3_000]) {
      expect((await api.get(signed(cluster, { ...kubernetes(), x: 'a'.repeat(length) }))).status).toBe(401);
    }
  });
});

describe('the options of workloadVerifier', () => {
  const problemsOf = (policies: unknown, issuers: unknown = ISSUERS): string => {
    try {
      workloadVerifier({ issuers, policies } as never);
    } catch (error) {
      expect(error).toBeInstanceOf(TypeError);
      return (error as Error).message;
    }
    return 'none';
  };
  const k8s = (changes: object) => problemsOf([{ ...CLUSTER_POLICY, ...changes }]);
  const gh = (match: object) => problemsOf([{ ...ACTIONS_POLICY, match }]);
  const HEADS = { glob: 'refs/heads/**' };
  const gh2 = (one: object, two: object) =>
    problemsOf([
      { ...ACTIONS_POLICY, id: 'one', match: one },
      { ...ACTIONS_POLICY, id: 'two', match: two },
    ]);
  const OIDC = { issuer: 'https://ci', kind: 'oidc', keys: { jwks: { keys: [other.jwk] } }, pins: ['project_id'] };
  const oidc = (match: object) => problemsOf([{ ...ACTIONS_POLICY, issuer: 'https://ci', match }], [OIDC]);

  it('list every problem of every policy at once', () => {
    const message = problemsOf(
      [
        { ...CLUSTER_POLICY, audience: '', match: {}, grant: { scopes: ['a:*'] } },
        { ...ACTIONS_POLICY, match: { repository: { prefix: 'octo-org' } }, mach: {} },
        { ...ACTIONS_POLICY, issuer: 'https://nobody' },
      ],
      [...ISSUERS, { issuer: 'https://x', kind: 'k8s', keys: { secret: 'x'.repeat(40) } }],
    );
    for (const part of [
      'issuers[2].kind must be one of kubernetes, github-actions, oidc',
      'issuers[2].keys.secret serves the HS algorithms alone',
      'policies[0].audience must be a string',
      'policies[0].match must match at least one claim',
      'policies[0].match must name the service account',
      'policies[0].grant.tenantId must be a string',
      'policies[0].grant.clientId must be a string',
      'policies[0].grant.scopes must be an array of scopes without wildcards',
      'unknown option "policies[1].mach" (did you mean "match"?)',
      'policies[1].match must pin one of repository_id',
      'policies[2].issuer is none of the issuers',
      'policies[2].id is that of another policy',
    ]) {
      expect(message).toContain(part);
    }
  });

  it.each<[string, () => string, RegExp]>([
    ['no issuers', () => problemsOf([], []), /issuers must be an array with at least one/],
    ['issuers that are no array', () => problemsOf([], {}), /issuers must be an array/],
    ['an issuer twice', () => problemsOf([], [ISSUERS[0], ISSUERS[0]]), /issuers\[1\].issuer is listed twice/],
    ['an HMAC', () => problemsOf([], [{ ...ISSUERS[0], algorithms: ['HS256'] }]), /must be asymmetric/],
    ['no policies', () => problemsOf(undefined), /policies must be an array/],
    ['a policy that is none', () => problemsOf([null]), /policies\[0\] must be an object/],
    ['a pattern', () => k8s({ match: { sub: /x/ } }), /exactly one of eq, in, prefix, glob/],
    ['an empty match', () => k8s({ match: { sub: '' } }), /match\["sub"\] must not be empty/],
    ['an empty eq', () => k8s({ match: { sub: { eq: '' } } }), /eq must be a string/],
    ['an empty in', () => k8s({ match: { sub: { in: [] } } }), /in must be an array/],
    ['a number in in', () => k8s({ match: { sub: { in: [7] } } }), /in must be an array/],
    ['an empty prefix', () => k8s({ match: { sub: 'x', x: { prefix: '' } } }), /prefix must be/],
    ['an empty glob', () => k8s({ match: { sub: 'x', x: { glob: '' } } }), /glob must be/],
    ['two operators', () => k8s({ match: { sub: { eq: 'a', in: ['a'] } } }), /exactly one of/],
    ['an unknown operator', () => k8s({ match: { sub: { regex: '.*' } } }), /exactly one of/],
    ['a bad pointer', () => k8s({ match: { sub: 'x', '/a~': 'x' } }), /no claim's name and no JSON Pointer/],
    [
      'an account by a pattern',
      () => k8s({ match: { sub: { prefix: 'system:serviceaccount:kura:' } } }),
      /must name the service account/,
    ],
    [
      'an account by a glob',
      () => k8s({ match: { sub: { glob: 'system:serviceaccount:kura:*' } } }),
      /must name the service account/,
    ],
    [
      'a namespace alone',
      () => k8s({ match: { '/kubernetes.io/namespace': 'kura' } }),
      /must name the service account/,
    ],
    ['any repository', () => gh({ ref: 'refs/heads/main' }), /must pin one of/],
    ['an owner that is a prefix', () => gh({ repository: { prefix: 'octo' } }), /must pin one of/],
    ['an owner that is a glob', () => gh({ repository: { glob: 'octo*/repo' } }), /must pin one of/],
    ['anything', () => gh({ sub: { glob: '**' } }), /must pin one of/],
    // The beginning of every sub there is.
    ['a sub of anybody', () => gh({ sub: { prefix: 'repo:' } }), /must pin one of/],
    ['a sub of any owner', () => gh({ sub: { glob: 'repo:*/app:ref:refs/heads/main' } }), /must pin one of/],
    ['a sub of any id', () => gh({ sub: { prefix: 'repository_id:' } }), /must pin one of/],
    ['a repository of any owner', () => gh({ repository: { glob: '*/app' } }), /must pin one of/],
    ['a workflow of any owner', () => gh({ workflow_ref: { prefix: '/' } }), /must pin one of/],
    ['an id by a beginning', () => gh({ repository_id: { prefix: '7' } }), /must pin one of/],
    // Every repository may state such a sub of its own.
    ['a customised sub', () => gh({ sub: 'ref:refs/heads/main' }), /must pin one of/],
    ['one bad sub among others', () => gh({ sub: { in: ['repo:o/r:ref:x', 'ref:x'] } }), /must pin one of/],
    // Anybody may call a public reusable workflow.
    ['the code alone', () => gh({ job_workflow_ref: actions().job_workflow_ref }), /must pin one of/],
    ['an environment without its branch', () => gh({ sub: 'repo:o/r:environment:prod' }), /hides the branch/],
    ['one among others', () => gh({ sub: { in: ['repo:o/r:ref:x', 'repo:o/r:environment:p'] } }), /hides the branch/],
    ['environments', () => gh({ sub: { glob: 'repo:o/r:environment:*' } }), /hides the branch/],
    ['a claim of an unknown meaning', () => oidc({ ref: 'main' }), /must pin sub, .*exactly one of the issuer's pins/],
    ['a pin by a beginning', () => oidc({ project_id: { prefix: '9:' } }), /must pin sub/],
    ['a sub of anybody at all', () => oidc({ sub: { prefix: 'project_path:' } }), /must pin sub/],
    ['a sub of any host', () => oidc({ sub: { prefix: 'https://' } }), /must pin sub/],
    ['a sub that ends in a name', () => oidc({ sub: { prefix: 'project_path:g' } }), /must pin sub/],
    ['a claim twice', () => k8s({ match: { sub: 'x', '/sub': 'y' } }), /match names the claim "\/sub" twice/],
    ['pins of another kind', () => problemsOf([], [{ ...ISSUERS[0], pins: ['x'] }]), /pins is about the kind oidc/],
    ['pins that are none', () => problemsOf([], [{ ...OIDC, pins: ['/a~'] }]), /pins must be an array of/],
    ['an age of nothing', () => k8s({ maxSubjectAgeSeconds: 0 }), /maxSubjectAgeSeconds must be/],
    [
      'a lifetime that is no number',
      () => k8s({ maxSubjectLifetimeSeconds: '1h' }),
      /maxSubjectLifetimeSeconds must be/,
    ],
    ['a replay that is not once', () => k8s({ replay: 'never' }), /replay must be one of "once"/],
    ['a pod that is waived by false', () => k8s({ allowWithoutPod: false }), /allowWithoutPod must be one of true/],
    [
      'a pod outside Kubernetes',
      () => problemsOf([{ ...ACTIONS_POLICY, allowWithoutPod: true }]),
      /is about Kubernetes/,
    ],
    ['no grant', () => k8s({ grant: undefined }), /grant must be an object/],
    ['a scope with a space', () => k8s({ grant: grant({ scopes: ['a b'] }) }), /scopes must be/],
    ['a wildcard', () => k8s({ grant: grant({ scopes: ['a:any'] }) }), /scopes must be/],
    ['resources that are none', () => k8s({ grant: grant({ resources: [{ type: 'x' }] }) }), /resources must be/],
    ['a life of nothing', () => k8s({ grant: grant({ maxTtlSeconds: 0 }) }), /maxTtlSeconds must be/],
    [
      'two policies of the same match',
      () => problemsOf([CLUSTER_POLICY, { ...CLUSTER_POLICY, id: 'x' }]),
      /whatever matches "kura" matches "x" too/,
    ],
    [
      'a policy within another',
      () => problemsOf([ACTIONS_POLICY, { ...ACTIONS_POLICY, id: 'wide', match: { repository_id: '74' } }]),
      /whatever matches "deploy" matches "wide" too/,
    ],
    [
      'a policy within one with more values',
      () => gh2({ repository_id: '74' }, { repository_id: { in: ['73', '74'] } }),
      /whatever matches "one" matches "two" too/,
    ],
    [
      'a policy within a wider pattern',
      () => gh2({ repository_id: '74', ref: { glob: 'refs/heads/r-*' } }, { '/repository_id': '74', ref: HEADS }),
      /whatever matches "one" matches "two" too/,
    ],
    [
      'a policy within a shorter beginning',
      () => gh2({ repository_id: '74', ref: { prefix: 'refs/heads/r-' } }, { repository_id: '74', ref: HEADS }),
      /whatever matches "one" matches "two" too/,
    ],
    [
      'a policy within a pattern',
      () => gh2({ repository_id: '74', ref: 'refs/heads/x' }, { repository_id: '74', ref: { glob: 'refs/*/?' } }),
      /whatever matches "one" matches "two" too/,
    ],
    [
      'a name that is none',
      () => {
        try {
          workloadVerifier({ issuers: ISSUERS, policies: [], name: '' });
        } catch (e) {
          return (e as Error).message;
        }
        return 'none';
      },
      /name must be/,
    ],
  ])('refuse %s', (_name, problems, message) => {
    expect(problems()).toMatch(message);
  });

  it('let policies be that are about other audiences, and patterns that end at a boundary', () => {
    expect(problemsOf([CLUSTER_POLICY, { ...CLUSTER_POLICY, id: 'x', audience: 'other' }])).toBe('none');
    expect(gh({ repository: { prefix: 'octo-org/' } })).toBe('none');
    expect(gh({ sub: { glob: 'repo:octo-org/octo-repo:ref:refs/heads/*' } })).toBe('none');
    expect(gh({ sub: 'repo:o/r:environment:prod', ref: 'refs/heads/main' })).toBe('none');
    expect(gh({ sub: 'repo:o@65/r@74:environment:prod', '/ref': 'refs/heads/main' })).toBe('none');
    expect(gh({ sub: { in: ['repository_owner_id:65:x', 'repository_id:74'] } })).toBe('none');
    expect(gh({ workflow_ref: { prefix: 'o/r/.github/workflows/deploy.yml@' } })).toBe('none');
    expect(gh({ job_workflow_ref: actions().job_workflow_ref, repository_owner_id: '65' })).toBe('none');
    expect(gh2({ repository_id: '74', ref: 'x' }, { repository_id: '74', ref: 'y' })).toBe('none');
    expect(gh2({ repository_id: '74', ref: HEADS }, { repository_id: '74', ref: { glob: 'refs/t/*' } })).toBe('none');
    expect(oidc({ '/project_id': '9' })).toBe('none');
  });
});

describe('which credentials a workload verifier takes', () => {
  it('only tokens of its issuers, and it tells the chain which those are', async () => {
    const verifier = workloadVerifier({ issuers: ISSUERS, policies: [] });
    const asks = (token: string | undefined, scheme: 'bearer' | 'none' | 'custom' | 'dpop' = 'bearer') =>
      verifier.accepts({ req: undefined as never, scheme, token });
    expect(verifier.issuers).toEqual(ISSUERS.map(({ issuer }) => issuer));
    expect(asks(signed(cluster, kubernetes()))).toBe(true);
    expect(asks(signed(cluster, kubernetes()), 'custom')).toBe(true);
    expect(asks(signed(cluster, kubernetes()), 'dpop')).toBe(false);
    expect(asks(signed(cluster, { iss: 'https://x' }))).toBe(false);
    expect(asks('x')).toBe(false);
    expect(asks(undefined, 'none')).toBe(false);
    await expect(
      verifier.verify({ req: undefined as never, scheme: 'bearer', token: 'x' }, new AbortController().signal),
    ).rejects.toMatchObject({ code: 'invalid_token' });
    await verifier.ready();
    await verifier.close();
  });
});

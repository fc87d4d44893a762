// A server whose internal services call it with short-lived tokens. Services are configured, and nobody else becomes one.
// Account-owned routes turn services away at one chokepoint; internal routes want a service of the internal network. A pod
// proves what it is with its platform's token, alone or beside a user's.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import express from 'express';
import {
  authenticate,
  type Clock,
  createKeyRing,
  identitiesOf,
  identityOf,
  type JwkSet,
  jwtVerifier,
  requireNetwork,
  requireScope,
  requireSubject,
  requireTenant,
  workloadVerifier,
} from 'tollkeeper';
import { createIssuer, hashClientSecret } from 'tollkeeper/issuer';

export interface TuistSettings {
  readonly cacheSecret: string;
  readonly reportsSecret: string;
  readonly users: { readonly issuer: string; readonly jwks: JwkSet };
  /** The cluster's pinned keys. An empty set is an outage, never access. */
  readonly cluster: { readonly issuer: string; readonly jwks: JwkSet };
  /** Networks that may reach token issuance and the internal routes. Default: this machine. */
  readonly internalNetworks?: readonly string[];
  readonly clock?: Clock;
}

export const AUDIENCE = 'https://tuist.example/api';

export async function startTuist(settings: TuistSettings) {
  const { users, cluster, internalNetworks = ['127.0.0.0/8'], clock } = settings;
  const app = express();
  const server = createServer(app);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const keyRing = await createKeyRing({ clock });

  const kubernetes = { issuer: cluster.issuer, kind: 'kubernetes' as const, keys: { jwks: cluster.jwks } };
  const processor = {
    id: 'processor',
    issuer: cluster.issuer,
    audience: AUDIENCE,
    match: { sub: 'system:serviceaccount:jobs:processor' },
    grant: { tenantId: 'internal', clientId: 'processor', scopes: ['builds:process'] },
    maxSubjectLifetimeSeconds: 3_700,
  };
  const issuer = createIssuer({
    issuer: url,
    audience: AUDIENCE,
    keyRing,
    maxTtlSeconds: 900,
    reservedClientIds: ['tuist-app', 'tuist-cli'],
    clients: [
      // Crosses accounts, because the route's rule says so for this one.
      {
        id: 'cache',
        name: 'Cache service',
        secretHashes: [await hashClientSecret(settings.cacheSecret)],
        scopes: ['cache:read'],
        crossTenant: true,
        unconstrainedResources: true,
        ttlSeconds: 300,
      },
      // The same scope, but one account. And no scope configured is no scope granted.
      {
        id: 'reports',
        secretHashes: [await hashClientSecret(settings.reportsSecret)],
        scopes: ['cache:read'],
        tenant: 'acme',
        unconstrainedResources: true,
      },
      {
        id: 'idle',
        secretHashes: [await hashClientSecret(`${settings.reportsSecret}-idle`)],
        scopes: [],
        tenant: 'acme',
        unconstrainedResources: true,
      },
    ],
    workloadIssuers: [kubernetes],
    workloadPolicies: [processor],
    clock,
  });

  const internal = requireNetwork({ allow: internalNetworks });
  app.use('/oauth', internal);
  app.use(issuer.handler());

  app.use(
    authenticate({
      revocations: issuer.revocations,
      verifiers: [
        jwtVerifier({
          issuers: [
            { issuer: url, audience: AUDIENCE, algorithms: ['ES256'], keys: { keyRing }, type: 'at+jwt' },
            { issuer: users.issuer, audience: AUDIENCE, algorithms: ['ES256'], keys: { jwks: users.jwks } },
          ],
          clock,
        }),
        workloadVerifier({ issuers: [kubernetes], policies: [processor], clock }),
      ],
      clock,
    }),
    // A pod's own token beside the user's: a bad one is refused, an absent one elevates nobody.
    authenticate({
      as: 'workload',
      optional: true,
      extractToken: (req) => req.headers['x-workload-token'] as string | undefined,
      verifiers: [workloadVerifier({ issuers: [kubernetes], policies: [processor], clock })],
      clock,
    }),
  );
  // Owned by an account: the one chokepoint for whoever has none.
  app.get(
    '/accounts/:account/projects',
    requireSubject('user'),
    requireTenant<express.Request>((req) => req.params.account as string),
    (req, res) => {
      res.json({ user: identityOf(req).subject.id, elevated: identitiesOf(req, 'workload') !== undefined });
    },
  );
  app.get(
    '/internal/accounts/:account/cache',
    internal,
    requireSubject('service'),
    requireScope('cache:read'),
    requireTenant<express.Request>((req) => req.params.account as string, {
      crossTenant: ({ clientId }) => clientId === 'cache',
    }),
    (req: express.Request, res: express.Response) =>
      void res.json({ account: req.params.account, by: identityOf(req).clientId }),
  );
  app.post(
    '/internal/builds',
    internal,
    requireSubject('workload', 'service'),
    requireScope('builds:process'),
    (req, res) => {
      res.json(identityOf(req).subject);
    },
  );

  return { url, issuer, server };
}

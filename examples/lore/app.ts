/**
 * A repository server that hands out service tokens without a browser, and an API that takes them.
 *
 * `POST /service-tokens` gives a CI job a short-lived, read-only token for its own tenant, on request for one repository.
 * Tokens of a customer's own accounts service, with claims of other names, keep working beside them.
 */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import express from 'express';
import {
  authenticate,
  type Clock,
  createKeyRing,
  identityOf,
  type JwkSet,
  jwtVerifier,
  requireResource,
  requireScope,
  requireTenant,
} from 'tollkeeper';
import { createIssuer, hashClientSecret } from 'tollkeeper/issuer';

export interface LoreSettings {
  /** Secret of the client `nightly-ci` of the tenant `acme`. */
  readonly ciSecret: string;
  /** Public keys of the client `mirror`, which signs assertions and holds no shared secret. */
  readonly mirrorKeys: JwkSet;
  /** The customer's own accounts service. */
  readonly accounts: { readonly issuer: string; readonly jwks: JwkSet };
  readonly clock?: Clock;
}

const AUDIENCE = 'https://lore.example/api';

export async function startLore({ ciSecret, mirrorKeys, accounts, clock }: LoreSettings) {
  const app = express();
  const server: Server = createServer(app);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

  // The server's own keys. Publishing precedes signing, and keys outlive the tokens that they signed.
  const keyRing = await createKeyRing({ publishSeconds: 960, clock });
  const issuer = createIssuer({
    issuer: url,
    audience: AUDIENCE,
    keyRing,
    resourceType: 'repository',
    maxTtlSeconds: 3_600,
    clients: [
      {
        id: 'nightly-ci',
        name: 'Nightly builds',
        secretHashes: [await hashClientSecret(ciSecret)],
        scopes: ['repo:read'],
        tenant: 'acme',
        unconstrainedResources: true,
      },
      {
        id: 'mirror',
        jwks: mirrorKeys,
        scopes: ['repo:read'],
        tenant: 'acme',
        resources: [{ type: 'repository', id: 'A' }],
      },
    ],
    clock,
  });
  app.use(issuer.handler());

  const repositories = express.Router({ mergeParams: true });
  repositories.use(
    authenticate({
      revocations: issuer.revocations,
      verifiers: [
        jwtVerifier({
          issuers: [
            { issuer: url, audience: AUDIENCE, algorithms: ['ES256'], keys: { keyRing }, type: 'at+jwt' },
            // Other names for the same things.
            {
              issuer: accounts.issuer,
              audience: AUDIENCE,
              algorithms: ['ES256'],
              keys: { jwks: accounts.jwks },
              map: { tenant: 'account', scopes: 'permissions' },
            },
          ],
          clock,
        }),
      ],
      clock,
    }),
    requireTenant<express.Request>((req) => req.params.tenant as string),
    // A token that names repositories is good for those alone. One that names none was issued so on purpose.
    requireResource<express.Request>((req) => ({ type: 'repository', id: req.params.repository as string }), {
      unconstrained: 'allow',
    }),
  );
  repositories.get('/', requireScope('repo:read'), (req: express.Request, res) => {
    const { subject, clientId, claims } = identityOf(req);
    res.json({ repository: req.params.repository, subject, clientId, service: claims.is_service_account === true });
  });
  repositories.delete('/', requireScope('repo:admin'), (_req, res) => void res.status(204).end());
  app.use('/tenants/:tenant/repositories/:repository', repositories);

  return { url, issuer, keyRing, server };
}

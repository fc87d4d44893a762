import { jwtVerifier } from 'tollkeeper';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guardedApi } from '../support/guarded-api.js';
import { type OidcServer, oidcServer } from '../support/oidc-server.js';

describe.each(['RS256', 'ES256'] as const)('tokens of a real OpenID provider that signs with %s', (alg) => {
  let oidc: OidcServer;
  beforeAll(async () => {
    oidc = await oidcServer(alg);
  });
  afterAll(() => oidc.close());

  it('are taken in the strict mode, by discovery', async () => {
    const verifier = jwtVerifier({
      issuer: oidc.issuer,
      audience: oidc.resource,
      algorithms: [alg],
      keys: { discover: true },
      type: 'at+jwt',
    });
    const api = await guardedApi({ verifiers: [verifier] });
    const token = await oidc.token({ resource: oidc.resource, scope: 'a:read' });
    expect(await api.get(token)).toMatchObject({
      status: 200,
      identity: {
        subject: { kind: 'service', id: 'app-1' },
        issuer: oidc.issuer,
        authId: 'app-1',
        clientId: 'app-1',
        scopes: ['a:read'],
        keyId: 'oidc',
      },
    });
    expect((await api.get(await oidc.token())).status).toBe(401);
    await verifier.close();
    await api.close();
  });

  it('are refused for another audience', async () => {
    const verifier = jwtVerifier({
      issuer: oidc.issuer,
      audience: 'https://other.example',
      algorithms: [alg],
      keys: { jwksUri: `${oidc.issuer}/jwks` },
    });
    const api = await guardedApi({ verifiers: [verifier] });
    expect((await api.get(await oidc.token({ resource: oidc.resource }))).status).toBe(401);
    await api.close();
  });
});

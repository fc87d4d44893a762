import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Provider } from 'oidc-provider';
import { type TestKey, testKey } from './identity-provider.js';

/** A real OpenID provider: client credentials, JWT and opaque access tokens, introspection, revocation. */
export interface OidcServer {
  readonly issuer: string;
  /** The audience of its JWT access tokens. Tokens without it are opaque. */
  readonly resource: string;
  readonly introspection: string;
  readonly client: { readonly clientId: string; readonly clientSecret: string };
  token(options?: { resource?: string; scope?: string; clientId?: string }): Promise<string>;
  revoke(token: string): Promise<void>;
  close(): Promise<void>;
}

export async function oidcServer(alg: 'RS256' | 'ES256' = 'RS256'): Promise<OidcServer> {
  const key: TestKey = testKey('oidc', alg);
  const resource = 'https://api.example';
  const client = { clientId: 'app-1', clientSecret: 'app:1 secret+%/&=x' };
  let handle: RequestListener | undefined;
  const server = createServer((req, res) => handle?.(req, res));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const provider = new Provider(issuer, {
    jwks: {
      keys: [{ ...(key.privateKey.export({ format: 'jwk' }) as object), kid: key.kid, alg, use: 'sig' }] as never,
    },
    clients: [
      {
        client_id: client.clientId,
        client_secret: client.clientSecret,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        id_token_signed_response_alg: alg,
      },
    ],
    scopes: ['a:read', 'a:write'],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true },
      revocation: { enabled: true, allowedPolicy: () => true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: () => ({
          scope: 'a:read a:write',
          audience: resource,
          accessTokenFormat: 'jwt' as const,
          jwt: { sign: { alg } },
        }),
      },
    },
  });
  handle = provider.callback();
  const basic = Buffer.from(`${encodeURIComponent(client.clientId)}:${encodeURIComponent(client.clientSecret)}`);
  const post = async (path: string, form: Record<string, string>) =>
    fetch(`${issuer}${path}`, {
      method: 'POST',
      headers: { authorization: `Basic ${basic.toString('base64')}` },
      body: new URLSearchParams(form),
    });
  return {
    issuer,
    resource,
    client,
    introspection: `${issuer}/token/introspection`,
    async token({ resource: wanted, scope } = {}) {
      const answer = await post('/token', {
        grant_type: 'client_credentials',
        ...(wanted === undefined ? {} : { resource: wanted }),
        ...(scope === undefined ? {} : { scope }),
      });
      const body = (await answer.json()) as { access_token?: string };
      if (body.access_token === undefined) throw new Error(`no token: ${JSON.stringify(body)}`);
      return body.access_token;
    },
    async revoke(token) {
      const answer = await post('/token/revocation', { token });
      if (answer.status !== 200) throw new Error(`not revoked: ${answer.status}`);
    },
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

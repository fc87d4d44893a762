import { generateKeyPairSync } from 'node:crypto';
import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Provider } from 'oidc-provider';
import { createKeyRing } from 'tollkeeper';
import { createIssuer, hashClientSecret } from 'tollkeeper/issuer';

/** One token endpoint, in a process of its own: ours on bare `node:http`, or `oidc-provider`'s. */
export interface IssuerOrder {
  readonly kind: 'tollkeeper' | 'oidc-provider';
  readonly algorithm: 'ES256' | 'RS256' | 'Ed25519';
}

const CLIENT = { id: 'service', secret: 'a-secret-of-the-benchmark_0123456789' };
const API = 'https://api.example';

async function tollkeeper(url: string, algorithm: IssuerOrder['algorithm']): Promise<RequestListener> {
  const issuer = createIssuer({
    issuer: url,
    audience: API,
    keyRing: await createKeyRing({ algorithm }),
    maxTtlSeconds: 600,
    clients: [
      {
        id: CLIENT.id,
        secretHashes: [hashClientSecret(CLIENT.secret)],
        scopes: ['a:read', 'a:write'],
        tenant: 'tenant-1',
        unconstrainedResources: true,
      },
    ],
  });
  const handler = issuer.handler();
  return (req, res) => handler(req, res);
}

function oidcProvider(url: string, alg: 'ES256' | 'RS256'): RequestListener {
  const { privateKey } =
    alg === 'ES256'
      ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
      : generateKeyPairSync('rsa', { modulusLength: 2048 });
  const provider = new Provider(url, {
    jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), kid: 'k', alg, use: 'sig' } as never] },
    clients: [
      {
        client_id: CLIENT.id,
        client_secret: CLIENT.secret,
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
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: () => ({
          scope: 'a:read a:write',
          audience: API,
          accessTokenFormat: 'jwt' as const,
          jwt: { sign: { alg } },
        }),
      },
    },
  });
  return provider.callback();
}

process.on('message', async (message: IssuerOrder | 'cpu') => {
  if (message === 'cpu') {
    const { user, system } = process.cpuUsage();
    process.send?.({ cpu: user + system });
    return;
  }
  const { kind, algorithm } = message;
  let handle: RequestListener | undefined;
  const server = createServer((req, res) => handle?.(req, res));
  server.keepAliveTimeout = 600_000;
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const url = `http://127.0.0.1:${port}`;
  handle = kind === 'tollkeeper' ? await tollkeeper(url, algorithm) : oidcProvider(url, algorithm as 'ES256' | 'RS256');
  process.send?.({ port });
});
process.on('disconnect', () => process.exit(0));

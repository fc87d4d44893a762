import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createServer, type RequestListener } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import { Provider } from 'oidc-provider';
import { createKeyRing } from 'tollkeeper';
import { createIssuer, hashClientSecret } from 'tollkeeper/issuer';

/**
 * One token endpoint, in a process of its own, on `node:http`: ours, `oidc-provider`'s, or what one would write with jose in ten
 * lines: it asks nobody for a credential and signs what every token says.
 */
export interface IssuerOrder {
  readonly kind: 'tollkeeper' | 'oidc-provider' | 'jose';
  readonly algorithm: 'ES256' | 'RS256' | 'Ed25519';
}

const CLIENT = { id: 'service', secret: 'a-secret-of-the-benchmark_0123456789' };
const API = 'https://api.example';

// The library's own: what stands beside this file may have brought an older one.
const { SignJWT } = createRequire(new URL('../../package.json', import.meta.url))('jose') as typeof import('jose');

function keyOf(algorithm: IssuerOrder['algorithm']) {
  if (algorithm === 'ES256') return generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return algorithm === 'Ed25519' ? generateKeyPairSync('ed25519') : generateKeyPairSync('rsa', { modulusLength: 2048 });
}

function jose(url: string, alg: IssuerOrder['algorithm']): RequestListener {
  const { privateKey } = keyOf(alg);
  const header = { alg, kid: 'NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs', typ: 'at+jwt' };
  const answer = async (form: URLSearchParams): Promise<string> => {
    const iat = Math.floor(Date.now() / 1_000);
    const claims = {
      iss: url,
      sub: CLIENT.id,
      aud: API,
      client_id: CLIENT.id,
      iat,
      exp: iat + 600,
      jti: randomUUID(),
      scope: form.get('scope'),
      tenant_id: 'tenant-1',
      is_service_account: true,
    };
    const token = await new SignJWT(claims).setProtectedHeader(header).sign(privateKey);
    return JSON.stringify({ access_token: token, token_type: 'Bearer', expires_in: 600 });
  };
  return (req, res) => {
    let text = '';
    req.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
    });
    req.on('end', async () => {
      const body = await answer(new URLSearchParams(text));
      res.writeHead(200, {
        'content-type': 'application/json',
        'content-length': body.length,
        'cache-control': 'no-store',
      });
      res.end(body);
    });
  };
}

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
  const { privateKey } = keyOf(alg);
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
  handle =
    kind === 'tollkeeper'
      ? await tollkeeper(url, algorithm)
      : kind === 'jose'
        ? jose(url, algorithm)
        : oidcProvider(url, algorithm as 'ES256' | 'RS256');
  process.send?.({ port });
});
process.on('disconnect', () => process.exit(0));

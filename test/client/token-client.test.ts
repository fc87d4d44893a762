import { generateKeyPairSync } from 'node:crypto';
import { rm, writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { join } from 'node:path';
import { decodeJwt, type JWK, SignJWT } from 'jose';
import { createKeyRing } from 'tollkeeper';
import { createTokenClient, isOAuthError, type TokenClientOptions } from 'tollkeeper/client';
import { createIssuer, hashClientSecret, type Issuer } from 'tollkeeper/issuer';
import { manualClock } from 'tollkeeper/testing';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { type Served, serve, tempFolder } from '../support/index.js';

const SECRET = 'p%c+ d:e&f=g"h\\i~0123456789';
const signing = generateKeyPairSync('ed25519');
const platform = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const folder = tempFolder('token-client');

const publicJwk = signing.publicKey.export({ format: 'jwk' }) as JWK;
const rights = { tenant: 't', unconstrainedResources: true } as const;

let served: Served;
let issuer: Issuer;
let requests = 0;

beforeAll(async () => {
  served = await serve((req, res) => {
    requests += 1;
    issuer.handler()(req, res);
  });
  issuer = createIssuer({
    issuer: served.url,
    audience: 'https://api.example',
    keyRing: await createKeyRing(),
    maxTtlSeconds: 600,
    clients: [
      { id: 'by-secret+%', secretHashes: [hashClientSecret(SECRET)], scopes: ['a:read', 'b:read'], ...rights },
      { id: 'by-key', jwks: { keys: [publicJwk] }, scopes: ['a:read'], ...rights },
      { id: 'by-named-key', jwks: { keys: [{ ...publicJwk, kid: 'k-1' }] }, scopes: ['a:read'], ...rights },
    ],
    workloadIssuers: [
      {
        issuer: 'https://platform.example',
        kind: 'oidc',
        keys: { jwks: { keys: [platform.publicKey.export({ format: 'jwk' }) as JWK] } },
      },
    ],
    workloadPolicies: ['one', 'two'].map((id) => ({
      id,
      issuer: 'https://platform.example',
      audience: served.url,
      match: { sub: 'job' },
      grant: { tenantId: 't', clientId: id, scopes: ['a:read'] },
      replay: 'once' as const,
    })),
  });
});
afterAll(async () => {
  await served.close();
  folder.remove();
});

const clientOf = (options: Partial<TokenClientOptions> = {}) =>
  createTokenClient({
    tokenEndpoint: `${served.url}/oauth/token`,
    credentials: { clientId: 'by-secret+%', clientSecret: SECRET },
    ...options,
  });

describe('createTokenClient with our issuer', () => {
  it('gets a token by a secret with awkward characters, and the scopes and resource that it asks for', async () => {
    const token = await clientOf({ scopes: ['a:read'], resources: ['https://api.example/repository/A'] }).getToken();
    expect(decodeJwt(token)).toMatchObject({
      client_id: 'by-secret+%',
      scope: 'a:read',
      resources: [{ type: 'repository', id: 'A' }],
    });
  });

  it.each<[string, TokenClientOptions['credentials']]>([
    [
      'PKCS#8',
      { clientId: 'by-key', privateKey: signing.privateKey.export({ type: 'pkcs8', format: 'pem' }) as string },
    ],
    ['a JWK', { clientId: 'by-key', privateKey: signing.privateKey.export({ format: 'jwk' }) as JWK }],
    [
      'a JWK with a kid',
      {
        clientId: 'by-named-key',
        privateKey: { ...(signing.privateKey.export({ format: 'jwk' }) as JWK), kid: 'k-1' },
      },
    ],
    [
      'a key id beside it',
      { clientId: 'by-named-key', privateKey: signing.privateKey.export({ format: 'jwk' }) as JWK, keyId: 'k-1' },
    ],
  ])('signs an assertion with a private key: %s', async (_, credentials) => {
    const client = clientOf({ credentials });
    expect(decodeJwt(await client.getToken()).client_id).toBe((credentials as { clientId: string }).clientId);
    client.forget();
    // A fresh assertion: the first one was good once.
    await client.getToken();
  });

  it("reads the platform's token anew for every exchange", async () => {
    const path = join(folder.path, 'token');
    const now = Math.floor(Date.now() / 1_000);
    const write = async () => {
      const payload = {
        iss: 'https://platform.example',
        aud: served.url,
        sub: 'job',
        iat: now,
        exp: now + 600,
        jti: crypto.randomUUID(),
      };
      await writeFile(
        path,
        `${await new SignJWT(payload).setProtectedHeader({ alg: 'ES256' }).sign(platform.privateKey)}\n`,
      );
    };
    await write();
    const client = clientOf({
      credentials: { subjectTokenFile: path, clientId: 'two' },
      policy: 'two',
      scopes: ['a:read'],
    });
    expect(decodeJwt(await client.getToken())).toMatchObject({ client_id: 'two', tenant_id: 't' });
    client.forget();
    // The policy takes a token once: the file must have been read again.
    await expect(client.getToken()).rejects.toMatchObject({ code: 'invalid_request' });
    await write();
    await client.getToken();
    client.forget();
    await writeFile(path, '\n');
    await expect(client.getToken()).rejects.toMatchObject({
      code: 'invalid_request',
      message: 'the subject token file is empty',
    });
    await rm(path);
    await expect(client.getToken()).rejects.toMatchObject({
      code: 'invalid_request',
      message: 'the subject token file cannot be read (ENOENT)',
    });
  });

  it.each<[string, Partial<TokenClientOptions>, string, number]>([
    ['a wrong secret', { credentials: { clientId: 'by-secret+%', clientSecret: 'wrong' } }, 'invalid_client', 401],
    ['a scope too many', { scopes: ['admin:all'] }, 'invalid_scope', 400],
    ['an unknown resource', { resources: ['https://other.example'] }, 'invalid_target', 400],
    [
      'another audience of the assertion',
      {
        credentials: { clientId: 'by-key', privateKey: signing.privateKey.export({ format: 'jwk' }) as JWK },
        issuer: 'https://other.example',
      },
      'invalid_client',
      401,
    ],
  ])('rejects with the code of the server: %s', async (_, options, code, status) => {
    const error: unknown = await clientOf(options)
      .getToken()
      .catch((cause) => cause);
    expect(isOAuthError(error)).toBe(true);
    expect(error).toMatchObject({ name: 'OAuthError', code, status });
    expect(String((error as Error).stack)).not.toContain('wrong');
  });

  it('sends one request however many ask at once, and none while it has a token', async () => {
    const client = clientOf();
    requests = 0;
    const tokens = await Promise.all(Array.from({ length: 50 }, () => client.getToken()));
    expect(new Set(tokens).size).toBe(1);
    expect(await client.getToken()).toBe(tokens[0]);
    expect(requests).toBe(1);
    client.forget();
    expect(await client.getToken()).not.toBe(tokens[0]);
    expect(requests).toBe(2);
  });
});

/** A token endpoint that answers as it is told. */
async function endpoint(answer: (req: IncomingMessage, res: ServerResponse) => void) {
  const server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  return {
    tokenEndpoint: `http://127.0.0.1:${port}/oauth/token`,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

describe('createTokenClient with any server', () => {
  it('replaces a token before it ends, in the background, and lives through an outage until then', async () => {
    const clock = manualClock();
    let count = 0;
    let isDown = false;
    const server = await endpoint((_, res) => {
      count += 1;
      res.statusCode = isDown ? 500 : 200;
      res.end(isDown ? 'oops' : JSON.stringify({ access_token: `t${count}`, token_type: 'bearer', expires_in: 100 }));
    });
    const client = clientOf({ tokenEndpoint: server.tokenEndpoint, clock, refreshBeforeSeconds: 30 });
    expect(await client.getToken()).toBe('t1');
    clock.advance(69);
    expect(await client.getToken()).toBe('t1');
    expect(count).toBe(1);
    clock.advance(1);
    expect(await client.getToken()).toBe('t1');
    await vi.waitFor(async () => expect(await client.getToken()).toBe('t2'));
    isDown = true;
    clock.advance(80);
    expect(await client.getToken()).toBe('t2');
    await vi.waitFor(() => expect(count).toBe(3));
    await new Promise((resolve) => setTimeout(resolve, 50));
    // Not again at once.
    expect(await client.getToken()).toBe('t2');
    expect(count).toBe(3);
    clock.advance(20);
    await expect(client.getToken()).rejects.toMatchObject({ code: 'temporarily_unavailable', status: 500 });
    isDown = false;
    expect(await client.getToken()).toBe('t5');
    server.close();
  });

  it('does not keep what a request brings that was under way when the token was forgotten', async () => {
    let count = 0;
    const held: ServerResponse[] = [];
    const server = await endpoint((_, res) => {
      count += 1;
      if (count === 1) held.push(res);
      else res.end(JSON.stringify({ access_token: `t${count}`, token_type: 'Bearer', expires_in: 100 }));
    });
    const client = clientOf({ tokenEndpoint: server.tokenEndpoint });
    const first = client.getToken();
    await vi.waitFor(() => expect(held).toHaveLength(1));
    client.forget();
    expect(await client.getToken()).toBe('t2');
    held[0]?.end(JSON.stringify({ access_token: 't1', token_type: 'Bearer', expires_in: 100 }));
    expect(await first).toBe('t1');
    expect(await client.getToken()).toBe('t2');
    server.close();
  });

  it('asks again every time when the server does not say how long a token lives', async () => {
    let count = 0;
    const server = await endpoint((_, res) =>
      res.end(JSON.stringify({ access_token: `t${++count}`, token_type: 'Bearer' })),
    );
    const client = clientOf({ tokenEndpoint: server.tokenEndpoint });
    expect([await client.getToken(), await client.getToken()]).toEqual(['t1', 't2']);
    server.close();
  });

  const good = { access_token: 't', token_type: 'Bearer', expires_in: 60 };
  it.each<[string, number, string, string]>([
    ['no JSON', 200, 'hello', 'invalid_response'],
    ['no object', 200, '[]', 'invalid_response'],
    ['null', 200, 'null', 'invalid_response'],
    ['no token', 200, '{}', 'invalid_response'],
    ['another type of token', 200, JSON.stringify({ ...good, token_type: 'DPoP' }), 'invalid_response'],
    ['no type', 200, JSON.stringify({ ...good, token_type: undefined }), 'invalid_response'],
    ['a lifetime of text', 200, JSON.stringify({ ...good, expires_in: '60' }), 'invalid_response'],
    ['an endless answer', 200, JSON.stringify({ ...good, x: 'x'.repeat(300_000) }), 'temporarily_unavailable'],
    ['an error page', 502, '<html>', 'temporarily_unavailable'],
    ['too many requests', 429, '', 'temporarily_unavailable'],
    ['a page that is missing', 404, '<html>', 'invalid_response'],
    ['an error of its own', 400, '{"error":"slow_down","error_description":"bad\\u0000text"}', 'slow_down'],
    ['an error that is no text', 400, '{"error":{"a":1}}', 'invalid_response'],
    ['an error of control characters', 400, '{"error":"a\\nb"}', 'invalid_response'],
    ['a redirect', 307, '', 'temporarily_unavailable'],
  ])('rejects %s', async (_, status, body, code) => {
    const server = await endpoint((_req, res) => {
      res.statusCode = status;
      if (status === 307) res.setHeader('location', 'http://127.0.0.1:1/');
      res.end(body);
    });
    await expect(clientOf({ tokenEndpoint: server.tokenEndpoint }).getToken()).rejects.toMatchObject({
      name: 'OAuthError',
      code,
    });
    server.close();
  });

  it('gives up on a server that hangs, before or in its answer, or is not there', async () => {
    const server = await endpoint((req, res) => {
      req.resume();
      if (req.url?.endsWith('body')) res.write('{');
    });
    for (const tokenEndpoint of [
      server.tokenEndpoint,
      `${server.tokenEndpoint}?body`,
      'http://127.0.0.1:1/oauth/token',
    ]) {
      const client = clientOf({ tokenEndpoint, timeoutSeconds: 0.1 });
      await expect(client.getToken()).rejects.toMatchObject({ code: 'temporarily_unavailable', status: 503 });
    }
    server.close();
  });

  it.each<[object, string]>([
    [{ tokenEndpoint: undefined }, 'tokenEndpoint must be'],
    [{ tokenEndpoint: 'http://issuer.example/oauth/token' }, 'tokenEndpoint must be an https URL'],
    [{ tokenEndpoint: 'https://a:b@issuer.example/oauth/token' }, 'tokenEndpoint must be an https URL'],
    [{ tokenEndpoint: 'nonsense' }, 'tokenEndpoint must be an https URL'],
    [{ credentials: undefined }, 'credentials must be an object'],
    [{ credentials: {} }, 'credentials must have one of'],
    [{ credentials: { clientId: 'a', clientSecret: 'b', privateKey: 'c' } }, 'credentials must have one of'],
    [{ credentials: { clientSecret: 'b' } }, 'credentials.clientId'],
    [{ credentials: { clientId: 'a', clientSecret: '' } }, 'credentials.clientSecret'],
    [
      { credentials: { clientId: 'a', privateKey: 'secret-material' } },
      'credentials.privateKey: a private key cannot be read',
    ],
    [{ credentials: { clientId: 'a', privateKey: 'x', keyId: '' } }, 'credentials.keyId'],
    [{ credentials: { subjectTokenFile: '' } }, 'credentials.subjectTokenFile'],
    [
      { credentials: { clientId: 'a', privateKey: 'x' }, tokenEndpoint: 'https://issuer.example/token' },
      'issuer is needed',
    ],
    [{ issuer: '' }, 'issuer must be'],
    [{ scopes: 'a' }, 'scopes must be'],
    [{ resources: [5] }, 'resources must be'],
    [{ policy: '' }, 'policy must be'],
    [{ timeoutSeconds: 0, refreshBeforeSeconds: -1 }, 'refreshBeforeSeconds must be'],
    [{ fetch: 1 }, 'fetch must be a function'],
    [{ dangerouslyAllowHttp: 'yes' }, 'dangerouslyAllowHttp must be'],
    [{ scope: [] }, 'did you mean "scopes"'],
  ])('refuses the options %j', (change, problem) => {
    const make = () => clientOf(change as never);
    expect(make).toThrow(TypeError);
    expect(make).toThrow(problem);
    expect(make).not.toThrow('secret-material');
  });

  it('takes plain HTTP to other machines only when that is said', () => {
    const options = { tokenEndpoint: 'http://issuer.example/oauth/token', dangerouslyAllowHttp: true } as const;
    expect(() => clientOf(options)).not.toThrow();
  });
});

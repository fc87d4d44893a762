import { constants, createHmac, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { type Served, serve } from './serve.js';

/** A key of a test's issuer. */
export interface TestKey {
  readonly kid: string;
  readonly alg: string;
  readonly privateKey: KeyObject;
  /** The public JWK with `kid`, `alg` and `use`. */
  readonly jwk: Record<string, unknown>;
}

const CURVES: Readonly<Record<string, string>> = { ES256: 'P-256', ES384: 'P-384', ES512: 'P-521' };

export function testKey(kid: string, alg = 'ES256', modulusLength = 2_048): TestKey {
  const curve = CURVES[alg];
  const { publicKey, privateKey } =
    curve !== undefined
      ? generateKeyPairSync('ec', { namedCurve: curve })
      : alg.startsWith('Ed')
        ? generateKeyPairSync('ed25519')
        : generateKeyPairSync('rsa', { modulusLength });
  return { kid, alg, privateKey, jwk: { ...publicKey.export({ format: 'jwk' }), kid, alg, use: 'sig' } };
}

export function segment(value: unknown): string {
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  return Buffer.from(text).toString('base64url');
}

/** The raw signature of an input, by the rules of the header's algorithm. */
export function signatureOf(input: string, alg: string, key: KeyObject | Uint8Array): string {
  if (key instanceof Uint8Array)
    return createHmac(`sha${alg.slice(2)}`, key)
      .update(input)
      .digest('base64url');
  const hash = alg.startsWith('Ed') ? null : `sha${alg.slice(2)}`;
  return sign(hash, Buffer.from(input), {
    key,
    dsaEncoding: 'ieee-p1363',
    ...(alg.startsWith('PS')
      ? { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_DIGEST }
      : {}),
  }).toString('base64url');
}

/** A compact JWS. Header and payload may be texts, so that a test can write any JSON. */
export function signed(key: TestKey, payload: unknown, header: Record<string, unknown> | string = {}): string {
  const head = typeof header === 'string' ? header : { alg: key.alg, typ: 'JWT', kid: key.kid, ...header };
  const input = `${segment(head)}.${segment(payload)}`;
  return `${input}.${signatureOf(input, key.alg, key.privateKey)}`;
}

/** What the provider's endpoints answer: a status and a body, or what a handler does. */
export type Answer = (req: IncomingMessage, res: ServerResponse) => void;

/** An identity provider over real HTTP, whose answers a test changes as it goes. */
export interface IdentityProvider {
  readonly issuer: string;
  readonly jwksUri: string;
  readonly port: number;
  /** The keys that it publishes now. */
  keys: Record<string, unknown>[];
  /** Answers in the place of the JWK set; undefined publishes the keys. */
  answer: Answer | undefined;
  /** Metadata by path. */
  readonly metadata: Map<string, unknown>;
  /** Paths that were asked for, in order. */
  readonly requests: string[];
  readonly fetches: number;
  close(): Promise<void>;
}

export async function identityProvider(keys: readonly TestKey[]): Promise<IdentityProvider> {
  const requests: string[] = [];
  const metadata = new Map<string, unknown>();
  const json = (res: ServerResponse, body: unknown): void => {
    res.setHeader('content-type', 'application/json');
    res.end(JSON.stringify(body));
  };
  const served: Served = await serve((req, res) => {
    const path = req.url ?? '';
    requests.push(path);
    if (path === '/jwks') {
      if (provider.answer !== undefined) return provider.answer(req, res);
      return json(res, { keys: provider.keys });
    }
    if (metadata.has(path)) return json(res, metadata.get(path));
    res.statusCode = 404;
    res.end();
  });
  const provider: IdentityProvider = {
    issuer: served.url,
    jwksUri: `${served.url}/jwks`,
    port: served.port,
    keys: keys.map(({ jwk }) => jwk),
    answer: undefined,
    metadata,
    requests,
    get fetches() {
      return requests.filter((path) => path === '/jwks').length;
    },
    close: served.close,
  };
  return provider;
}

/** Answers with a status and nothing else. */
export const status =
  (code: number): Answer =>
  (_req, res) => {
    res.statusCode = code;
    res.end();
  };

import { createPrivateKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { exportJWK, type JWK, SignJWT } from 'jose';

/** Signed callers: one JWT of about 900 bytes each, and what verifies them. */
export interface Callers {
  readonly tokens: readonly string[];
  readonly jwks: { keys: JWK[] };
  readonly publicPem: string;
}

export const ISSUER = 'https://idp.bench.example';
export const AUDIENCE = 'https://api.bench.example';

/** @param algorithm the JWS algorithm of the tokens. */
export async function makeCallers(algorithm: 'RS256' | 'ES256', count: number): Promise<Callers> {
  const pair =
    algorithm === 'RS256'
      ? generateKeyPairSync('rsa', { modulusLength: 2048 })
      : generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const privateKey: KeyObject = createPrivateKey(pair.privateKey.export({ type: 'pkcs8', format: 'pem' }));
  const jwk = { ...(await exportJWK(pair.publicKey)), kid: 'bench-1', alg: algorithm, use: 'sig' };
  const tokens: string[] = [];
  for (let index = 0; index < count; index++) {
    tokens.push(
      await new SignJWT({
        client_id: `client-${index % 50}`,
        tenant_id: `tenant-${index % 50}`,
        scope: 'reports:read reports:write',
        plan: 'pro',
        groups: ['engineering', 'billing', 'support'],
        email: `user-${index}@tenants.bench.example`,
        name: `A caller with the number ${index}`,
        padding: 'x'.repeat(algorithm === 'RS256' ? 0 : 220),
      })
        .setProtectedHeader({ alg: algorithm, kid: 'bench-1', typ: 'at+jwt' })
        .setIssuer(ISSUER)
        .setAudience(AUDIENCE)
        .setSubject(`user-${index}`)
        .setJti(`token-${index}-${'0'.repeat(16)}`)
        .setIssuedAt()
        .setExpirationTime('12h')
        .sign(privateKey),
    );
  }
  return { tokens, jwks: { keys: [jwk] }, publicPem: pair.publicKey.export({ type: 'spki', format: 'pem' }) as string };
}

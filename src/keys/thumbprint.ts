import { createHash } from 'node:crypto';
import type { JWK } from './jwk.js';

/** The required members per key type, in the order of RFC 7638 §3.2 and RFC 8037 §2. */
const MEMBERS: Readonly<Record<string, readonly ('crv' | 'e' | 'kty' | 'n' | 'x' | 'y')[]>> = {
  RSA: ['e', 'kty', 'n'],
  EC: ['crv', 'kty', 'x', 'y'],
  OKP: ['crv', 'kty', 'x'],
};

/** The SHA-256 thumbprint of a key (RFC 7638), base64url: the `kid` of every key that this package makes. */
export function thumbprint(jwk: JWK): string {
  const members = MEMBERS[jwk.kty ?? ''];
  if (members === undefined) throw new TypeError('a thumbprint needs an RSA, EC or OKP key');
  const text = JSON.stringify(Object.fromEntries(members.map((member) => [member, jwk[member]])));
  return createHash('sha256').update(text).digest('base64url');
}

import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';

/** RFC 6749 §10.10: guessing must be no likelier than 2^-128, which takes 22 characters of base64url. */
const MIN_LENGTH = 22;
const MAX_LENGTH = 1_024;
const SALT_BYTES = 16;
const SCHEME = 'hmac-sha256';
const FORMAT = /^hmac-sha256\$([A-Za-z0-9_-]{22})\$([A-Za-z0-9_-]{43})$/;

/** A secret's hash, taken apart. */
export interface SecretHash {
  readonly salt: Buffer;
  readonly mac: Buffer;
}

/**
 * The hash of a client secret, for `secretHashes`: `hmac-sha256$<salt>$<mac>`.
 *
 * It is one HMAC and no password hash, on purpose. A client secret is generated, not remembered: from 128 random bits on,
 * nobody can try them all, however fast a try is. And a slow hash would let anybody, without any credential, make the token
 * endpoint work for tens of milliseconds a request.
 *
 * @param secret 22 to 1024 printable ASCII characters out of a random generator, e.g.
 *   `randomBytes(32).toString('base64url')`. Characters of `[A-Za-z0-9._-]` are the same raw and form-encoded.
 * @throws TypeError for a shorter one, other characters, or one that repeats a single character.
 */
export function hashClientSecret(secret: string): string {
  if (typeof secret !== 'string' || !/^[\x20-\x7E]*$/.test(secret)) {
    throw new TypeError('hashClientSecret: a client secret must be printable ASCII (RFC 6749 appendix A.2)');
  }
  if (secret.length < MIN_LENGTH || secret.length > MAX_LENGTH || new Set(secret).size === 1) {
    throw new TypeError(`hashClientSecret: a client secret must have ${MIN_LENGTH} to ${MAX_LENGTH} random characters`);
  }
  const salt = randomBytes(SALT_BYTES);
  return [SCHEME, salt.toString('base64url'), macOf(secret, salt).toString('base64url')].join('$');
}

/** Reads what `hashClientSecret` made; undefined for anything else. */
export function parseSecretHash(text: unknown): SecretHash | undefined {
  const match = typeof text === 'string' ? FORMAT.exec(text) : null;
  if (match === null) return undefined;
  return { salt: Buffer.from(match[1] as string, 'base64url'), mac: Buffer.from(match[2] as string, 'base64url') };
}

/** Compares a secret with hashes in constant time, and as often for a client that is unknown. */
export function matchesSecret(secret: string, hashes: readonly SecretHash[]): boolean {
  let matches = false;
  for (const { salt, mac } of hashes.length === 0 ? [NOBODYS] : hashes) {
    if (timingSafeEqual(macOf(secret, salt), mac) && hashes.length > 0) matches = true;
  }
  return matches;
}

const NOBODYS: SecretHash = { salt: Buffer.alloc(SALT_BYTES), mac: Buffer.alloc(32) };

function macOf(secret: string, salt: Buffer): Buffer {
  return createHmac('sha256', salt).update(secret).digest();
}

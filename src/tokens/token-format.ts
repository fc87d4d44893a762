import { crc32 } from 'node:zlib';
import type { Random } from '../runtime/random.js';
import { randomBase62, toBase62 } from './base62.js';

/** `sk` secret key, `rk` restricted key: a label for people and scanners, without a meaning of its own. */
export type TokenKind = 'sk' | 'rk';
/** `live` or `test`: a label too. */
export type TokenEnv = 'live' | 'test';

export const TOKEN_KINDS: readonly TokenKind[] = ['sk', 'rk'];
export const TOKEN_ENVS: readonly TokenEnv[] = ['live', 'test'];

/**
 * A raw token, taken apart: `{prefix}_{kind}_{env}_{id}_{secret}{checksum}`, where the id (16 characters, 95 bits) is
 * public, the secret (43, 256 bits) is not, and the checksum (6) is a CRC-32 of everything before it.
 */
export interface TokenParts {
  readonly prefix: string;
  readonly kind: TokenKind;
  readonly env: TokenEnv;
  readonly id: string;
  readonly secret: string;
}

const ID_LENGTH = 16;
const SECRET_LENGTH = 43;
const CHECKSUM_LENGTH = 6;
/** Characters of the id that are shown to tell tokens apart. */
const SHOWN = 6;
/** What follows the prefix and its underscore. */
const REST = /^(sk|rk)_(live|test)_([0-9A-Za-z]{16})_([0-9A-Za-z]{43})[0-9A-Za-z]{6}$/;
const REST_LENGTH = 2 + 1 + 4 + 1 + ID_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH;

/** Letters and digits, in parts that single underscores separate; at most 32. Everything in it can stand in a header and is one word. */
export function isTokenPrefix(value: unknown): value is string {
  return typeof value === 'string' && value.length <= 32 && /^[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*$/.test(value);
}

/** Whether a text has the form of a token's public id. */
export function isTokenId(value: unknown): value is string {
  return typeof value === 'string' && /^[0-9A-Za-z]{16}$/.test(value);
}

/** A fresh token. */
export function mintToken(prefix: string, kind: TokenKind, env: TokenEnv, random: Random): TokenParts {
  return { prefix, kind, env, id: randomBase62(ID_LENGTH, random), secret: randomBase62(SECRET_LENGTH, random) };
}

/** The raw token, as its owner is given it. */
export function formatToken({ prefix, kind, env, id, secret }: TokenParts): string {
  const body = `${prefix}_${kind}_${env}_${id}_${secret}`;
  return body + checksumOf(body);
}

/**
 * Takes a raw token apart; undefined for another prefix, a wrong form or a wrong checksum. The checksum refuses typos and
 * noise without any lookup: it is no security control.
 */
export function parseToken(prefix: string, token: string): TokenParts | undefined {
  const start = prefix.length + 1;
  if (token.length !== start + REST_LENGTH || !token.startsWith(`${prefix}_`)) return undefined;
  const match = REST.exec(token.slice(start));
  if (match === null) return undefined;
  const body = token.slice(0, -CHECKSUM_LENGTH);
  if (!token.endsWith(checksumOf(body))) return undefined;
  return {
    prefix,
    kind: match[1] as TokenKind,
    env: match[2] as TokenEnv,
    id: match[3] as string,
    secret: match[4] as string,
  };
}

/** What may be shown of a token: how it begins, with six characters of its public id. */
export function displayOf({ prefix, kind, env, id }: Omit<TokenParts, 'secret'>): string {
  return `${prefix}_${kind}_${env}_${id.slice(0, SHOWN)}…`;
}

function checksumOf(body: string): string {
  return toBase62(crc32(body), CHECKSUM_LENGTH);
}

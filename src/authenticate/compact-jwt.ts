import { isUtf8 } from 'node:buffer';
import { AccessError } from '../errors/access-error.js';
import { repeatsMember } from './repeated-members.js';

/** Longer tokens are not looked at, whatever `authenticate` lets through: this bounds what one decoding may cost. */
const MAX_LENGTH = 262_144;

/** A JWT in its compact form (RFC 7519 §3), taken apart and not verified. */
export interface CompactJwt {
  readonly token: string;
  /** The first segment, as it stands. */
  readonly header: string;
  readonly payload: string;
  readonly signature: string;
  /** The payload's JSON text. */
  readonly text: string;
  readonly claims: Readonly<Record<string, unknown>>;
}

/** A refusal with a fixed reason. */
export function invalidToken(reason: string): AccessError {
  return new AccessError('invalid_token', { reason });
}

/** Takes a token apart without any demand on its spelling; undefined for what is no JWT at all. */
export function peekJwt(token: string): CompactJwt | undefined {
  if (token.length > MAX_LENGTH) return undefined;
  const first = token.indexOf('.');
  const second = token.indexOf('.', first + 1);
  if (first < 1 || second === -1 || token.indexOf('.', second + 1) !== -1) return undefined;
  const payload = token.slice(first + 1, second);
  const bytes = Buffer.from(payload, 'base64url');
  if (!isUtf8(bytes)) return undefined;
  const text = bytes.toString('utf8');
  const claims = parseObject(text);
  if (claims === undefined) return undefined;
  return { token, header: token.slice(0, first), payload, signature: token.slice(second + 1), text, claims };
}

/**
 * One token has one spelling: padding, white space, other alphabets and the unused bits of a last character are refused,
 * though decoders forgive them (RFC 7515 §2, RFC 4648 §3.5). Members that are named twice are refused too.
 *
 * @throws AccessError `invalid_token`.
 */
export function checkSpelling({ header, payload, signature, text, claims }: CompactJwt): void {
  if (!isCanonical(header) || !isCanonical(payload) || !isCanonical(signature)) {
    throw invalidToken('a segment is not canonical base64url');
  }
  if (repeats(text, claims)) throw invalidToken('the payload names a member twice');
}

/** The JSON object of a canonical segment, each member named once. @throws AccessError `invalid_token`. */
export function decodeObject(segment: string): Readonly<Record<string, unknown>> {
  const bytes = Buffer.from(segment, 'base64url');
  const text = isUtf8(bytes) ? bytes.toString('utf8') : '';
  const value = parseObject(text);
  if (value === undefined || !isCanonical(segment)) throw invalidToken('the header is no JSON object');
  if (repeats(text, value)) throw invalidToken('the header names a member twice');
  return value;
}

function repeats(text: string, value: unknown): boolean {
  try {
    return repeatsMember(text, value);
  } catch {
    // Nested so deep that the stack is not enough.
    return true;
  }
}

function parseObject(text: string): Readonly<Record<string, unknown>> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : undefined;
  } catch {
    return undefined;
  }
}

const ALPHABET = /^[A-Za-z0-9_-]+$/;

function isCanonical(segment: string): boolean {
  if (!ALPHABET.test(segment)) return false;
  const last = segment.charAt(segment.length - 1);
  switch (segment.length % 4) {
    case 1:
      return false;
    case 2:
      return 'AQgw'.includes(last);
    case 3:
      return 'AEIMQUYcgkosw048'.includes(last);
    default:
      return true;
  }
}

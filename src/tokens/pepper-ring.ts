import { createHmac, createSecretKey, type KeyObject, randomBytes, timingSafeEqual } from 'node:crypto';
import type { OptionsParser } from '../errors/options-parser.js';
import type { TokenParts } from './token-format.js';

/** A secret that is mixed into every stored token, so that a copy of the store alone is of no use. */
export interface Pepper {
  /** 1 to 64 letters, digits, `.`, `_` and `-`; stored beside each token and shown as the identities' `keyId`. Never reuse one. */
  readonly id: string;
  /** At least 32 random bytes, or a string of at least 32 bytes. It belongs in a secret manager, never beside the store. */
  readonly secret: Uint8Array | string;
}

export interface Peppers {
  /** What new tokens are stored with. */
  readonly current: Pepper;
  /** What older tokens may still be stored with. A token moves to the current one when it is next used. */
  readonly previous?: readonly Pepper[];
}

const MIN_BYTES = 32;
/** A random secret of 32 hexadecimal digits has fewer different bytes than this once in about 10^8. */
const MIN_DIFFERENT_BYTES = 8;
/** Between neighbouring bytes: the alphabet and the bytes from 0 have one or two, 32 random hexadecimal digits more than ten. */
const MIN_DIFFERENT_STEPS = 5;
/** What stands in templates and tutorials, without its punctuation. */
const PLACEHOLDER =
  /change(me|this|it)|placeholder|replace(me|this)|your(pepper|secret|key)|(secret|pepper|key)here|(super|top|my|not|default|dummy)a?secret|password|example|letmein/;
const FORM = 'v1';
/** HMAC-SHA-256 as base64url. */
const MAC_LENGTH = 43;

/** The peppers that tokens are stored with. Secrets never leave it. */
export class PepperRing {
  readonly currentId: string;
  readonly #keys = new Map<string, KeyObject>();
  /** For tokens that do not exist, so that an answer takes the same time. */
  readonly #dummy = createSecretKey(randomBytes(MIN_BYTES));

  /** Notes every problem of the options; usable only if there are none. */
  constructor(given: Peppers, parser: OptionsParser) {
    const { current, previous } = parser.known(given, ['current', 'previous'], 'peppers');
    const secrets = new Set<string>();
    const add = (where: string, pepper: Pepper): void => {
      const { id, secret } = parser.known(pepper, ['id', 'secret'], where);
      const named = typeof id === 'string' && /^[A-Za-z0-9._-]{1,64}$/.test(id);
      parser.check(named, `${where}.id must be 1 to 64 letters, digits, ".", "_" and "-"`);
      parser.check(!this.#keys.has(id), `${where}.id is that of another pepper`);
      const bytes = typeof secret === 'string' ? Buffer.from(secret) : secret;
      if (!(bytes instanceof Uint8Array)) {
        parser.problem(`${where}.secret must be a Uint8Array or a string`);
        return;
      }
      const weakness = weaknessOf(bytes);
      if (weakness !== undefined) parser.problem(`${where}.secret ${weakness}`);
      const text = Buffer.from(bytes).toString('base64');
      parser.check(!secrets.has(text), `${where}.secret is that of another pepper`);
      secrets.add(text);
      if (bytes.length > 0) this.#keys.set(id, createSecretKey(bytes));
    };
    add('peppers.current', current);
    if (previous !== undefined && !Array.isArray(previous)) parser.problem('peppers.previous must be an array');
    else for (const [index, pepper] of (previous ?? []).entries()) add(`peppers.previous[${index}]`, pepper);
    this.currentId = (current as Pepper | undefined)?.id ?? '';
  }

  /** The ids of the peppers that are in use, the current one first. */
  get ids(): string[] {
    return [...this.#keys.keys()];
  }

  /** Forgets a pepper: nothing that was stored with it verifies any more. */
  drop(id: string): void {
    this.#keys.delete(id);
  }

  /** What is stored of a token, under the current pepper. Undefined when that was dropped. */
  mac(parts: TokenParts): string | undefined {
    const key = this.#keys.get(this.currentId);
    return key && macOf(key, parts);
  }

  /**
   * Whether a token is the one that was stored: one HMAC and one comparison in constant time, whether there is such a
   * token or not.
   */
  verifies(parts: TokenParts, stored: { readonly pepperId: string; readonly mac: string } | undefined): boolean {
    const key = stored === undefined ? undefined : this.#keys.get(stored.pepperId);
    const same = isSame(macOf(key ?? this.#dummy, parts), stored?.mac ?? '');
    return same && key !== undefined;
  }
}

/** HMAC-SHA-256 over the parts, each with its length in front, so that no two tokens give the same bytes. */
function macOf(key: KeyObject, { prefix, kind, env, id, secret }: TokenParts): string {
  const input =
    `${FORM.length}:${FORM}${prefix.length}:${prefix}${kind.length}:${kind}` +
    `${env.length}:${env}${id.length}:${id}${secret.length}:${secret}`;
  return createHmac('sha256', key).update(input).digest('base64url');
}

/** In constant time, whatever stands in the store. */
function isSame(mac: string, stored: string): boolean {
  const expected = Buffer.allocUnsafe(MAC_LENGTH);
  const found = Buffer.alloc(MAC_LENGTH);
  expected.write(mac, 'latin1');
  found.write(stored, 'latin1');
  return timingSafeEqual(expected, found) && stored.length === MAC_LENGTH;
}

function weaknessOf(secret: Uint8Array): string | undefined {
  if (secret.length < MIN_BYTES) return `must have at least ${MIN_BYTES} random bytes`;
  if (new Set(secret).size < MIN_DIFFERENT_BYTES || isRepetition(secret)) return 'repeats itself: it must be random';
  const steps = new Set(secret.subarray(1).map((byte, index) => byte - (secret[index] as number)));
  if (steps.size < MIN_DIFFERENT_STEPS) return 'is a sequence: it must be random';
  const words = Buffer.from(secret)
    .toString('latin1')
    .toLowerCase()
    .replace(/[^a-z]/g, '');
  return PLACEHOLDER.test(words) ? 'is a placeholder: it must be random' : undefined;
}

/** Whether the bytes are one shorter piece, again and again. */
function isRepetition(bytes: Uint8Array): boolean {
  for (let period = 1; period <= bytes.length / 2; period++) {
    if (bytes.every((byte, index) => index < period || byte === bytes[index - period])) return true;
  }
  return false;
}

import { hash } from 'node:crypto';

/** Bytes of a block of SHA-256, and of its result. */
const BLOCK = 64;
const RESULT = 32;

/**
 * HMAC-SHA-256 (RFC 2104 §2) under one key, of two one-shot hashes: `createHmac` makes objects that cost twice as much
 * as the hashing, and this is the dearest step of a lookup.
 */
export class MacKey {
  /** The key with the inner padding, and behind it the text. */
  #inner = Buffer.alloc(BLOCK, 0x36);
  /** The key with the outer padding, and behind it the inner hash. */
  readonly #outer = Buffer.alloc(BLOCK + RESULT, 0x5c);

  constructor(secret: Uint8Array) {
    const key = secret.length > BLOCK ? hash('sha256', secret, 'buffer') : secret;
    for (const [index, byte] of key.entries()) {
      this.#inner[index] = byte ^ 0x36;
      this.#outer[index] = byte ^ 0x5c;
    }
  }

  /** The HMAC of ASCII text, base64url. */
  of(text: string): string {
    if (this.#inner.length !== BLOCK + text.length) {
      const longer = Buffer.alloc(BLOCK + text.length);
      this.#inner.copy(longer, 0, 0, BLOCK);
      this.#inner = longer;
    }
    this.#inner.write(text, BLOCK, 'latin1');
    this.#outer.write(hash('sha256', this.#inner, 'binary'), BLOCK, 'latin1');
    return hash('sha256', this.#outer, 'base64url');
  }
}

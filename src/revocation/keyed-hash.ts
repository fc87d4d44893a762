import type { Random } from '../runtime/random.js';

/**
 * A 128-bit hash of short texts under a random key: HalfSipHash-1-3 (the 32-bit relative of SipHash, which plain
 * JavaScript computes fast), with the whole state keyed and squeezed to four words. Nobody who does not know the key
 * can choose ids that fall on one another. Nothing is allocated.
 */
export class KeyedHash {
  readonly #words = new Int32Array(4);
  readonly #key: Int32Array;
  #text = '';

  constructor(random: Random) {
    const bytes = random(16);
    this.#key = Int32Array.from({ length: 4 }, (_, word) =>
      [0, 1, 2, 3].reduce((sum, byte) => (sum << 8) | (bytes[word * 4 + byte] as number), 0),
    );
    this.#compute('');
  }

  /** The text's hash, until the next one is asked for. The same text again, as issuers and keys are, costs nothing. */
  of(text: string): Int32Array {
    if (text !== this.#text) {
      this.#text = text;
      this.#compute(text);
    }
    return this.#words;
  }

  /** Over the UTF-16 code units. */
  #compute(text: string): void {
    const key = this.#key;
    let v0 = key[0] as number;
    let v1 = key[1] as number;
    let v2 = (key[2] as number) ^ 0x6c796765;
    let v3 = (key[3] as number) ^ 0x74656462;
    const { length } = text;
    // Two code units a word; the last word holds the odd one and the length, then come the finalising rounds.
    const last = length >> 1;
    const words = this.#words;
    for (let index = 0; index <= last + 4; index++) {
      let word = 0;
      if (index < last) word = text.charCodeAt(index * 2) | (text.charCodeAt(index * 2 + 1) << 16);
      else if (index === last) word = (length << 16) | ((length & 1) === 1 ? text.charCodeAt(length - 1) : 0);
      else if (index === last + 1) v2 ^= 0xee;
      else if (index === last + 4) {
        words[0] = v1 ^ v3;
        words[1] = v0 ^ v2;
        v1 ^= 0xdd;
      }
      v3 ^= word;
      v0 = (v0 + v1) | 0;
      v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0;
      v0 = (v0 << 16) | (v0 >>> 16);
      v2 = (v2 + v3) | 0;
      v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2;
      v0 = (v0 + v3) | 0;
      v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0;
      v2 = (v2 + v1) | 0;
      v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2;
      v2 = (v2 << 16) | (v2 >>> 16);
      v0 ^= word;
    }
    words[2] = v1 ^ v3;
    words[3] = v0 ^ v2;
  }
}

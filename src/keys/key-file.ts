import { readFile } from 'node:fs/promises';
import type { JWK } from './jwk.js';
import { importSigningKey, type SigningKey } from './signing-key.js';

const PEM_BLOCK = /-----BEGIN ([A-Z0-9 ]+)-----[\s\S]*?-----END \1-----/g;

/**
 * The private keys of a file, in its order: PKCS#8 PEM (one block or several), one private JWK, or a JWK set.
 *
 * @throws Error with fixed text and without a cause: what the file holds is secret.
 */
export async function readKeyFile(path: string | URL, signal?: AbortSignal): Promise<SigningKey[]> {
  let text: string;
  try {
    text = await readFile(path, { encoding: 'utf8', signal });
  } catch (error) {
    const { code } = error as { code?: unknown };
    throw new Error(`the key file cannot be read${typeof code === 'string' ? ` (${code})` : ''}`);
  }
  return parseKeys(text).map(importSigningKey);
}

function parseKeys(text: string): (string | JWK)[] {
  if (text.trimStart().startsWith('{')) {
    let parsed: { keys?: unknown };
    try {
      parsed = JSON.parse(text);
    } catch {
      throw new TypeError('the key file is no JSON');
    }
    const keys = Array.isArray(parsed.keys) ? (parsed.keys as JWK[]) : [parsed as JWK];
    if (keys.length === 0) throw new TypeError('the key file has no key');
    return keys;
  }
  const blocks = [...text.matchAll(PEM_BLOCK)];
  if (blocks.length === 0) throw new TypeError('the key file holds neither PKCS#8 PEM nor a JWK');
  if (blocks.some(([, label]) => label !== 'PRIVATE KEY')) {
    throw new TypeError('the key file must hold PKCS#8 ("BEGIN PRIVATE KEY") without a passphrase, and nothing else');
  }
  return blocks.map(([block]) => block);
}

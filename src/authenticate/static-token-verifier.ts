import { createHmac, timingSafeEqual } from 'node:crypto';
import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Identity } from '../identity/ambient.cjs';
import { createIdentity, type IdentityInput } from '../identity/create-identity.js';
import { systemRandom } from '../runtime/random.js';
import type { Verifier } from './verifier.js';

export interface StaticToken {
  /** At least 16 characters that can stand in a header: `A-Z a-z 0-9 - . _ ~ + /` and `=` at the end. */
  readonly token: string;
  /** Whom it speaks for; `subject` and `authId` are needed. It is copied. */
  readonly identity: Identity | IdentityInput;
}

export interface StaticTokenVerifierOptions {
  /** At least one, each once. Two tokens may speak for one identity: that is how a shared one is replaced. */
  readonly tokens: readonly StaticToken[];
  /** Default `static`. It is also the issuer of identities that state none. */
  readonly name?: string;
}

const MIN_LENGTH = 16;

/**
 * Takes tokens that stand in the app's own configuration, e.g. the one secret that all callers shared so far: for
 * migration. Put it first in the chain when such a token may look like another verifier's.
 *
 * Every token is compared with every request's in constant time, by HMACs under a key of this process: neither the place
 * nor the length of a match can be measured.
 *
 * @throws TypeError that lists every problem of the options, without any token.
 */
export function staticTokenVerifier(given: StaticTokenVerifierOptions): Verifier {
  const parser = new OptionsParser('staticTokenVerifier');
  const { tokens, name = 'static' } = parser.known(given, ['tokens', 'name']);
  parser.string('name', name);
  parser.check(Array.isArray(tokens) && tokens.length > 0, 'tokens must be an array with at least one token');
  const key = systemRandom(32);
  const digestOf = (token: string): Buffer => createHmac('sha256', key).update(token).digest();
  const entries: { readonly digest: Buffer; readonly identity: Identity }[] = [];
  for (const [index, item] of (Array.isArray(tokens) ? tokens : []).entries()) {
    const where = `tokens[${index}]`;
    const { token, identity } = parser.known(item as StaticToken, ['token', 'identity'], where);
    if (!parser.check(typeof token === 'string' && token.length >= MIN_LENGTH, `${where}.token is too short`)) continue;
    parser.check(/^[A-Za-z0-9\-._~+/]+=*$/.test(token), `${where}.token has characters that a header cannot carry`);
    const digest = digestOf(token);
    parser.check(!entries.some((entry) => entry.digest.equals(digest)), `${where}.token is that of another entry`);
    try {
      entries.push({ digest, identity: createIdentity(identity, name) });
    } catch (error) {
      parser.problem(`${where}: ${(error as Error).message}`);
    }
  }
  parser.done();

  function identityOf(token: string): Identity | undefined {
    const digest = digestOf(token);
    let found: Identity | undefined;
    for (const entry of entries) {
      if (timingSafeEqual(entry.digest, digest)) found = entry.identity;
    }
    return found;
  }

  return {
    name,
    ignoresSignal: true,
    accepts: ({ scheme, token }) =>
      (scheme === 'bearer' || scheme === 'custom') && token !== undefined && identityOf(token) !== undefined,
    verify({ token = '' }) {
      const identity = identityOf(token);
      if (identity === undefined) throw new AccessError('invalid_token', { reason: 'the token is unknown' });
      return { identity };
    },
  };
}

import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { TokenRegistry } from '../tokens/token-registry.js';
import type { TokenAnswer } from '../tokens/token-resolver.js';
import type { Verified, Verifier } from './verifier.js';

export interface OpaqueTokenVerifierOptions {
  /** From `createTokenRegistry`. Tokens with its prefix are this verifier's. */
  readonly registry: TokenRegistry;
  /** Default `opaque`. It is also the issuer of the identities. */
  readonly name?: string;
}

/**
 * Takes the opaque tokens of a registry. What has no valid checksum is refused without a lookup; what is new costs one
 * lookup and one HMAC. The registry's revocations are asked about every request, cached callers too.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function opaqueTokenVerifier(given: OpaqueTokenVerifierOptions): Verifier {
  const parser = new OptionsParser('opaqueTokenVerifier');
  const { registry, name = 'opaque' } = parser.known(given, ['registry', 'name']);
  parser.string('name', name);
  parser.check(typeof registry?.resolveToken === 'function', 'registry must come from createTokenRegistry');
  parser.done();
  const prefix = `${registry.prefix}_`;
  return {
    name,
    ignoresSignal: true,
    revocations: registry.revocations,
    accepts: ({ scheme, token }) =>
      (scheme === 'bearer' || scheme === 'custom') && token !== undefined && token.startsWith(prefix),
    verify({ token = '' }) {
      const answer = registry.resolveToken(token);
      return 'then' in answer ? answer.then(verified) : verified(answer);
    },
    ready: (signal) => registry.ready(signal),
  };
}

function verified(answer: TokenAnswer): Verified {
  if (!answer.active) throw new AccessError('invalid_token', { reason: answer.reason });
  const { identity, cacheSeconds } = answer;
  return { identity, ...(cacheSeconds === undefined ? {} : { cacheSeconds }) };
}

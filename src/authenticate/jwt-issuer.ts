import type { OptionsParser } from '../errors/options-parser.js';
import { algorithmRule, canonicalAlgorithm, isHmac, JWT_ALGORITHMS, type JwtAlgorithm } from '../keys/jwt-algorithm.js';
import { type KeyOptions, type KeySourceFactory, parseKeyOptions } from '../keys/key-options.js';
import type { KeySource } from '../keys/key-source.js';
import { type ClaimMap, type MappedClaims, parseClaimMap } from './claim-map.js';
import { isForeignType, shortType } from './jwt-header.js';
import type { Identify } from './token-identity.js';
import type { IssuerRules } from './trusted-issuer.js';

/** What may be stated once for several issuers. */
export interface JwtIssuerDefaults {
  /**
   * The only `typ` that is taken, e.g. `at+jwt`: the strict mode, which also demands what RFC 9068 §2.2 does. Default: tokens
   * without `typ`, `JWT` and `at+jwt`. Types that are meant for something else (`dpop+jwt`, `logout+jwt`…) are always refused.
   */
  readonly type?: string;
  /** Seconds by which clocks may differ. Default 5, at most 300. */
  readonly clockToleranceSeconds?: number;
  /** Seconds after `iat` at which a token ends whatever its `exp` says. `iat` is then required. */
  readonly maxTokenAgeSeconds?: number;
  /** Which claims the identity's fields come from. */
  readonly map?: ClaimMap;
  /** The last word about an identity: what it returns replaces fields, but cannot prolong the token. */
  readonly identify?: Identify;
}

/** One issuer, and what its tokens must be. */
export interface JwtIssuerOptions extends JwtIssuerDefaults {
  /** Compared with `iss` byte for byte. */
  readonly issuer: string;
  /** One of these must stand in `aud`. `null` waives the check: then any token of the issuer, for whatever API, gets in. */
  readonly audience: string | readonly string[] | null;
  /** The algorithms that are taken, at least one. HS algorithms never stand beside others. */
  readonly algorithms: readonly JwtAlgorithm[];
  readonly keys: KeyOptions;
}

export const ISSUER_DEFAULTS = ['type', 'clockToleranceSeconds', 'maxTokenAgeSeconds', 'map', 'identify'] as const;
export const ISSUER_OPTIONS = ['issuer', 'audience', 'algorithms', 'keys', ...ISSUER_DEFAULTS] as const;

/** An issuer's options, read. The key source is made when everything else is known to be right. */
export interface ParsedIssuer {
  readonly rules: IssuerRules;
  readonly createKeys: KeySourceFactory;
  readonly mapClaims: (claims: Readonly<Record<string, unknown>>) => MappedClaims;
  readonly identify: JwtIssuerDefaults['identify'];
  /** Kept from a former configuration of the same issuer, if its keys were stated in the same way. */
  readonly keys?: KeySource;
}

/** @param where a prefix for the options' names in messages: empty, or one that ends with a dot. */
export function parseIssuer(parser: OptionsParser, where: string, options: JwtIssuerOptions): ParsedIssuer {
  const issuer = parser.string(`${where}issuer`, options.issuer);
  const algorithms = parseAlgorithms(parser, `${where}algorithms`, options.algorithms);
  const audience = parseAudience(parser, `${where}audience`, options.audience);
  const { type, maxTokenAgeSeconds } = options;
  if (type !== undefined && parser.string(`${where}type`, type) !== '') {
    parser.check(!isForeignType(type), `${where}type names a token that is meant for something else`);
  }
  const maxAge = `${where}maxTokenAgeSeconds`;
  if (maxTokenAgeSeconds !== undefined) parser.number(maxAge, maxTokenAgeSeconds, 0, { min: 1 });
  const clockToleranceSeconds = parser.number(`${where}clockToleranceSeconds`, options.clockToleranceSeconds, 5, {
    max: 300,
  });
  parser.optionalFunction(`${where}identify`, options.identify);
  const mapClaims = parseClaimMap(parser, `${where}map`, options.map);
  const createKeys = parseKeyOptions(parser, `${where}keys`, options.keys, issuer, algorithms);
  return {
    rules: {
      issuer,
      audience,
      algorithms: new Set(algorithms.map(canonicalAlgorithm)),
      type: type === undefined ? undefined : shortType(String(type)),
      clockToleranceSeconds,
      maxTokenAgeSeconds,
    },
    createKeys,
    mapClaims,
    identify: options.identify,
  };
}

export function parseAlgorithms(parser: OptionsParser, name: string, given: unknown): readonly JwtAlgorithm[] {
  if (!Array.isArray(given) || given.length === 0) {
    parser.problem(`${name} must be an array with at least one of ${JWT_ALGORITHMS.join(', ')}`);
    return [];
  }
  const known = given.filter((algorithm) => algorithmRule(algorithm) !== undefined) as JwtAlgorithm[];
  if (known.length < given.length) {
    parser.problem(`${name} may hold ${JWT_ALGORITHMS.join(', ')} only, spelt like this`);
  }
  if (known.some(isHmac) && !known.every(isHmac)) {
    parser.problem(`${name} must not mix HS and asymmetric algorithms (RFC 8725 §2.1)`);
  }
  return known;
}

export function parseAudience(parser: OptionsParser, name: string, given: unknown): readonly string[] | null {
  if (given === null) return null;
  const listed: readonly unknown[] = Array.isArray(given) ? given : [given];
  if (listed.length > 0 && listed.every((audience) => typeof audience === 'string' && audience !== '')) {
    return [...(listed as string[])];
  }
  parser.problem(`${name} must be a string or an array of strings (null waives the check)`);
  return [];
}

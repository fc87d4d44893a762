import { LRUCache } from 'lru-cache';
import { isSignedBy } from '../keys/is-signed-by.js';
import type { JwtAlgorithm } from '../keys/jwt-algorithm.js';
import type { KeySource } from '../keys/key-source.js';
import type { VerificationKey } from '../keys/verification-key.js';
import type { Clock } from '../runtime/clock.js';
import { isPromise } from '../runtime/is-promise.js';
import { type CompactJwt, checkSpelling, invalidToken } from './compact-jwt.js';
import { type ClaimRules, checkAccessTokenClaims, checkClaims, type TokenTimes } from './jwt-claims.js';
import { isWantedType, type JwtHeader, readHeader } from './jwt-header.js';

/** Header segments that are remembered: the tokens of one key have the same. */
const MAX_HEADERS = 64;
const MAX_HEADER_LENGTH = 512;

/** How the tokens of one issuer are verified. */
export interface IssuerRules extends ClaimRules {
  readonly issuer: string;
  readonly algorithms: ReadonlySet<JwtAlgorithm>;
  /** The only media type that is taken, in short form; undefined takes the general ones. */
  readonly type: string | undefined;
}

/** A token whose signature and registered claims hold. */
export interface VerifiedJwt extends TokenTimes {
  readonly claims: Readonly<Record<string, unknown>>;
  readonly keyId: string | undefined;
  /** For how long the decision may be reused; undefined: no bound. */
  readonly cacheSeconds: number | undefined;
}

/** One issuer whose tokens are taken, with its keys. */
export class TrustedIssuer {
  readonly rules: IssuerRules;
  readonly keys: KeySource;
  readonly #clock: Clock;
  readonly #headers = new LRUCache<string, JwtHeader>({ max: MAX_HEADERS });

  constructor(rules: IssuerRules, keys: KeySource, clock: Clock) {
    this.rules = rules;
    this.keys = keys;
    this.#clock = clock;
  }

  /**
   * Verifies a token that names this issuer: at once where the key is known and few others come. Whatever can be refused
   * without a key is refused before one is looked for, so that nothing is fetched for it.
   *
   * @throws AccessError `invalid_token`, or `verifier_unavailable` while the keys cannot be had.
   */
  verify(jwt: CompactJwt): VerifiedJwt | Promise<VerifiedJwt> {
    checkSpelling(jwt);
    if (jwt.claims.iss !== this.rules.issuer) throw invalidToken('the token is of another issuer');
    const { algorithm, kid, type } = this.#header(jwt.header);
    if (!this.rules.algorithms.has(algorithm)) throw invalidToken('the algorithm is not on the list');
    if (!isWantedType(type, this.rules.type))
      throw invalidToken('the token is of a type that is meant for something else');
    const times = checkClaims(jwt.claims, this.rules, this.#clock.now() / 1_000);
    if (this.rules.type === 'at+jwt') checkAccessTokenClaims(jwt.claims);
    // A token that is bound to a key is worth nothing to whoever only shows it (RFC 7800 §3.1), and nothing here checks more.
    if (Object.hasOwn(jwt.claims, 'cnf') && jwt.claims.cnf !== null) {
      throw invalidToken('the token is bound to a key, and nothing here checks that');
    }
    const found = this.keys.find(algorithm, kid);
    if (isPromise(found)) return found.then((key) => this.#checkSignature(jwt, key, times));
    return this.#checkSignature(jwt, found, times);
  }

  #checkSignature(
    jwt: CompactJwt,
    key: VerificationKey | undefined,
    times: TokenTimes,
  ): VerifiedJwt | Promise<VerifiedJwt> {
    if (key === undefined) throw invalidToken('the issuer has no such key');
    const cacheSeconds = this.keys.cacheSeconds();
    const verified = { claims: jwt.claims, ...times, keyId: key.keyId, cacheSeconds };
    const settle = (isSigned: boolean): VerifiedJwt => {
      if (isSigned !== true) throw invalidToken('the signature does not match');
      return verified;
    };
    const isSigned = isSignedBy(key, jwt.token.slice(0, -1 - jwt.signature.length), jwt.signature);
    return isPromise(isSigned) ? isSigned.then(settle) : settle(isSigned);
  }

  #header(segment: string): JwtHeader {
    const known = this.#headers.get(segment);
    if (known !== undefined) return known;
    const header = readHeader(segment);
    if (segment.length <= MAX_HEADER_LENGTH) this.#headers.set(segment, header);
    return header;
  }
}

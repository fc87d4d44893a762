import { OAuthError } from '../errors/oauth-error.js';
import type { Identity } from '../identity/ambient.cjs';
import { createJwtSigner } from '../keys/jwt-signer.js';
import type { KeyRing } from '../keys/key-ring.js';
import type { Signer } from '../keys/signing-key.js';
import type { Revocations } from '../revocation/revocations.js';
import type { Clock } from '../runtime/clock.js';
import { READY_WAIT_MS } from '../runtime/lifecycle.js';
import type { Random } from '../runtime/random.js';
import type { ClaimNames } from './claim-names.js';
import type { Grant } from './grant.js';

export interface MintSettings {
  readonly issuer: string;
  readonly audiences: readonly string[];
  readonly claimNames: Readonly<Record<keyof ClaimNames, string>>;
  readonly keyRing: Pick<KeyRing, 'signer'>;
  readonly revocations: Pick<Revocations, 'check' | 'ready'>;
  readonly clock: Clock;
  readonly random: Random;
}

/** A token and what it holds. Instants are epoch seconds. */
export interface MintedToken {
  readonly token: string;
  readonly tokenId: string;
  readonly issuedAt: number;
  readonly expiresAt: number;
}

/** 128 bits: no two tokens of an issuer share an id. */
const TOKEN_ID_BYTES = 16;
const POOLED_IDS = 64;
/** Milliseconds between two looks at the clock while a token waits for the second to be over. */
const CLOCK_LOOK_MS = 50;

/** Makes signed access tokens (RFC 9068) of grants. Nothing is stored. */
export class TokenMint {
  readonly #settings: MintSettings;
  readonly #sign = createJwtSigner('at+jwt');
  /** Randomness ahead of use: asking for it is dearer than using it. */
  #pool: Uint8Array = new Uint8Array(0);
  #used = 0;

  constructor(settings: MintSettings) {
    this.#settings = settings;
  }

  /**
   * @param notAfter epoch seconds that the token must not outlive.
   * @throws OAuthError `temporarily_unavailable` while nothing can be signed or revocations are unknown;
   *   `unauthorized_client` when whatever would be issued is revoked already; `invalid_request` when `notAfter` has passed.
   */
  async mint(grant: Grant, notAfter = Number.POSITIVE_INFINITY): Promise<MintedToken> {
    const { issuer, audiences, claimNames } = this.#settings;
    const tokenId = this.#tokenId();
    const { signer, issuedAt } = this.#tryNow(grant, tokenId) ?? (await this.#pastWatermarks(grant, tokenId));
    const expiresAt = Math.min(issuedAt + grant.ttlSeconds, Math.floor(notAfter));
    if (expiresAt <= issuedAt)
      throw new OAuthError('invalid_request', 'what the token would be issued from has expired');
    const audience = grant.audience.length === 0 ? audiences : grant.audience;
    // For client_credentials the subject is the client (RFC 9068 §2.2).
    const claims = {
      iss: issuer,
      sub: grant.clientId,
      aud: audience.length === 1 ? audience[0] : audience,
      client_id: grant.clientId,
      iat: issuedAt,
      exp: expiresAt,
      jti: tokenId,
      [claimNames.scopes]: grant.scopes.length === 0 ? undefined : grant.scopes.join(' '),
      [claimNames.tenant]: grant.tenant,
      [claimNames.resources]: grant.resources,
      [claimNames.serviceAccount]: true,
      act: grant.actor,
    };
    try {
      return { token: await this.#sign(claims, signer), tokenId, issuedAt, expiresAt };
    } catch {
      // The error of a key management service may say more than a caller should read.
      throw unavailable('signing failed');
    }
  }

  #tokenId(): string {
    if (this.#used >= this.#pool.length) {
      this.#pool = this.#settings.random(TOKEN_ID_BYTES * POOLED_IDS);
      this.#used = 0;
    }
    const bytes = this.#pool.subarray(this.#used, this.#used + TOKEN_ID_BYTES);
    this.#used += TOKEN_ID_BYTES;
    // A source that gave less than it was asked for.
    if (bytes.length < TOKEN_ID_BYTES) throw unavailable('there is no randomness');
    const id = base64url(bytes);
    bytes.fill(0);
    return id;
  }

  #signer(): Signer {
    try {
      return this.#settings.keyRing.signer();
    } catch {
      throw unavailable('the key ring has no key to sign with');
    }
  }

  #now(): number {
    return Math.floor(this.#settings.clock.now() / 1_000);
  }

  /** The key and the second of a token that would be accepted if it were issued now; undefined when it would not. */
  #tryNow(grant: Grant, tokenId: string): Moment | undefined {
    const { revocations } = this.#settings;
    const moment = { signer: this.#signer(), issuedAt: this.#now() };
    const answer = revocations.check(this.#candidate(grant, tokenId, moment));
    return answer === 'live' ? moment : undefined;
  }

  /**
   * "Nothing issued up to T holds" refuses what is issued in the second of T, too. So the token waits until the clock is
   * past T. A later `iat` is not stamped instead: it would survive a second revocation in the same second.
   */
  async #pastWatermarks(grant: Grant, tokenId: string): Promise<Moment> {
    const { clock, revocations } = this.#settings;
    // Also where the view of what is revoked is not there yet.
    await revocations.ready().catch(() => undefined);
    const first = this.#now();
    for (let waited = 0; waited < READY_WAIT_MS; ) {
      const moment = this.#tryNow(grant, tokenId);
      if (moment !== undefined) return moment;
      if (this.#now() > first + 1) break;
      const pause = Math.min(CLOCK_LOOK_MS, Math.max(1, 1_000 - (clock.now() % 1_000)));
      await new Promise((resolve) => setTimeout(resolve, pause));
      waited += pause;
    }
    const candidate = this.#candidate(grant, tokenId, { signer: this.#signer(), issuedAt: this.#now() });
    if (revocations.check(candidate) === 'unknown') throw unavailable('it is not known what is revoked');
    throw new OAuthError('unauthorized_client', 'the client is revoked');
  }

  /** Asked about like any identity: the middleware's own question. */
  #candidate(grant: Grant, tokenId: string, { signer, issuedAt }: Moment): Identity {
    const { issuer } = this.#settings;
    return {
      subject: { kind: 'service', id: grant.clientId },
      issuer,
      authId: grant.clientId,
      ...(grant.tenant === undefined ? {} : { tenant: grant.tenant }),
      clientId: grant.clientId,
      tokenId,
      keyId: signer.kid,
      scopes: NONE,
      groups: [],
      issuedAt,
      verifier: 'issuer',
      claims: {},
    };
  }
}

/** What signs, and when: one snapshot per token. */
interface Moment {
  readonly signer: Signer;
  readonly issuedAt: number;
}

const NONE: ReadonlySet<string> = new Set();

function unavailable(reason: string): OAuthError {
  return new OAuthError('temporarily_unavailable', 'no token can be issued at the moment', { reason });
}

function base64url(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64url');
}

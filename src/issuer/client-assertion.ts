import { checkSpelling, peekJwt } from '../authenticate/compact-jwt.js';
import { checkClaims } from '../authenticate/jwt-claims.js';
import { readHeader } from '../authenticate/jwt-header.js';
import { isAccessError } from '../errors/access-error.js';
import { OAuthError } from '../errors/oauth-error.js';
import { isSignedBy } from '../keys/is-signed-by.js';
import type { Clock } from '../runtime/clock.js';
import { type ReplayStore, takeOnce } from './replay-store.js';
import type { ServiceClient } from './service-client.js';

export interface AssertionSettings {
  readonly issuer: string;
  readonly clients: ReadonlyMap<string, ServiceClient>;
  readonly replayStore: ReplayStore;
  readonly clock: Clock;
}

/** Seconds that an assertion may still live: its id must be remembered for as long. */
const MAX_LIFETIME_SECONDS = 3_600;
const CLOCK_TOLERANCE_SECONDS = 5;
const MAX_JTI_LENGTH = 256;

/** `private_key_jwt`: assertions by which clients authenticate (RFC 7523 §3, RFC 10070). */
export class ClientAssertions {
  readonly #settings: AssertionSettings;

  constructor(settings: AssertionSettings) {
    this.#settings = settings;
  }

  /**
   * The client that signed the assertion.
   *
   * @param clientId the parameter `client_id`, which may stand beside it.
   * @throws OAuthError `invalid_client`; `temporarily_unavailable` when the replay store fails.
   */
  async client(assertion: string, clientId: string | undefined): Promise<ServiceClient> {
    const { issuer, clients, clock } = this.#settings;
    const jwt = peekJwt(assertion);
    if (jwt === undefined) throw refused('the assertion is no JWT');
    const { iss, sub, aud, jti } = jwt.claims;
    const client = typeof sub === 'string' ? clients.get(sub) : undefined;
    if (client?.keys === undefined) throw refused('the assertion names no client with keys');
    if (iss !== sub) throw refused('iss and sub of the assertion differ');
    if (clientId !== undefined && clientId !== sub) throw refused('client_id is not the sub of the assertion');
    // RFC 10070: solely the issuer. The URL of the endpoint would let one server use the assertion at another.
    const audience: unknown = Array.isArray(aud) && aud.length === 1 ? aud[0] : aud;
    if (audience !== issuer) throw refused('the audience of the assertion is not solely this issuer');
    if (typeof jti !== 'string' || jti === '' || jti.length > MAX_JTI_LENGTH) throw refused('the assertion has no jti');
    let expiresAt: number;
    try {
      checkSpelling(jwt);
      const { algorithm, kid, type } = readHeader(jwt.header);
      if (type !== undefined && type !== 'client-authentication+jwt') throw refused('the assertion is of another type');
      const rules = {
        audience: [issuer],
        clockToleranceSeconds: CLOCK_TOLERANCE_SECONDS,
        maxTokenAgeSeconds: undefined,
      };
      const now = clock.now() / 1_000;
      expiresAt = checkClaims(jwt.claims, rules, now).expiresAt;
      if (expiresAt > now + MAX_LIFETIME_SECONDS) throw refused('the assertion lives too long');
      const key = client.keys.find(algorithm, kid);
      if (key === undefined) throw refused('the client has no such key');
      const input = assertion.slice(0, -1 - jwt.signature.length);
      if (!(await isSignedBy(key, input, jwt.signature)))
        throw refused('the signature of the assertion does not match');
    } catch (error) {
      throw isAccessError(error) ? refused(error.reason ?? 'the assertion is malformed') : error;
    }
    // After everything else: what is refused for another reason uses nothing up, and only the client itself fills the store.
    if (!(await this.#take(JSON.stringify([client.clientId, jti]), expiresAt + CLOCK_TOLERANCE_SECONDS))) {
      throw refused('the assertion was used before');
    }
    return client;
  }

  async #take(id: string, expiresAt: number): Promise<boolean> {
    try {
      return await takeOnce(this.#settings.replayStore, id, expiresAt);
    } catch {
      throw new OAuthError('temporarily_unavailable', 'client assertions cannot be checked at the moment', {
        reason: 'the replay store failed',
      });
    }
  }
}

function refused(reason: string): OAuthError {
  return new OAuthError('invalid_client', 'client authentication failed', { reason });
}

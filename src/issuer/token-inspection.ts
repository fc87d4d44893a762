import type { IncomingMessage } from 'node:http';
import type { Verifier } from '../authenticate/verifier.js';
import { VerifierChain } from '../authenticate/verifier-chain.js';
import { isAccessError } from '../errors/access-error.js';
import { OAuthError } from '../errors/oauth-error.js';
import type { Identity } from '../identity/ambient.cjs';
import type { Revocations } from '../revocation/revocations.js';
import type { Clock } from '../runtime/clock.js';
import type { ServiceClient } from './service-client.js';

/** Decides about tokens that are shown to the issuer, by the very chain that the middleware decides with. */
export class TokenInspection {
  readonly #issuer: string;
  readonly #chain: VerifierChain;

  constructor(issuer: string, verifiers: readonly Verifier[], revocations: Revocations, clock: Clock) {
    this.#issuer = issuer;
    this.#chain = new VerifierChain(verifiers, revocations, clock);
  }

  /**
   * The identity behind a live token; undefined for one that the middleware would refuse.
   *
   * @throws OAuthError `temporarily_unavailable` when that cannot be told at the moment.
   */
  async identity(req: IncomingMessage, token: string): Promise<Identity | undefined> {
    const presented = { req, scheme: 'bearer', token } as const;
    try {
      const verifier = this.#chain.verifierOf(presented);
      if (verifier === undefined) return undefined;
      return (await this.#chain.decide(verifier, presented)).identity;
    } catch (error) {
      if (isAccessError(error) && error.status < 500) return undefined;
      throw new OAuthError('temporarily_unavailable', 'tokens cannot be checked at the moment', {
        reason: isAccessError(error) ? error.reason : undefined,
      });
    }
  }

  /** Whether this issuer signed the token: any other live one is the registry's. */
  isOurs(identity: Identity): boolean {
    return identity.issuer === this.#issuer;
  }

  /** Whether a client may be told about a token. */
  maySee(client: ServiceClient, identity: Identity): boolean {
    if (client.introspects === 'all' || this.isOwn(client, identity)) return true;
    return client.introspects === 'tenant' && isSameTenant(client, identity);
  }

  /** Whether a client may revoke a token: its own, and the registry's within its tenant. */
  mayRevoke(client: ServiceClient, identity: Identity): boolean {
    return this.isOwn(client, identity) || (!this.isOurs(identity) && client.tenant === undefined);
  }

  isOwn(client: ServiceClient, identity: Identity): boolean {
    return this.isOurs(identity) ? identity.clientId === client.clientId : isSameTenant(client, identity);
  }
}

function isSameTenant(client: ServiceClient, identity: Identity): boolean {
  return client.tenant !== undefined && client.tenant === identity.tenant;
}

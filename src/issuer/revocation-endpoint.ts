import type { IncomingMessage } from 'node:http';
import { peekJwt } from '../authenticate/compact-jwt.js';
import { OAuthError } from '../errors/oauth-error.js';
import type { Identity } from '../identity/ambient.cjs';
import type { Revocations } from '../revocation/revocations.js';
import type { ClientAuthentication } from './client-authentication.js';
import type { Form } from './read-form.js';
import { type Answer, credentialsOf } from './token-endpoint.js';
import type { TokenInspection } from './token-inspection.js';

export interface RevocationSettings {
  readonly authentication: ClientAuthentication;
  readonly inspection: TokenInspection;
  readonly revocations: Revocations;
  /** Revokes a token of the registry; undefined without a registry. */
  readonly revokeOpaque: ((tokenId: string) => Promise<unknown>) | undefined;
  /** Whose tokens are taken for exchange, and cannot be revoked here. */
  readonly foreignIssuers: readonly string[];
}

/** `POST /oauth/revoke` (RFC 7009). */
export class RevocationEndpoint {
  readonly #settings: RevocationSettings;

  constructor(settings: RevocationSettings) {
    this.#settings = settings;
  }

  /** @throws OAuthError. */
  async answer(req: IncomingMessage, form: Form): Promise<Answer> {
    const { authentication, inspection, foreignIssuers } = this.#settings;
    const client = await authentication.client(req, credentialsOf(form));
    // `token_type_hint` is only where to look first: every kind is looked for anyway.
    const token = form.get('token');
    if (token === undefined) throw new OAuthError('invalid_request', 'token is missing');
    if (foreignIssuers.includes(String(peekJwt(token)?.claims.iss))) {
      throw new OAuthError('unsupported_token_type', 'tokens of a platform are revoked there');
    }
    const identity = await inspection.identity(req, token);
    // RFC 7009 §2.2: what is invalid or revoked already needs nothing more.
    if (identity === undefined) return {};
    if (!inspection.mayRevoke(client, identity)) {
      throw new OAuthError('unauthorized_client', 'the token was not issued to this client');
    }
    try {
      await this.#revoke(identity);
    } catch {
      throw new OAuthError('temporarily_unavailable', 'the token still lives: try again', {
        reason: 'the revocation could not be stored',
      });
    }
    return {};
  }

  async #revoke(identity: Identity): Promise<void> {
    const { inspection, revocations, revokeOpaque } = this.#settings;
    const { tokenId, issuer, expiresAt } = identity;
    if (tokenId === undefined) throw new Error('the token has no id');
    if (inspection.isOurs(identity)) await revocations.revoke({ tokenId, issuer }, { expiresAt });
    else if (revokeOpaque !== undefined) await revokeOpaque(tokenId);
  }
}

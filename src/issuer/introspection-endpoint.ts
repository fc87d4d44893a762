import type { IncomingMessage } from 'node:http';
import { OAuthError } from '../errors/oauth-error.js';
import type { Identity } from '../identity/ambient.cjs';
import type { ClientAuthentication } from './client-authentication.js';
import type { Form } from './read-form.js';
import { type Answer, credentialsOf } from './token-endpoint.js';
import type { TokenInspection } from './token-inspection.js';

export interface IntrospectionSettings {
  readonly authentication: ClientAuthentication;
  readonly inspection: TokenInspection;
}

/** RFC 7662 §2.2: nothing more, so that nothing is learned about a token that is not live or not the caller's. */
const INACTIVE: Answer = { active: false };

/** `POST /oauth/introspect` (RFC 7662). */
export class IntrospectionEndpoint {
  readonly #settings: IntrospectionSettings;

  constructor(settings: IntrospectionSettings) {
    this.#settings = settings;
  }

  /** @throws OAuthError. */
  async answer(req: IncomingMessage, form: Form): Promise<Answer> {
    const { authentication, inspection } = this.#settings;
    const client = await authentication.client(req, credentialsOf(form));
    const token = form.get('token');
    if (token === undefined) throw new OAuthError('invalid_request', 'token is missing');
    const identity = await inspection.identity(req, token);
    return identity !== undefined && inspection.maySee(client, identity) ? describe(identity) : INACTIVE;
  }
}

function describe(identity: Identity): Answer {
  const { subject, scopes, groups, resources, claims } = identity;
  return {
    active: true,
    token_type: 'Bearer',
    iss: identity.issuer,
    sub: subject.id,
    aud: claims.aud,
    client_id: identity.clientId,
    scope: scopes.size === 0 ? undefined : [...scopes].join(' '),
    iat: identity.issuedAt,
    exp: identity.expiresAt,
    jti: identity.tokenId,
    auth_id: identity.authId,
    tenant_id: identity.tenant,
    plan: identity.plan,
    groups: groups.length === 0 ? undefined : groups,
    resources,
    act: identity.actor === undefined ? undefined : claims.act,
    is_service_account: subject.kind === 'service' ? true : undefined,
  };
}

import type { IncomingMessage } from 'node:http';
import { OAuthError } from '../errors/oauth-error.js';
import type { Resource } from '../identity/ambient.cjs';
import { isScopeToken } from '../identity/create-identity.js';
import type { ClientAuthentication } from './client-authentication.js';
import { decideGrant, type Grant } from './grant.js';
import { CLIENT_CREDENTIALS } from './issuer-metadata.js';
import type { Form } from './request-body.js';
import { readTargets } from './resource-indicator.js';
import type { TokenMint } from './token-mint.js';

/** What an endpoint answers with 200. */
export type Answer = Readonly<Record<string, unknown>>;

export interface TokenEndpointSettings {
  readonly authentication: ClientAuthentication;
  readonly mint: TokenMint;
  readonly audiences: readonly string[];
  readonly resourceType: string | undefined;
}

/** `POST /oauth/token` (RFC 6749 §4.4, RFC 8707). */
export class TokenEndpoint {
  readonly #settings: TokenEndpointSettings;

  constructor(settings: TokenEndpointSettings) {
    this.#settings = settings;
  }

  /** @throws OAuthError. */
  async answer(req: IncomingMessage, form: Form): Promise<Answer> {
    const grantType = form.get('grant_type');
    if (grantType === undefined) throw new OAuthError('invalid_request', 'grant_type is missing');
    const client = await this.#settings.authentication.client(req, credentialsOf(form));
    if (grantType !== CLIENT_CREDENTIALS) {
      throw new OAuthError('unsupported_grant_type', 'this grant type is not supported');
    }
    const scopes = readScopes(form);
    const grant = decideGrant(client, { scopes, ...this.targets(form) });
    return this.#tokenAnswer(grant, scopes);
  }

  /** What the form names: `resource` (RFC 8707), and a bare `resource_id`. */
  targets(form: Form): { audience: readonly string[]; resources: readonly Resource[] } {
    const { audiences, resourceType } = this.#settings;
    const { audience, resources } = readTargets(form.all('resource'), audiences);
    const id = form.get('resource_id');
    return { audience, resources: id === undefined ? resources : [...resources, bareResource(id, resourceType)] };
  }

  async #tokenAnswer(grant: Grant, asked: readonly string[] | undefined): Promise<Answer> {
    const { token, issuedAt, expiresAt } = await this.#settings.mint.mint(grant);
    return {
      access_token: token,
      token_type: 'Bearer',
      expires_in: expiresAt - issuedAt,
      ...(asked === undefined || asked.length !== grant.scopes.length ? { scope: grant.scopes.join(' ') } : {}),
    };
  }
}

/** The client credentials of a form. */
export function credentialsOf(form: Form) {
  return {
    clientId: form.get('client_id'),
    clientSecret: form.get('client_secret'),
    clientAssertion: form.get('client_assertion'),
    clientAssertionType: form.get('client_assertion_type'),
  };
}

/** The scopes of a form (RFC 6749 §3.3); undefined when none is named. @throws OAuthError `invalid_scope`. */
export function readScopes(form: Form): readonly string[] | undefined {
  const scope = form.get('scope');
  if (scope === undefined) return undefined;
  const scopes = scope.split(' ').filter((item) => item !== '');
  if (scopes.length === 0 || !scopes.every(isScopeToken))
    throw new OAuthError('invalid_scope', 'the scope is malformed');
  return scopes;
}

/** A resource that is named by its id alone. @throws OAuthError `invalid_target` where ids alone mean nothing. */
export function bareResource(id: string, resourceType: string | undefined): Resource {
  if (resourceType === undefined) throw new OAuthError('invalid_target', 'resource_id is not supported here');
  return { type: resourceType, id };
}

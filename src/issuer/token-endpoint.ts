import type { IncomingMessage } from 'node:http';
import { OAuthError } from '../errors/oauth-error.js';
import type { Resource } from '../identity/ambient.cjs';
import { isScopeToken } from '../identity/create-identity.js';
import type { ClientAuthentication } from './client-authentication.js';
import { decideGrant, type Grant } from './grant.js';
import { CLIENT_CREDENTIALS, TOKEN_EXCHANGE } from './issuer-metadata.js';
import type { Form } from './read-form.js';
import { readTargets } from './read-targets.js';
import type { TokenMint } from './token-mint.js';
import type { WorkloadExchange } from './workload-exchange.js';

/** What an endpoint answers with 200. */
export type Answer = Readonly<Record<string, unknown>>;

export interface TokenEndpointSettings {
  readonly authentication: ClientAuthentication;
  readonly mint: TokenMint;
  readonly audiences: readonly string[];
  readonly resourceType: string | undefined;
  readonly workloads: WorkloadExchange | undefined;
}

const TOKEN_TYPE = 'urn:ietf:params:oauth:token-type:';
const ACCESS_TOKEN = `${TOKEN_TYPE}access_token`;
/** RFC 8693 §3: what a platform's token may be called. */
const SUBJECT_TYPES: readonly (string | undefined)[] = ['jwt', 'id_token', 'access_token'].map(
  (type) => TOKEN_TYPE + type,
);
const REQUESTED_TYPES: readonly (string | undefined)[] = [undefined, ACCESS_TOKEN, `${TOKEN_TYPE}jwt`];

/** `POST /oauth/token` (RFC 6749 §4.4, RFC 8693, RFC 8707). */
export class TokenEndpoint {
  readonly #settings: TokenEndpointSettings;

  constructor(settings: TokenEndpointSettings) {
    this.#settings = settings;
  }

  /** @throws OAuthError. */
  async answer(req: IncomingMessage, form: Form): Promise<Answer> {
    const grantType = form.get('grant_type');
    if (grantType === undefined) throw new OAuthError('invalid_request', 'grant_type is missing');
    if (grantType === TOKEN_EXCHANGE && this.#settings.workloads !== undefined) {
      return this.#exchange(req, form, this.#settings.workloads);
    }
    const client = await this.#settings.authentication.client(req, credentialsOf(form));
    if (grantType !== CLIENT_CREDENTIALS) {
      throw new OAuthError('unsupported_grant_type', 'this grant type is not supported');
    }
    const scopes = readScopes(form);
    const grant = decideGrant(client, { scopes, ...this.targets(form) });
    return this.#tokenAnswer(grant, scopes);
  }

  /** Token exchange (RFC 8693): a platform's token instead of a secret. */
  async #exchange(req: IncomingMessage, form: Form, workloads: WorkloadExchange): Promise<Answer> {
    const subjectToken = form.get('subject_token');
    if (subjectToken === undefined || !SUBJECT_TYPES.includes(form.get('subject_token_type'))) {
      throw new OAuthError('invalid_request', 'subject_token and a supported subject_token_type are needed');
    }
    if (form.get('actor_token') !== undefined || form.get('actor_token_type') !== undefined) {
      throw new OAuthError('invalid_request', 'actor tokens are not supported');
    }
    if (!REQUESTED_TYPES.includes(form.get('requested_token_type'))) {
      throw new OAuthError('invalid_request', 'only access tokens are issued');
    }
    const credentials = credentialsOf(form);
    const { clientId, clientSecret, clientAssertion, clientAssertionType } = credentials;
    const shown = [req.headers.authorization, clientSecret, clientAssertion, clientAssertionType];
    const isAuthenticating = shown.some((credential) => credential !== undefined);
    const client = isAuthenticating ? await this.#settings.authentication.client(req, credentials) : undefined;
    const { grantor, notAfter } = await workloads.admit(req, subjectToken, form.get('policy'));
    // The policy says which client the workload is. Whoever says to be another one is not helped.
    if ((client?.clientId ?? clientId ?? grantor.clientId) !== grantor.clientId) {
      throw new OAuthError('unauthorized_client', 'the policy does not grant this client');
    }
    const scopes = readScopes(form);
    const targets = this.targets(form);
    const named = form.all('audience');
    if (!named.every((audience) => this.#settings.audiences.includes(audience))) {
      throw new OAuthError('invalid_target', 'an audience that was named is unknown');
    }
    const grant = decideGrant(grantor, {
      scopes,
      resources: targets.resources,
      audience: [...new Set([...targets.audience, ...named])],
    });
    return { ...(await this.#tokenAnswer(grant, scopes, notAfter)), issued_token_type: ACCESS_TOKEN };
  }

  /** What the form names: `resource` (RFC 8707), and a bare `resource_id`. */
  targets(form: Form): { audience: readonly string[]; resources: readonly Resource[] } {
    const { audiences, resourceType } = this.#settings;
    const { audience, resources } = readTargets(form.all('resource'), audiences);
    const id = form.get('resource_id');
    return { audience, resources: id === undefined ? resources : [...resources, bareResource(id, resourceType)] };
  }

  async #tokenAnswer(grant: Grant, asked: readonly string[] | undefined, notAfter?: number): Promise<Answer> {
    const { token, issuedAt, expiresAt } = await this.#settings.mint.mint(grant, notAfter);
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

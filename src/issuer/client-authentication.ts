import { isUtf8 } from 'node:buffer';
import type { IncomingMessage } from 'node:http';
import { OAuthError } from '../errors/oauth-error.js';
import { parseAuthorization, repeatsAuthorization } from '../http/authorization.js';
import type { ClientAssertions } from './client-assertion.js';
import { matchesSecret } from './client-secret.js';
import type { ServiceClient } from './service-client.js';

/** Client credentials in a body: RFC 6749 §2.3.1, RFC 7521 §4.2. */
export interface BodyCredentials {
  readonly clientId?: string;
  readonly clientSecret?: string;
  readonly clientAssertion?: string;
  readonly clientAssertionType?: string;
}

/** The reason of a refusal that shows nothing: it is answered with a challenge. */
export const NO_CREDENTIALS = 'no client authentication';

const ASSERTION_TYPE = 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer';

/** Tells which configured client sends a request: `client_secret_basic`, `client_secret_post` or `private_key_jwt`. */
export class ClientAuthentication {
  readonly #clients: ReadonlyMap<string, ServiceClient>;
  readonly #assertions: ClientAssertions;

  constructor(clients: ReadonlyMap<string, ServiceClient>, assertions: ClientAssertions) {
    this.#clients = clients;
    this.#assertions = assertions;
  }

  /**
   * The client that was authenticated.
   *
   * @throws OAuthError `invalid_client`, or `invalid_request` for two ways at once.
   */
  async client(req: IncomingMessage, body: BodyCredentials): Promise<ServiceClient> {
    const basic = basicCredentials(req);
    const { clientId, clientSecret, clientAssertion, clientAssertionType } = body;
    const ways = [basic, clientSecret, clientAssertion ?? clientAssertionType].filter((way) => way !== undefined);
    if (ways.length > 1) {
      throw new OAuthError('invalid_request', 'the client authenticates in more than one way');
    }
    if (basic !== undefined) {
      if (clientId !== undefined && clientId !== basic.id) {
        throw new OAuthError('invalid_request', 'the request names two clients');
      }
      return this.#bySecret(basic.id, basic.secret);
    }
    if (clientAssertion !== undefined && clientAssertionType === ASSERTION_TYPE) {
      return this.#assertions.client(clientAssertion, clientId);
    }
    if (clientAssertion !== undefined || clientAssertionType !== undefined) {
      throw new OAuthError('invalid_request', 'client_assertion and its type must stand together, and be a JWT');
    }
    if (clientId === undefined || clientSecret === undefined) throw refused(NO_CREDENTIALS);
    return this.#bySecret(clientId, clientSecret);
  }

  #bySecret(id: string, secret: string): ServiceClient {
    const client = this.#clients.get(id);
    if (!matchesSecret(secret, client?.secrets ?? []) || client === undefined) {
      throw refused(client === undefined ? 'unknown client' : 'wrong secret');
    }
    return client;
  }
}

/** RFC 7617 §2 with RFC 6749 §2.3.1: decode, split at the first colon, and form-decode each half. */
function basicCredentials(req: IncomingMessage): { id: string; secret: string } | undefined {
  const { authorization } = req.headers;
  if (authorization === undefined) return undefined;
  if (repeatsAuthorization(req.rawHeaders)) {
    throw new OAuthError('invalid_request', 'the Authorization header stands more than once');
  }
  const parsed = parseAuthorization(authorization);
  if (parsed?.scheme !== 'basic' || parsed.token === undefined) throw refused('the Authorization header is not Basic');
  const bytes = Buffer.from(parsed.token, 'base64');
  const text = isUtf8(bytes) ? bytes.toString('utf8') : '';
  const colon = text.indexOf(':');
  if (colon === -1) throw refused('malformed Basic credentials');
  const id = formDecode(text.slice(0, colon));
  const secret = formDecode(text.slice(colon + 1));
  if (id === undefined || secret === undefined) throw refused('Basic credentials that are not form-encoded');
  return { id, secret };
}

function formDecode(text: string): string | undefined {
  try {
    return decodeURIComponent(text.replaceAll('+', ' '));
  } catch {
    return undefined;
  }
}

/** One description for all: an answer does not tell whether a client exists. */
function refused(reason: string): OAuthError {
  return new OAuthError('invalid_client', 'client authentication failed', { reason });
}

import type { IncomingMessage, ServerResponse } from 'node:http';
import { isOAuthError, OAuthError } from '../errors/oauth-error.js';
import type { Next } from '../http/middleware.js';
import { answerJson } from '../http/problem.js';
import type { KeyRing } from '../keys/key-ring.js';
import { NO_CREDENTIALS } from './client-authentication.js';
import { PATHS } from './issuer-metadata.js';
import type { Answer } from './token-endpoint.js';

/** A Connect middleware that also stands alone behind `http.createServer`. */
export type IssuerHandler = (req: IncomingMessage, res: ServerResponse, next?: Next) => void;

export interface IssuerHandlerSettings {
  readonly issuer: string;
  readonly keyRing: Pick<KeyRing, 'jwks'>;
  readonly metadata: Answer;
  readonly endpoints: Readonly<
    Record<'token' | 'introspection' | 'revocation' | 'serviceTokens', (req: IncomingMessage) => Promise<Answer>>
  >;
  readonly realm: string;
  readonly onReject: ((error: OAuthError, req: IncomingMessage) => void) | undefined;
}

/** RFC 6749 §5.1: on every answer, errors too. */
const NO_STORE = { 'cache-control': 'no-store', pragma: 'no-cache' };
const PUBLIC = { 'cache-control': 'public, max-age=300' };
/** Seconds that a client is told to wait when something is out of reach. */
const RETRY_AFTER = '5';

interface Route {
  readonly method: 'GET' | 'POST';
  answer(req: IncomingMessage, res: ServerResponse): void;
}

/** The routes of an issuer, by path. */
export function createIssuerHandler(settings: IssuerHandlerSettings): IssuerHandler {
  const { endpoints, metadata, keyRing } = settings;
  const routes = new Map<string, Route>();
  const base = new URL(settings.issuer).pathname.replace(/\/$/, '');
  // The app may mount the handler at the issuer's path, which is then cut off, or at the root.
  const add = (path: string, route: Route): void => {
    routes.set(path, route);
    routes.set(`${base}${path}`, route);
  };
  for (const name of ['token', 'introspection', 'revocation', 'serviceTokens'] as const) {
    add(PATHS[name], { method: 'POST', answer: (req, res) => answerPost(settings, name, endpoints[name], req, res) });
  }
  add(PATHS.jwks, { method: 'GET', answer: (_, res) => answerJson(res, 200, PUBLIC, keyRing.jwks()) });
  const describe: Route = { method: 'GET', answer: (_, res) => answerJson(res, 200, PUBLIC, metadata) };
  add(PATHS.metadata, describe);
  // RFC 8414 §3.1: the well-known part goes between the host and the issuer's path.
  routes.set(`${PATHS.metadata}${base}`, describe);

  return function handleIssuer(req, res, next) {
    const url = req.url ?? '/';
    const query = url.indexOf('?');
    const route = routes.get(query === -1 ? url : url.slice(0, query));
    if (route === undefined) {
      if (next !== undefined) return next();
      return answerJson(res, 404, NO_STORE, { error: 'not_found' });
    }
    if (req.method !== route.method && !(route.method === 'GET' && req.method === 'HEAD')) {
      const allow = route.method === 'GET' ? 'GET, HEAD' : 'POST';
      return answerJson(res, 405, { ...NO_STORE, allow }, { error: 'invalid_request' });
    }
    route.answer(req, res);
  };
}

function answerPost(
  settings: IssuerHandlerSettings,
  name: string,
  endpoint: (req: IncomingMessage) => Promise<Answer>,
  req: IncomingMessage,
  res: ServerResponse,
): void {
  endpoint(req).then(
    (answer) => answerJson(res, 200, NO_STORE, answer),
    (cause: unknown) => {
      const error = isOAuthError(cause)
        ? cause
        : new OAuthError('server_error', 'the request failed', {
            status: 500,
            reason: 'something threw that is no OAuthError',
          });
      try {
        settings.onReject?.(error, req);
      } catch {
        // Whoever watches must not change the answer.
      }
      const headers: Record<string, string> = { ...NO_STORE };
      if (error.status === 503) headers['retry-after'] = RETRY_AFTER;
      // RFC 6749 §5.2: a challenge for a client that used the header, or nothing at all.
      if (error.status === 401 && (req.headers.authorization !== undefined || error.reason === NO_CREDENTIALS)) {
        headers['www-authenticate'] = `Basic realm="${settings.realm}", charset="UTF-8"`;
      }
      const body = { error: error.code, error_description: error.message };
      answerJson(res, error.status, headers, name === 'serviceTokens' ? { ...body, code: error.code } : body);
    },
  );
}

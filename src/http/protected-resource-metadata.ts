import { OptionsParser } from '../errors/options-parser.js';
import type { Middleware } from './middleware.js';
import { answerJson } from './problem.js';

export interface ProtectedResourceOptions {
  /** The API's own identifier: an https URL without a fragment, e.g. `https://api.example.com`. Clients compare it byte for byte. */
  readonly resource: string;
  /** The issuers whose tokens it takes, at least one. */
  readonly authorizationServers: readonly string[];
  /** The scopes that it knows. */
  readonly scopes?: readonly string[];
}

const WELL_KNOWN = '/.well-known/oauth-protected-resource';

/**
 * A handler that answers with the API's metadata (RFC 9728) at `/.well-known/oauth-protected-resource`, followed by the path
 * of `resource` if it has one; any other request goes on. Name its URL in `authenticate({ resourceMetadata })`, so that
 * challenges lead clients there.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function protectedResourceMetadata(given: ProtectedResourceOptions): Middleware {
  const parser = new OptionsParser('protectedResourceMetadata');
  const { resource, authorizationServers, scopes } = parser.known(given, [
    'resource',
    'authorizationServers',
    'scopes',
  ]);
  parser.check(isIdentifier(resource), 'resource must be a URL without a fragment');
  const servers = Array.isArray(authorizationServers) && authorizationServers.length > 0 ? authorizationServers : [''];
  parser.check(servers.every(isIdentifier), 'authorizationServers must be an array with at least one URL');
  const listed = scopes ?? [];
  const areTexts = Array.isArray(listed) && listed.every((scope) => typeof scope === 'string');
  parser.check(areTexts, 'scopes must be an array of strings');
  parser.done();
  const metadata = Object.freeze({
    resource,
    authorization_servers: [...servers],
    ...(listed.length === 0 ? {} : { scopes_supported: [...listed] }),
    // RFC 6750: tokens in the query or in a form are never read.
    bearer_methods_supported: ['header'],
  });
  const { pathname, search } = new URL(resource);
  const path = `${WELL_KNOWN}${pathname === '/' ? '' : pathname}${search}`;

  return function protectedResource(req, res, next) {
    // Express cuts the mount path off `url`, and keeps the whole in `originalUrl`.
    const { originalUrl } = req as { originalUrl?: unknown };
    if (req.url !== path && originalUrl !== path) return next();
    if (req.method !== 'GET' && req.method !== 'HEAD') {
      return answerJson(res, 405, { allow: 'GET, HEAD' }, { error: 'method_not_allowed' });
    }
    answerJson(res, 200, { 'cache-control': 'public, max-age=300' }, metadata);
  };
}

function isIdentifier(value: unknown): value is string {
  return (
    typeof value === 'string' &&
    !value.includes('#') &&
    URL.canParse(value) &&
    /^https?:$/.test(new URL(value).protocol)
  );
}

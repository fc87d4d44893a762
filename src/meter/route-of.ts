import type { IncomingMessage } from 'node:http';

interface Routed {
  readonly baseUrl?: unknown;
  readonly route?: { readonly path?: unknown } | null;
  readonly params?: Readonly<Record<string, unknown>> | null;
}

/** Patterns beyond it are left out of the event. */
const MAX_LENGTH = 512;

/**
 * The mounted pattern of the route that handled an Express request (4 and 5), known when the response is over: `baseUrl`
 * and the route's path. Undefined where no router gives one (Connect, bare `node:http`), never a URL.
 *
 * Express keeps of a router's own mount path only the text that matched. Parameters in it are put back where the router
 * has `mergeParams`.
 */
export function routeOf(req: IncomingMessage): string | undefined {
  const { baseUrl, route, params } = req as IncomingMessage & Routed;
  const path = route?.path;
  if (typeof path !== 'string' && !(path instanceof RegExp)) return undefined;
  const base = typeof baseUrl === 'string' ? baseUrl : '';
  const pattern = `${base === '' ? '' : patternOf(base, String(path), params)}${path}`;
  return pattern.length > MAX_LENGTH ? undefined : pattern;
}

function patternOf(base: string, path: string, params: Routed['params']): string {
  const names = new Map<string, string>();
  for (const [name, value] of Object.entries(params ?? {})) {
    // The route's own parameters are in its path: a value of theirs that looks like the mount path means nothing.
    if (typeof value === 'string' && !path.includes(`:${name}`) && !path.includes(`*${name}`)) names.set(value, name);
  }
  if (names.size === 0) return base;
  return base
    .split('/')
    .map((segment) => {
      const name = names.get(decoded(segment));
      return name === undefined || segment === '' ? segment : `:${name}`;
    })
    .join('/');
}

function decoded(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}

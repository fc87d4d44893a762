import { OAuthError } from '../errors/oauth-error.js';
import type { Resource } from '../identity/ambient.cjs';

/** What the `resource` and `audience` parameters of a request name. */
export interface Targets {
  readonly audience: readonly string[];
  readonly resources: readonly Resource[];
}

/**
 * Resource indicators (RFC 8707): each is one of the issuer's audiences, or one resource of an audience that is a URL:
 * `<audience>/<type>/<id>`, type and id percent-encoded.
 *
 * @throws OAuthError `invalid_target` for an unknown one, and for one that is no absolute URI without a fragment.
 */
export function readTargets(indicators: readonly string[], audiences: readonly string[]): Targets {
  const audience = new Set<string>();
  const resources: Resource[] = [];
  for (const indicator of indicators) {
    if (indicator.includes('#')) throw unknown();
    if (audiences.includes(indicator)) {
      audience.add(indicator);
      continue;
    }
    if (!URL.canParse(indicator)) throw unknown();
    // Of `https://a.example` and `https://a.example/v2`, the longer one is meant.
    const [owner] = audiences
      .filter((candidate) => indicator.startsWith(prefixOf(candidate)))
      .sort((a, b) => b.length - a.length);
    const [type, id, ...rest] =
      owner === undefined ? [] : indicator.slice(prefixOf(owner).length).split('/').map(decode);
    if (owner === undefined || !type || !id || rest.length > 0) throw unknown();
    audience.add(owner);
    resources.push({ type, id });
  }
  return { audience: [...audience], resources };
}

function prefixOf(audience: string): string {
  return audience.endsWith('/') ? audience : `${audience}/`;
}

function decode(segment: string): string | undefined {
  try {
    return segment.includes('?') ? undefined : decodeURIComponent(segment);
  } catch {
    return undefined;
  }
}

function unknown(): OAuthError {
  return new OAuthError('invalid_target', 'a resource that was named is unknown');
}

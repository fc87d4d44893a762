/** Reads one claim out of a token's claims; undefined when it is absent. */
export type ClaimReader = (claims: Readonly<Record<string, unknown>>) => unknown;

/** Whether a text can name a claim: a name, or a JSON Pointer (RFC 6901), which starts with a slash. */
export function isClaimPath(path: unknown): path is string {
  return typeof path === 'string' && path !== '' && !(path.startsWith('/') && /~(?![01])/.test(path));
}

/** The JSON Pointer of a claim: of a name as it is of a pointer, so that one claim has one spelling. */
export function claimPointer(path: string): string {
  return path.startsWith('/') ? path : `/${path.replaceAll('~', '~0').replaceAll('/', '~1')}`;
}

/**
 * A reader for a claim's name (`tenant_id`, `https://example.com/tenant`) or a JSON Pointer into the claims
 * (`/realm_access/roles`, `/kubernetes.io/namespace`). Only own members count.
 */
export function claimReader(path: string): ClaimReader {
  if (!path.startsWith('/')) return (claims) => (Object.hasOwn(claims, path) ? claims[path] : undefined);
  const steps = path
    .slice(1)
    .split('/')
    .map((step) => step.replaceAll('~1', '/').replaceAll('~0', '~'));
  return (claims) => {
    let value: unknown = claims;
    for (const step of steps) {
      if (typeof value !== 'object' || value === null || !Object.hasOwn(value, step)) return undefined;
      // RFC 6901 §4: an array's index has no leading zeros; `length` is no index.
      if (Array.isArray(value) && !/^(?:0|[1-9]\d*)$/.test(step)) return undefined;
      value = (value as Record<string, unknown>)[step];
    }
    return value;
  };
}

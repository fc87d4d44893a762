import type { IncomingMessage } from 'node:http';

/** An `Authorization` header, taken apart (RFC 9110 §11.4). */
export interface Authorization {
  /** Lower-case: schemes are case-insensitive. */
  readonly scheme: string;
  /** Present when what follows the scheme is exactly one space and a `token68` (RFC 6750 §2.1 `b64token`). */
  readonly token?: string;
}

const SCHEME = /^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/;
const TOKEN68 = /^[A-Za-z0-9\-._~+/]+=*$/;

/** Takes an `Authorization` header apart; undefined when it does not even start with a scheme. */
export function parseAuthorization(header: string): Authorization | undefined {
  const space = header.indexOf(' ');
  const scheme = space === -1 ? header : header.slice(0, space);
  if (!SCHEME.test(scheme)) return undefined;
  const token = space === -1 ? '' : header.slice(space + 1);
  return TOKEN68.test(token) ? { scheme: scheme.toLowerCase(), token } : { scheme: scheme.toLowerCase() };
}

/** Whether a request carries more than one `Authorization` header: Node keeps the first and hides the rest. */
export function repeatsAuthorization(rawHeaders: readonly string[]): boolean {
  let seen = false;
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index] as string;
    if (name.length !== 13 || name.toLowerCase() !== 'authorization') continue;
    if (seen) return true;
    seen = true;
  }
  return false;
}

/** Whether a credential was found in a header that is there more than once: Node joins the values of most, and hides some. */
export function isRepeated(credential: string, { headers, rawHeaders }: IncomingMessage): boolean {
  if (headers.authorization?.includes(credential) === true && repeatsAuthorization(rawHeaders)) return true;
  if (!credential.includes(', ')) return false;
  const values = new Map<string, string[]>();
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = (rawHeaders[index] as string).toLowerCase();
    const value = rawHeaders[index + 1] as string;
    const known = values.get(name);
    if (known === undefined) values.set(name, [value]);
    else known.push(value);
  }
  return [...values.values()].some((all) => all.length > 1 && all.join(', ').includes(credential));
}

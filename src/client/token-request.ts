import { OAuthError } from '../errors/oauth-error.js';
import { withDeadline } from '../runtime/deadline.js';

/** A token as the server answered it. */
export interface FetchedToken {
  readonly token: string;
  /** Seconds that it lives; 0 when the server does not say. */
  readonly expiresInSeconds: number;
}

export interface TokenRequest {
  readonly endpoint: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly form: URLSearchParams;
  readonly timeoutSeconds: number;
  readonly fetch: typeof fetch;
}

/** Bytes of an answer that are read at most. */
const MAX_BYTES = 262_144;

/**
 * Asks a token endpoint once.
 *
 * @throws OAuthError with the server's `error`; `temporarily_unavailable` when there is no answer or a 5xx without one,
 *   `invalid_response` for an answer that is none. It holds nothing of what was sent or of a token.
 */
export async function requestToken(request: TokenRequest): Promise<FetchedToken> {
  const { endpoint, headers, form, timeoutSeconds, fetch } = request;
  let status: number;
  let text: string;
  try {
    [status, text] = await withDeadline(timeoutSeconds * 1_000, async (signal) => {
      const response = await fetch(endpoint, {
        method: 'POST',
        headers: { ...headers, 'content-type': 'application/x-www-form-urlencoded', accept: 'application/json' },
        body: form.toString(),
        // Credentials go to the endpoint that was configured, and nowhere else.
        redirect: 'error',
        signal,
      });
      return [response.status, await readText(response)] as const;
    });
  } catch (cause) {
    const { code, name } = cause as { code?: unknown; name?: unknown };
    const kind = code === 'deadline' ? `no answer within ${timeoutSeconds} s` : `no answer (${String(name)})`;
    throw new OAuthError('temporarily_unavailable', `the token endpoint gave ${kind}`, { status: 503 });
  }
  const body = parseObject(text);
  if (status === 200) return readToken(body);
  const { error, error_description: description } = body;
  // RFC 6749 §5.2: the characters of both. Anything else did not come from a token endpoint.
  if (typeof error === 'string' && /^[\x20-\x21\x23-\x5B\x5D-\x7E]{1,100}$/.test(error)) {
    const readable = typeof description === 'string' && /^[\x20-\x21\x23-\x5B\x5D-\x7E]{1,500}$/.test(description);
    throw new OAuthError(error, readable ? `${error}: ${description}` : error, { status });
  }
  if (status >= 500 || status === 429) {
    throw new OAuthError('temporarily_unavailable', `the token endpoint answered ${status}`, { status });
  }
  throw new OAuthError('invalid_response', `the token endpoint answered ${status} without an OAuth error`, { status });
}

function readToken(body: Readonly<Record<string, unknown>>): FetchedToken {
  const { access_token: token, token_type: type, expires_in: expiresIn } = body;
  if (typeof token !== 'string' || token === '') throw malformed('no access_token');
  // Another type (RFC 6749 §7.1) needs more than to be shown, and must not be used without understanding it.
  if (typeof type !== 'string' || type.toLowerCase() !== 'bearer') throw malformed('a token_type other than Bearer');
  if (expiresIn !== undefined && !(typeof expiresIn === 'number' && expiresIn >= 0))
    throw malformed('a bad expires_in');
  return { token, expiresInSeconds: expiresIn ?? 0 };
}

async function readText(response: Response): Promise<string> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of response.body ?? []) {
    length += chunk.length;
    if (length > MAX_BYTES) throw new RangeError('the answer is too long');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function parseObject(text: string): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

function malformed(what: string): OAuthError {
  return new OAuthError('invalid_response', `the token endpoint answered with ${what}`, { status: 200 });
}

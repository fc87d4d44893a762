/** The part of `fetch` that is used; the global one by default. */
export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** The platform's own, looked up when it is called. */
export const systemFetch: Fetch = (url, init) => globalThis.fetch(url, init);

/** An answer that cannot be used. Its message is fixed text. */
export class FetchError extends Error {
  override readonly name: string = 'FetchError';
  readonly code = 'fetch';
}

/** What is sent beside the URL. */
export interface JsonRequest {
  readonly method?: 'GET' | 'POST';
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
}

/**
 * Fetches a JSON document. Redirects are not followed, and the body is read up to a bound, counted after decompression.
 *
 * @throws FetchError when the answer is not 200, too large or no JSON; whatever `fetch` throws. The caller sets the deadline:
 *   an abort does not end every hanging body.
 */
export async function fetchJson(
  url: string,
  { method = 'GET', headers, body }: JsonRequest,
  options: { readonly fetch: Fetch; readonly maxBytes: number; readonly signal: AbortSignal },
): Promise<unknown> {
  const response = await options.fetch(url, {
    method,
    headers: { accept: 'application/json', ...headers },
    redirect: 'manual',
    signal: options.signal,
    ...(body === undefined ? {} : { body }),
  });
  if (response.status !== 200) {
    // Not waited for: what the peer sends after its status is of no interest.
    response.body?.cancel().catch(() => {});
    throw new FetchError(`it answered with the status ${response.status}`);
  }
  const bytes = await readBody(response, options.maxBytes);
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch {
    // The parser's message quotes the body.
    throw new FetchError('its answer is no JSON');
  }
}

async function readBody(response: Response, maxBytes: number): Promise<Buffer> {
  const reader = response.body?.getReader();
  if (reader === undefined) throw new FetchError('its answer has no body');
  const chunks: Uint8Array[] = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return Buffer.concat(chunks);
    length += value.length;
    if (length > maxBytes) {
      reader.cancel().catch(() => {});
      throw new FetchError(`its answer is longer than ${maxBytes} bytes`);
    }
    chunks.push(value);
  }
}

/** What may be told about a failed request: text of our own, or the kind of error and its code. */
export function describeFailure(error: unknown): string {
  if (!(error instanceof Error)) return 'it threw something that is no error';
  const { code } = error as { code?: unknown };
  if (code === 'fetch' || code === 'deadline') return error.message;
  const inner = (error.cause as { code?: unknown } | undefined)?.code ?? code;
  return typeof inner === 'string' && /^[A-Z][A-Z0-9_]{1,39}$/.test(inner) ? `it failed with ${inner}` : 'it failed';
}

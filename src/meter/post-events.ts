import { SinkError } from '../errors/sink-error.js';
import type { Verdict } from './sink.js';

export interface PostRequest {
  readonly fetch: typeof fetch;
  readonly url: string;
  /** By lower-case name. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
  readonly signal: AbortSignal;
  /** Whether the body is one event: what the server will not have is then rejected, else the batch is halved. */
  readonly single: boolean;
}

const DELIVERED: Verdict = { outcome: 'delivered' };

/**
 * Posts events and says what the answer means: 2xx delivered; 401, 403 and redirects (never followed) pause the sink; 410
 * and 415 stop it; 413 and other refusals halve a batch, or reject the one event; the rest is tried again, after
 * `Retry-After`.
 *
 * @throws SinkError for everything but a verdict on a single event. No message has a header or the body.
 */
export async function postEvents({ fetch, url, headers, body, signal, single }: PostRequest): Promise<Verdict> {
  let response: Response;
  try {
    response = await fetch(url, { method: 'POST', headers, body, signal, redirect: 'manual' });
  } catch (error) {
    const code = (error as { cause?: { code?: unknown } } | undefined)?.cause?.code;
    // A refused connection has surely delivered nothing; of a broken one nobody knows.
    const refused = code === 'ECONNREFUSED' || code === 'ENOTFOUND' || code === 'EAI_AGAIN';
    throw new SinkError(`no answer${typeof code === 'string' ? ` (${code})` : ''}`, { ambiguous: !refused });
  }
  // Its text is not read: an abort does not end every body that hangs.
  response.body?.cancel().catch(() => {});
  const { status } = response;
  if (status >= 200 && status < 300) return DELIVERED;
  const afterSeconds = retryAfterSeconds(response.headers.get('retry-after'));
  const message = `the server answered ${status}`;
  if (status === 401 || status === 403 || (status >= 300 && status < 400)) {
    throw new SinkError(message, { action: 'pause', afterSeconds });
  }
  if (status === 410 || status === 415) throw new SinkError(message, { action: 'stop' });
  // A gateway's 502 may come after the server has committed.
  if (status === 408 || status === 425 || status === 429 || status >= 500) {
    throw new SinkError(message, { afterSeconds, ambiguous: status !== 429 && status !== 503 });
  }
  if (single) return { outcome: 'reject', reason: message };
  throw new SinkError(message, { action: 'split' });
}

/** RFC 9110 §10.2.3: seconds, or a date. */
function retryAfterSeconds(header: string | null): number | undefined {
  if (header === null) return undefined;
  if (/^\d{1,9}$/.test(header)) return Number(header);
  const ms = Date.parse(header) - Date.now();
  return Number.isNaN(ms) ? undefined : Math.max(0, ms / 1_000);
}

/** Whether a value is a URL that events may be posted to. */
export function isEndpoint(url: unknown): url is string {
  if (typeof url !== 'string') return false;
  try {
    const { protocol, username, password } = new URL(url);
    return (protocol === 'https:' || protocol === 'http:') && username === '' && password === '';
  } catch {
    return false;
  }
}

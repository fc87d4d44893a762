import type { IncomingMessage } from 'node:http';
import { AdminProblem } from './admin-problem.js';

/** `application/json`, and what is made of it (`application/merge-patch+json`): no form of a foreign page can send these. */
const JSON_TYPE = /^application\/(?:[\w.+-]+\+)?json\s*(?:;|$)/i;

/**
 * The JSON object in a request's body; an empty one where there is no body. A body that a parser of the app has read
 * already is taken from `req.body`.
 *
 * @throws AdminProblem (as a rejection) for a body that is too large, malformed or no object.
 */
export async function readJsonBody(req: IncomingMessage, maxBytes: number): Promise<Record<string, unknown>> {
  const { 'content-length': length, 'transfer-encoding': chunked, 'content-type': type = '' } = req.headers;
  const hasBody = chunked !== undefined || (length !== undefined && length !== '0');
  if (!hasBody) return {};
  const encoding = req.headers['content-encoding'];
  // A parser that did not want this body may have left `{}` and the body itself unread.
  const parsed = req.readableEnded ? (req as { body?: unknown }).body : undefined;
  if (!JSON_TYPE.test(type)) throw new AdminProblem(415, 'unsupported_media_type', 'application/json is needed');
  if (parsed !== undefined && typeof parsed !== 'string' && !(parsed instanceof Uint8Array)) return asObject(parsed);
  // Whoever has parsed the body has undone its encoding too.
  if (parsed === undefined && encoding !== undefined && encoding !== 'identity') {
    throw new AdminProblem(415, 'unsupported_media_type', 'a compressed body is not taken');
  }
  const bytes = parsed === undefined ? await readAll(req, maxBytes) : Buffer.from(parsed);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw malformed();
  }
  return asObject(value);
}

function readAll(req: IncomingMessage, maxBytes: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    req.on('data', (chunk: Buffer) => {
      size += chunk.length;
      if (size > maxBytes) {
        // Nothing more is kept; the connection is closed with the answer.
        chunks.length = 0;
        reject(new AdminProblem(413, 'payload_too_large', `at most ${maxBytes} bytes are taken`));
      } else chunks.push(chunk);
    });
    req.on('end', () => resolve(Buffer.concat(chunks)));
    const gone = (): void => reject(malformed());
    req.on('error', gone);
    req.on('close', gone);
    // Somebody has read the body and left nothing of it.
    if (req.readableEnded || req.destroyed) gone();
  });
}

function asObject(value: unknown): Record<string, unknown> {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  throw malformed();
}

function malformed(): AdminProblem {
  return new AdminProblem(400, 'invalid_input', 'the body must be a JSON object');
}

import { isUtf8 } from 'node:buffer';
import type { IncomingMessage } from 'node:http';
import { OAuthError } from '../errors/oauth-error.js';

/** Parameters that may stand several times: RFC 8707 §2, RFC 8693 §2.1. */
const REPEATABLE: readonly string[] = ['resource', 'audience'];

/** A form of an OAuth endpoint: an empty parameter counts as absent (RFC 6749 §3.1, §3.2). */
export interface Form {
  get(name: string): string | undefined;
  /** Every value of a repeatable parameter. */
  all(name: string): readonly string[];
}

/**
 * The form of a request (RFC 6749 appendix B), also when a body parser has read it before.
 *
 * @throws OAuthError `invalid_request`: another content type, a parameter that is repeated, a body that is too long.
 */
export async function readForm(req: IncomingMessage, maxBytes: number): Promise<Form> {
  requireType(req, 'application/x-www-form-urlencoded');
  const body = await readBody(req, maxBytes);
  const pairs =
    typeof body === 'string'
      ? new URLSearchParams(body)
      : Object.entries(body).flatMap(([name, value]) => spread(name, value));
  const values = new Map<string, string[]>();
  for (const [name, value] of pairs) {
    const known = values.get(name);
    if (known === undefined) values.set(name, [value]);
    else if (REPEATABLE.includes(name)) known.push(value);
    else throw malformed('a parameter stands more than once');
  }
  return {
    get: (name) => values.get(name)?.[0] || undefined,
    all: (name) => (values.get(name) ?? []).filter((value) => value !== ''),
  };
}

/**
 * The JSON object of a request, also when a body parser has read it before.
 *
 * @throws OAuthError `invalid_request`.
 */
export async function readJsonObject(
  req: IncomingMessage,
  maxBytes: number,
): Promise<Readonly<Record<string, unknown>>> {
  requireType(req, 'application/json');
  const body = await readBody(req, maxBytes);
  let value: unknown = body;
  if (typeof body === 'string') {
    try {
      value = JSON.parse(body);
    } catch {
      throw malformed('the body is no JSON');
    }
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw malformed('the body is no JSON object');
  return value as Readonly<Record<string, unknown>>;
}

/** A parser may have made arrays of repeated parameters, and objects of names with brackets. */
function spread(name: string, value: unknown): [string, string][] {
  const values: unknown[] = Array.isArray(value) ? value : [value];
  return values.map((item) => {
    if (typeof item !== 'string') throw malformed('a parameter is no text');
    return [name, item];
  });
}

function requireType(req: IncomingMessage, type: string): void {
  const stated = (req.headers['content-type'] ?? '').split(';', 1)[0]?.trim().toLowerCase();
  if (stated !== type) throw malformed(`the content type must be ${type}`);
  const encoding = req.headers['content-encoding'];
  if (encoding !== undefined && encoding.toLowerCase() !== 'identity' && !req.readableEnded) {
    throw new OAuthError('invalid_request', 'the body must not be compressed', { status: 415 });
  }
}

/** The text of the body, or what a parser before us made of it. */
async function readBody(req: IncomingMessage, maxBytes: number): Promise<string | object> {
  // Some parsers set `body` on requests that they leave alone: what counts is whether anybody has read the stream.
  if (!req.readableDidRead) {
    // Nothing would be heard of a request that was cut off while somebody before us took their time.
    if (req.destroyed) throw malformed('the body ended early');
    return readText(req, maxBytes);
  }
  const { body } = req as { body?: unknown };
  if (typeof body === 'string') return body;
  if (body instanceof Uint8Array) return Buffer.from(body).toString('utf8');
  if (typeof body === 'object' && body !== null) return body;
  throw malformed('the body was read by somebody else');
}

function readText(req: IncomingMessage, maxBytes: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let length = 0;
    let isOver = false;
    req.on('data', (chunk: Buffer) => {
      length += chunk.length;
      // The rest is read and dropped, so that the answer still reaches a client that is writing.
      if (length <= maxBytes) chunks.push(chunk);
    });
    req.on('end', () => {
      isOver = true;
      if (length > maxBytes) return reject(new OAuthError('invalid_request', 'the body is too long', { status: 413 }));
      const bytes = chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks);
      if (!isUtf8(bytes)) return reject(malformed('the body is not UTF-8'));
      resolve(bytes.toString('utf8'));
    });
    req.on('error', () => reject(malformed('the body ended early')));
    // It comes after every request: an error, which is expensive, is made only for one that was cut off.
    req.on('close', () => {
      if (!isOver) reject(malformed('the body ended early'));
    });
  });
}

function malformed(description: string): OAuthError {
  return new OAuthError('invalid_request', description);
}

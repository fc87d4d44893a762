import { createHmac, timingSafeEqual } from 'node:crypto';

/** A header under the edge's prefix: its lower-case name and one value. Repeated headers are repeated pairs. */
export type EdgeHeader = readonly [name: string, value: string];

/** What the edge signs: the request's first line and its own headers. */
export interface SignedRequest {
  readonly method: string;
  /** The path and query as the app sees them, e.g. `/v1/chat?stream=1`. */
  readonly url: string;
  /** The headers under the prefix, without the signature's own. Names in any case, in any order. */
  readonly headers: readonly EdgeHeader[];
  /** Seconds since the epoch. */
  readonly timestamp: number;
}

const FORM = /^t=(\d{1,12}),v=([A-Za-z0-9_-]{43})$/;

/**
 * The value of the signature header with which an edge proves that it set the others: `t=<seconds>,v=<MAC>`, an
 * HMAC-SHA-256 in base64url over `v1`, the timestamp, the method, the URL, and name and value of every header under the
 * prefix, by lower-case name. Before each stand its length in bytes and a colon. Neither host nor body are signed.
 *
 * @param secret at least 32 bytes, shared with `edgeVerifier({ trust: { secret } })`.
 */
export function signEdgeHeaders(secret: string | Uint8Array, request: SignedRequest): string {
  return `t=${request.timestamp},v=${mac(secret, request).toString('base64url')}`;
}

/** Whether a signature is good for the request and not older, or further in the future, than `maxAgeSeconds`. */
export function isEdgeSignature(
  secret: string | Uint8Array,
  signature: string,
  request: Omit<SignedRequest, 'timestamp'>,
  nowSeconds: number,
  maxAgeSeconds: number,
): boolean {
  const [, stamp, value] = FORM.exec(signature) ?? [];
  if (stamp === undefined || value === undefined) return false;
  const timestamp = Number(stamp);
  const expected = mac(secret, { ...request, timestamp });
  const given = Buffer.from(value, 'base64url');
  return timingSafeEqual(expected, given) && Math.abs(nowSeconds - timestamp) <= maxAgeSeconds;
}

function mac(secret: string | Uint8Array, { method, url, headers, timestamp }: SignedRequest): Buffer {
  const hmac = createHmac('sha256', secret);
  const sorted = headers
    .map(([name, value], index) => ({ name: name.toLowerCase(), value, index }))
    .sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.index - b.index));
  // Length-prefixed, so that no two requests spell the same bytes.
  for (const part of ['v1', String(timestamp), method, url, ...sorted.flatMap(({ name, value }) => [name, value])]) {
    // The bytes on the wire: Node reads each as one character.
    const bytes = Buffer.from(part, 'latin1');
    hmac.update(`${bytes.length}:`).update(bytes);
  }
  return hmac.digest();
}

import type { IncomingMessage } from 'node:http';
import type { OptionsParser } from '../errors/options-parser.js';
import { createAddressList } from '../http/address-list.js';
import { peerAddress } from '../http/client-address.js';
import type { Clock } from '../runtime/clock.js';
import { type EdgeHeader, isEdgeSignature } from './edge-signature.js';

/** How the edge is known: by the address of the connection, or by a signature over its headers. */
export type EdgeTrust =
  /** Addresses and CIDR blocks of the edge. An empty list trusts nobody. */
  | { readonly peers: readonly string[] }
  | {
      /** At least 32 bytes, shared with the edge, which signs with `signEdgeHeaders`. */
      readonly secret: string | Uint8Array;
      /** The header that carries the signature. Default: the prefix and `signature`. */
      readonly header?: string;
      /** How old a signature may be, in seconds: a replay of the very same request works that long. Default 60. */
      readonly maxAgeSeconds?: number;
    };

/** `unsigned`: nobody claims to be the edge. `forged`: somebody does, with a wrong or old signature. */
export type EdgeStanding = 'trusted' | 'unsigned' | 'forged';

/** A prefix and what makes a request under it trusted; shared by the verifier and the middleware that strips. */
export interface ParsedEdge {
  /** Lower-case. */
  readonly prefix: string;
  standing(req: IncomingMessage): EdgeStanding;
  /** The headers under the prefix, as they were sent, but for the signature. */
  headers(req: IncomingMessage): EdgeHeader[];
}

/** Checks `prefix` and `trust`. */
export function parseEdge(
  given: { prefix: string; trust: EdgeTrust },
  clock: Clock,
  parser: OptionsParser,
): ParsedEdge {
  const prefix = parser.string('prefix', given.prefix).toLowerCase();
  parser.check(
    /^(?!-)[a-z0-9-]*$/.test(prefix),
    'prefix must be the beginning of a header name: letters, digits and "-"',
  );
  const trust = parser.known(given.trust, ['peers', 'secret', 'header', 'maxAgeSeconds'], 'trust') as {
    peers?: readonly string[];
    secret?: string | Uint8Array;
    header?: string;
    maxAgeSeconds?: number;
  };
  if ((trust.peers === undefined) === (trust.secret === undefined)) {
    parser.problem('trust must name either peers or a secret');
  }
  const signatureHeader = (trust.header ?? `${prefix}signature`).toLowerCase();
  const headers = (req: IncomingMessage): EdgeHeader[] => {
    const found: EdgeHeader[] = [];
    for (let index = 0; index < req.rawHeaders.length; index += 2) {
      const name = (req.rawHeaders[index] as string).toLowerCase();
      if (name.startsWith(prefix) && name !== signatureHeader) found.push([name, req.rawHeaders[index + 1] as string]);
    }
    return found;
  };
  if (trust.secret === undefined) {
    const peers = createAddressList(trust.peers ?? [], (text) => parser.problem(`trust.peers: ${text}`));
    return { prefix, headers, standing: (req) => (peers.has(peerAddress(req)) ? 'trusted' : 'unsigned') };
  }
  const { secret } = trust;
  const bytes =
    typeof secret === 'string' ? Buffer.byteLength(secret) : secret instanceof Uint8Array ? secret.length : 0;
  parser.check(bytes >= 32, 'trust.secret must have at least 32 bytes');
  const maxAgeSeconds = parser.number('trust.maxAgeSeconds', trust.maxAgeSeconds, 60, { min: 1, max: 3_600 });
  return {
    prefix,
    headers,
    standing(req) {
      const signature = req.headers[signatureHeader];
      if (signature === undefined) return 'unsigned';
      const { originalUrl } = req as { originalUrl?: string };
      const request = { method: req.method ?? '', url: originalUrl ?? req.url ?? '', headers: headers(req) };
      const good =
        typeof signature === 'string' &&
        isEdgeSignature(secret, signature, request, clock.now() / 1_000, maxAgeSeconds);
      return good ? 'trusted' : 'forged';
    },
  };
}

import type { IncomingMessage } from 'node:http';
import { OptionsParser } from '../errors/options-parser.js';
import type { Middleware } from '../http/middleware.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { type EdgeTrust, parseEdge } from './edge-trust.js';

export interface StripEdgeHeadersOptions {
  /** How the edge's headers begin, as in `edgeVerifier`. */
  readonly prefix: string;
  /** Who may send them, as in `edgeVerifier`. */
  readonly trust: EdgeTrust;
  readonly clock?: Clock;
}

/** The bit that tells small letters from capital ones; digits have it. */
const SMALL = 0x20;

/** HTTP gives trailers no say about routing or who is calling (RFC 9110 §6.5.1), and lets a recipient drop them. */
const NO_TRAILERS: PropertyDescriptorMap = {
  trailers: { value: Object.freeze({}) },
  trailersDistinct: { value: Object.freeze({}) },
  rawTrailers: { get: () => [], set: () => {} },
};

/**
 * App-wide middleware that removes the edge's headers from whatever did not come through the edge: from `headers`,
 * `rawHeaders` and `headersDistinct`, repeated, in any case, and with underscores or other signs, which some servers behind
 * treat as hyphens. Trailers of such requests are dropped. Of what the edge sends, only those misspelt ones are removed,
 * since it may have let its callers' pass. Mount it before everything else.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function stripEdgeHeaders(options: StripEdgeHeadersOptions): Middleware {
  const parser = new OptionsParser('stripEdgeHeaders');
  const given = parser.known(options, ['prefix', 'trust', 'clock']);
  const edge = parseEdge(given, given.clock ?? systemClock, parser);
  parser.done();
  const { prefix } = edge;
  const isSpelt = (name: string): boolean => name.startsWith(prefix);
  const isMeant = (name: string): boolean => name.slice(0, prefix.length).replace(/[^a-z0-9]/g, '-') === prefix;
  const isMisspelt = (name: string): boolean => isMeant(name) && !isSpelt(name);

  return function stripEdgeHeaders(req, _res, next) {
    const isTrusted = edge.standing(req) === 'trusted';
    removeHeaders(req, prefix.charCodeAt(0), isTrusted ? isMisspelt : isMeant);
    // They come behind a body in chunks, or in HTTP/2.
    if (!isTrusted && (req.headers['transfer-encoding'] !== undefined || req.httpVersionMajor > 1)) {
      Object.defineProperties(req, NO_TRAILERS);
    }
    next();
  };
}

/**
 * @param first what the names begin with, a small letter or a digit: most headers of most requests are passed over by it.
 * @param goes is asked with lower-case names.
 */
function removeHeaders(req: IncomingMessage, first: number, goes: (name: string) => boolean): void {
  const { rawHeaders } = req;
  const isPossible = (name: string): boolean => (name.charCodeAt(0) | SMALL) === first;
  if (!rawHeaders.some((name, index) => index % 2 === 0 && isPossible(name) && goes(name.toLowerCase()))) return;
  // Both views are made of rawHeaders on first use: that must be before it changes.
  for (const view of [req.headers, req.headersDistinct]) {
    if (view === undefined) continue;
    for (const name of Object.keys(view)) if (goes(name)) delete view[name];
  }
  for (let index = rawHeaders.length - 2; index >= 0; index -= 2) {
    if (goes((rawHeaders[index] as string).toLowerCase())) rawHeaders.splice(index, 2);
  }
}

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

/**
 * App-wide middleware that removes the edge's headers from whatever did not come through the edge: from `headers`,
 * `rawHeaders` and `headersDistinct`, repeated, in any case, and with underscores, which some servers behind treat as
 * hyphens. Mount it before everything else.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function stripEdgeHeaders(options: StripEdgeHeadersOptions): Middleware {
  const parser = new OptionsParser('stripEdgeHeaders');
  const given = parser.known(options, ['prefix', 'trust', 'clock']);
  const edge = parseEdge(given, given.clock ?? systemClock, parser);
  parser.done();
  const isEdgeHeader = (name: string): boolean => name.toLowerCase().replaceAll('_', '-').startsWith(edge.prefix);

  return function stripEdgeHeaders(req, _res, next) {
    if (edge.standing(req) === 'trusted') return next();
    const { headers, headersDistinct, rawHeaders } = req;
    // Both views are made of rawHeaders on first use: they are read above, before it changes.
    for (const view of [headers, headersDistinct]) {
      if (view === undefined) continue;
      for (const name of Object.keys(view)) if (isEdgeHeader(name)) delete view[name];
    }
    for (let index = rawHeaders.length - 2; index >= 0; index -= 2) {
      if (isEdgeHeader(rawHeaders[index] as string)) rawHeaders.splice(index, 2);
    }
    next();
  };
}

/** The library with a fault: every scope is granted. */
import type * as real from '../../../src/index.js';

export * from '../../../src/index.js';

export function requireScope(..._scopes: unknown[]): real.Middleware {
  return (_req, _res, next) => next();
}

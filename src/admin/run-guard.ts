import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Next } from '../http/middleware.js';

/** A middleware of the app: it calls `next()` for those who may pass, and answers or calls `next(error)` for the others. */
export type Guard = (req: never, res: never, next: Next) => unknown;

/**
 * Runs guards one after the other, and `pass` only when each has called its `next()` without an error: once, and while
 * nobody has answered. Whatever a guard throws or rejects with goes to `next`.
 */
export function runGuards(
  guards: readonly Guard[],
  req: IncomingMessage,
  res: ServerResponse,
  next: Next,
  pass: () => void,
): void {
  const [guard, ...rest] = guards;
  if (guard === undefined) return pass();
  let over = false;
  const goOn = (error?: unknown): void => {
    if (over) return;
    over = true;
    if (res.writableEnded || res.destroyed) return;
    if (error !== undefined && error !== null) return next(error);
    runGuards(rest, req, res, next, pass);
  };
  const failed = (error: unknown): void => goOn(error ?? new Error('the guard of the admin API failed'));
  try {
    const result = guard(req as never, res as never, goOn);
    if (typeof (result as { then?: unknown } | undefined)?.then === 'function') {
      (result as Promise<unknown>).then(undefined, failed);
    }
  } catch (error) {
    failed(error);
  }
}

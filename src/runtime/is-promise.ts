/**
 * Whether a value must be waited for. Never `instanceof Promise`: what an async function returns is none where the global was
 * replaced (zone.js does, which server-side Angular runs under) or comes from another realm (a test runner's sandbox).
 */
export function isPromise<T>(value: T | Promise<T>): value is Promise<T> {
  return typeof (value as { then?: unknown } | null)?.then === 'function';
}

/** How deep claims may be nested before the copy is refused. */
const MAX_DEPTH = 64;

/**
 * A deep copy of plain data (objects, arrays, primitives) that nobody can change. Own `__proto__` keys stay keys; values
 * that JSON cannot carry (functions, symbols) are dropped, and class instances are copied as their own enumerable data.
 *
 * @throws TypeError when the value is nested deeper than 64 levels (a cycle too).
 */
export function frozenCopy<T>(value: T): T {
  return copy(value, 0) as T;
}

function copy(value: unknown, depth: number): unknown {
  if (depth > MAX_DEPTH) throw new TypeError('a value is nested too deeply');
  if (typeof value === 'function' || typeof value === 'symbol') return undefined;
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return Object.freeze(value.map((item) => copy(item, depth + 1)));
  if (value instanceof Date) return value.toISOString();
  const result: Record<string, unknown> = {};
  for (const [key, item] of Object.entries(value)) {
    const copied = copy(item, depth + 1);
    if (copied === undefined) continue;
    if (key === '__proto__') Object.defineProperty(result, key, { value: copied, enumerable: true });
    else result[key] = copied;
  }
  return Object.freeze(result);
}

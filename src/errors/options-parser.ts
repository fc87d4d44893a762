/**
 * Collects everything that is wrong with the options of one factory, and throws it as one `TypeError`: whoever
 * configures a service wants the whole list, not the first line of it.
 */
export class OptionsParser {
  readonly #factory: string;
  readonly #problems: string[] = [];

  /** @param factory the name of the public function, e.g. `authenticate`. */
  constructor(factory: string) {
    this.#factory = factory;
  }

  /** What was noted so far. */
  get problems(): readonly string[] {
    return this.#problems;
  }

  /** Notes one problem. It must hold no secret. */
  problem(text: string): void {
    this.#problems.push(text);
  }

  /** Notes the problem unless the condition holds; returns the condition. */
  check(condition: boolean, text: string): boolean {
    if (!condition) this.#problems.push(text);
    return condition;
  }

  /**
   * Notes every key of `options` that is not known, with the nearest known one. A value that is no object is a problem
   * of its own, and an empty object is returned in its place.
   */
  known<T extends object>(options: T, keys: readonly string[], where = ''): T {
    if (typeof options !== 'object' || options === null) {
      this.#problems.push(`${where === '' ? 'options' : where} must be an object`);
      return {} as T;
    }
    for (const key of Object.keys(options)) {
      if (keys.includes(key)) continue;
      const near = nearest(key, keys);
      const name = where === '' ? key : `${where}.${key}`;
      this.#problems.push(`unknown option "${name}"${near === undefined ? '' : ` (did you mean "${near}"?)`}`);
    }
    return options;
  }

  /** A number within bounds, or the default when it is undefined. */
  number(
    name: string,
    value: unknown,
    fallback: number,
    bounds: { min?: number; max?: number; integer?: boolean } = {},
  ) {
    if (value === undefined) return fallback;
    const { min = 0, max = Number.MAX_SAFE_INTEGER, integer = false } = bounds;
    if (typeof value !== 'number' || !(value >= min && value <= max) || (integer && !Number.isInteger(value))) {
      this.#problems.push(`${name} must be ${integer ? 'an integer' : 'a number'} from ${min} to ${max}`);
      return fallback;
    }
    return value;
  }

  /** A string that is not empty, or a problem. */
  string(name: string, value: unknown): string {
    if (typeof value === 'string' && value !== '') return value;
    this.#problems.push(`${name} must be a string that is not empty`);
    return '';
  }

  /** A function or undefined, or a problem. */
  optionalFunction(name: string, value: unknown): void {
    if (value !== undefined && typeof value !== 'function') this.#problems.push(`${name} must be a function`);
  }

  /** One of the listed values, or the default when it is undefined. */
  oneOf<const T>(name: string, value: unknown, allowed: readonly T[], fallback: T): T {
    if (value === undefined) return fallback;
    if (allowed.includes(value as T)) return value as T;
    this.#problems.push(`${name} must be one of ${allowed.map((item) => JSON.stringify(item)).join(', ')}`);
    return fallback;
  }

  /** @throws TypeError that lists every problem noted so far. */
  done(): void {
    if (this.#problems.length > 0) {
      throw new TypeError(`${this.#factory}: ${this.#problems.join('; ')}`);
    }
  }
}

/** The known key with the smallest edit distance, if it is near enough to be a typo. */
function nearest(key: string, known: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(key.length / 2.5)) + 1;
  for (const candidate of known) {
    const distance = editDistance(key.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = (previous[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      current.push(Math.min(substitution, (previous[j] ?? 0) + 1, (current[j - 1] ?? 0) + 1));
    }
    previous = current;
  }
  return previous[b.length] ?? 0;
}

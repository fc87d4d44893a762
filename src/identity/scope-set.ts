import { inspect } from 'node:util';

/**
 * A set without mutators. `Object.freeze` does not stop `set.add`, and `Set.prototype.add.call` would get past a
 * subclass: here the real set is private.
 */
export class ScopeSet<T extends string = string> implements ReadonlySet<T> {
  readonly #set: ReadonlySet<T>;

  constructor(scopes: Iterable<T>) {
    this.#set = new Set(scopes);
    Object.freeze(this);
  }

  get size(): number {
    return this.#set.size;
  }

  get [Symbol.toStringTag](): string {
    return 'ScopeSet';
  }

  has(scope: T): boolean {
    return this.#set.has(scope);
  }

  forEach(callback: (value: T, key: T, set: ReadonlySet<T>) => void, thisArg?: unknown): void {
    for (const scope of this.#set) callback.call(thisArg, scope, scope, this);
  }

  keys(): SetIterator<T> {
    return this.#set.keys();
  }

  values(): SetIterator<T> {
    return this.#set.values();
  }

  entries(): SetIterator<[T, T]> {
    return this.#set.entries();
  }

  [Symbol.iterator](): SetIterator<T> {
    return this.#set[Symbol.iterator]();
  }

  /** The scopes as an array, so that an identity can be logged as JSON. */
  toJSON(): T[] {
    return [...this.#set];
  }

  [inspect.custom](): unknown {
    return this.#set;
  }
}

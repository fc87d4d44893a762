import { OptionsParser } from '../errors/options-parser.js';
import { RegistryError } from '../errors/registry-error.js';
import type { Resource, Subject } from '../identity/ambient.cjs';
import { isScopeToken, isWildcardScope, SUBJECT_KINDS } from '../identity/create-identity.js';
import { frozenCopy } from '../identity/frozen-copy.js';
import type { PageQuery } from './token-store.js';

const MAX_NAME = 200;
const MAX_DESCRIPTION = 2_000;
const MAX_LIST = 1_000;
const MAX_METADATA_BYTES = 16_384;
const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 1_000;
/** Epoch seconds, not milliseconds: later than this is a mistake. The year 2106, as far as revocations reach. */
const MAX_INSTANT = 0xffff_ffff;
/** What PostgreSQL cannot store (NUL), what no encoding can (lone surrogates), and what breaks a line of a log. */
const UNPRINTABLE = /[\p{Cc}\p{Cs}]/u;
const UNSTORABLE = /[\0\p{Cs}]/u;

/**
 * Reads the input of one registry call and notes everything that is wrong with it. What is read is undefined where it was
 * not given, and null where it was given as null, which clears it.
 */
export class RegistryInput {
  readonly #parser = new OptionsParser('registry');
  readonly #given: Readonly<Record<string, unknown>>;

  constructor(given: object, fields: readonly string[]) {
    const known = this.#parser.known(given, fields, 'input');
    this.#given = Array.isArray(known) ? {} : (known as Record<string, unknown>);
    if (Array.isArray(known)) this.#parser.problem('input must be an object');
  }

  problem(text: string): void {
    this.#parser.problem(text);
  }

  /** @throws RegistryError with every problem: `not_found` when the only one is that something does not exist. */
  done(missing?: string): void {
    const { problems } = this.#parser;
    if (missing !== undefined && problems.length === 0) throw new RegistryError('not_found', [missing]);
    if (missing !== undefined) this.#parser.problem(missing);
    if (problems.length > 0) throw new RegistryError('invalid_input', problems);
  }

  /** A name in one line. */
  name(field: string): string | undefined {
    const value = this.#given[field];
    if (value === undefined) return undefined;
    if (isName(value)) return value;
    this.problem(`${field} must be 1 to ${MAX_NAME} printable characters`);
    return undefined;
  }

  nullableName(field: string): string | null | undefined {
    return this.#given[field] === null ? null : this.name(field);
  }

  /** Text of several lines. */
  description(): string | null | undefined {
    const value = this.#given.description;
    if (value === undefined || value === null) return value;
    if (typeof value === 'string' && value.length <= MAX_DESCRIPTION && !UNSTORABLE.test(value)) return value;
    this.problem(`description must be text of at most ${MAX_DESCRIPTION} characters`);
    return undefined;
  }

  /** A JSON object. */
  metadata(): Readonly<Record<string, unknown>> | null | undefined {
    const value = this.#given.metadata;
    if (value === undefined || value === null) return value;
    if (typeof value === 'object' && !Array.isArray(value)) {
      try {
        // As it will be read again from any store.
        const text = JSON.stringify(frozenCopy(value));
        if (Buffer.byteLength(text) <= MAX_METADATA_BYTES) return frozenCopy(JSON.parse(text));
      } catch {
        // Too deep, or nothing that JSON can hold.
      }
    }
    this.problem(`metadata must be a JSON object of at most ${MAX_METADATA_BYTES} bytes`);
    return undefined;
  }

  /** Scopes, each once. */
  scopes(): readonly string[] | undefined {
    const list = this.#list('scopes');
    if (list === undefined) return undefined;
    for (const [index, scope] of list.entries()) {
      if (!isScopeToken(scope) || scope.length > MAX_NAME) {
        this.problem(`scopes[${index}] is malformed: printable ASCII without spaces, quotes and backslashes is needed`);
      } else if (isWildcardScope(scope)) {
        this.problem(`scopes[${index}] is a wildcard: every scope must be named`);
      }
    }
    return Object.freeze([...new Set(list as string[])]);
  }

  /** Ranked groups: a duplicate would have two ranks. */
  groups(): readonly string[] | undefined {
    const list = this.#list('groups');
    if (list === undefined) return undefined;
    const first = new Map<unknown, number>();
    for (const [index, group] of list.entries()) {
      const earlier = first.get(group);
      if (!isName(group)) this.problem(`groups[${index}] must be 1 to ${MAX_NAME} printable characters`);
      else if (earlier !== undefined) this.problem(`groups[${index}] repeats groups[${earlier}]`);
      else first.set(group, index);
    }
    return Object.freeze([...(list as string[])]);
  }

  resources(): readonly Resource[] | null | undefined {
    if (this.#given.resources === null) return null;
    const list = this.#list('resources');
    if (list === undefined) return undefined;
    const resources: Resource[] = [];
    for (const [index, item] of list.entries()) {
      const { type, id } = this.#parser.known(item as Partial<Resource>, ['type', 'id'], `resources[${index}]`);
      if (isName(type) && isName(id)) resources.push(Object.freeze({ type, id }));
      else this.problem(`resources[${index}] must be { type, id }, each 1 to ${MAX_NAME} printable characters`);
    }
    return Object.freeze(resources);
  }

  subject(): Subject | undefined {
    const value = this.#given.subject;
    if (value === undefined) return undefined;
    const { kind, id } = this.#parser.known(value as Partial<Subject>, ['kind', 'id'], 'subject');
    const knownKind = SUBJECT_KINDS.find((known) => known === kind);
    if (knownKind !== undefined && isName(id)) return Object.freeze({ kind: knownKind, id });
    this.problem(
      `subject must be { kind, id }: kind one of ${SUBJECT_KINDS.join(', ')}, id 1 to ${MAX_NAME} characters`,
    );
    return undefined;
  }

  /** A future instant, in whole epoch seconds. */
  expiresAt(now: number): number | null | undefined {
    const value = this.#given.expiresAt;
    if (value === undefined || value === null) return value;
    if (typeof value !== 'number' || !(value >= 0 && value <= MAX_INSTANT)) {
      this.problem('expiresAt must be epoch seconds (a number, not milliseconds)');
      return undefined;
    }
    if (Math.floor(value) <= now) this.problem('expiresAt is in the past');
    return Math.floor(value);
  }

  seconds(field: string, max: number): number {
    const value = this.#given[field];
    if (value === undefined) return 0;
    if (typeof value === 'number' && value >= 0 && value <= max) return value;
    this.problem(`${field} must be a number of seconds from 0 to ${max}`);
    return 0;
  }

  oneOf<const T extends string>(field: string, allowed: readonly T[], fallback: T): T {
    const value = this.#given[field];
    if (value === undefined) return fallback;
    const found = allowed.find((item) => item === value);
    if (found === undefined) this.problem(`${field} must be one of ${allowed.join(', ')}`);
    return found ?? fallback;
  }

  /** Which part of a list is wanted: `limit` and `cursor`. */
  page(): PageQuery {
    const { limit = DEFAULT_LIMIT, cursor } = this.#given;
    if (typeof limit !== 'number' || !(Number.isInteger(limit) && limit >= 1 && limit <= MAX_LIMIT)) {
      this.problem(`limit must be an integer from 1 to ${MAX_LIMIT}`);
      return { limit: DEFAULT_LIMIT };
    }
    if (cursor === undefined) return { limit };
    if (typeof cursor !== 'string' || !/^[1-9]\d{0,14}$/.test(cursor)) {
      this.problem('cursor must be a nextCursor');
      return { limit };
    }
    return { limit, after: Number(cursor) };
  }

  /** Notes that a field is needed. */
  required(field: string, value: unknown): void {
    if (value === undefined && this.#given[field] === undefined) this.problem(`${field} is needed`);
  }

  #list(field: string): readonly unknown[] | undefined {
    const value = this.#given[field];
    if (value === undefined) return undefined;
    if (Array.isArray(value) && value.length <= MAX_LIST) return value;
    this.problem(`${field} must be an array of at most ${MAX_LIST} items`);
    return undefined;
  }
}

function isName(value: unknown): value is string {
  return typeof value === 'string' && value !== '' && value.length <= MAX_NAME && !UNPRINTABLE.test(value);
}

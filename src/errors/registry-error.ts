/** What went wrong in the registry or at the admin API. */
export type RegistryErrorCode = 'invalid_input' | 'not_found' | 'name_taken' | 'conflict';

/** Statuses of the codes, for whoever answers over HTTP. */
const STATUS = { invalid_input: 400, not_found: 404, name_taken: 409, conflict: 409 } as const;

/** Bad input to the registry, with every problem at once. Recognise it by `code`. */
export class RegistryError extends Error {
  override readonly name: string = 'RegistryError';
  readonly code: RegistryErrorCode;
  readonly status: 400 | 404 | 409;
  readonly problems: readonly string[];

  constructor(code: RegistryErrorCode, problems: readonly string[], options?: { cause?: unknown }) {
    super(problems.join('; '), options);
    this.code = code;
    this.status = STATUS[code];
    this.problems = Object.freeze([...problems]);
  }
}

/** Whether a value is a registry's refusal, of whichever copy of this package. */
export function isRegistryError(value: unknown): value is RegistryError {
  return (
    value instanceof Error && value.name === 'RegistryError' && Object.hasOwn(STATUS, (value as RegistryError).code)
  );
}

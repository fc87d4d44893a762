/** How one claim must look. A bare string must be equal; `glob` is anchored at both ends. */
export type ClaimMatch =
  | string
  | { readonly eq: string }
  | { readonly in: readonly string[] }
  | { readonly prefix: string }
  /** `*` stands for any characters but `/` and `:`, `**` for any at all, `?` for one that is neither. */
  | { readonly glob: string };

/** A claim's value that is compared at all. Anything longer matches nothing. */
const MAX_VALUE_LENGTH = 2_048;
const MAX_PATTERN_LENGTH = 512;

/** A compiled match. */
export interface ClaimMatcher {
  readonly kind: 'exact' | 'prefix' | 'glob';
  /** Of an exact match the values that match; else the one text that a value starts with at least. */
  readonly literals: readonly string[];
  /** The match as it was written: of a glob the pattern. */
  readonly text: string;
  /** Only strings match: a claim that is absent or of another type does not. */
  matches(value: unknown): boolean;
}

/** Compiles a match. @returns what is wrong with it, in words. */
export function compileMatch(given: unknown): ClaimMatcher | string {
  if (typeof given === 'string') return given === '' ? 'must not be empty' : oneOf([given]);
  const entries = typeof given === 'object' && given !== null ? Object.entries(given) : [];
  const [operator, operand] = entries[0] ?? [];
  if (entries.length !== 1 || operator === undefined)
    return 'must be a string or have exactly one of eq, in, prefix, glob';
  switch (operator) {
    case 'eq':
      return isText(operand) ? oneOf([operand]) : 'eq must be a string that is not empty';
    case 'in':
      return Array.isArray(operand) && operand.length > 0 && operand.every(isText)
        ? oneOf(operand)
        : 'in must be an array of strings that are not empty';
    case 'prefix': {
      if (!isText(operand)) return 'prefix must be a string that is not empty';
      return prefixed(operand);
    }
    case 'glob': {
      if (!isText(operand) || operand.length > MAX_PATTERN_LENGTH) {
        return `glob must be a string of 1 to ${MAX_PATTERN_LENGTH} characters`;
      }
      const steps = operand.match(/\*\*|[\s\S]/g) as string[];
      if (!/[*?]/.test(operand)) return oneOf([operand]);
      const literal = operand.slice(0, operand.search(/[*?]/));
      if (operand === `${literal}**`) return prefixed(literal);
      return matcher('glob', [literal], operand, (value) => globMatches(steps, value));
    }
    default:
      return 'must be a string or have exactly one of eq, in, prefix, glob';
  }
}

/** Whether every value that matches `one` certainly matches `two`. */
export function covers(two: ClaimMatcher, one: ClaimMatcher): boolean {
  if (one.kind === 'exact') return one.literals.every((value) => two.matches(value));
  if (two.kind === 'prefix') return (one.literals[0] as string).startsWith(two.literals[0] as string);
  return one.kind === two.kind && one.text === two.text;
}

function oneOf(values: readonly string[]): ClaimMatcher {
  const listed = new Set(values);
  return matcher('exact', [...listed], '', (value) => listed.has(value));
}

function prefixed(text: string): ClaimMatcher {
  return matcher('prefix', [text], text, (value) => value.startsWith(text));
}

function matcher(
  kind: ClaimMatcher['kind'],
  literals: readonly string[],
  text: string,
  matches: (value: string) => boolean,
): ClaimMatcher {
  return {
    kind,
    literals,
    text,
    matches: (value) => typeof value === 'string' && value.length <= MAX_VALUE_LENGTH && matches(value),
  };
}

/**
 * Follows all ways through the pattern at once: at most pattern × value steps, where a regular expression with several
 * wildcards would try them one after the other.
 */
function globMatches(steps: readonly string[], value: string): boolean {
  let reached: boolean[] = new Array(value.length + 1).fill(false);
  reached[0] = true;
  for (const step of steps) {
    const next: boolean[] = new Array(value.length + 1).fill(false);
    const isStar = step === '*' || step === '**';
    for (let index = 0; index <= value.length; index++) {
      const character = value[index - 1];
      if (isStar) {
        const goesOn = next[index - 1] === true && (step === '**' || !isSeparator(character));
        next[index] = reached[index] === true || goesOn;
      } else {
        const fits = step === '?' ? !isSeparator(character) : character === step;
        next[index] = index > 0 && reached[index - 1] === true && fits;
      }
    }
    reached = next;
  }
  return reached[value.length] === true;
}

function isSeparator(character: string | undefined): boolean {
  return character === '/' || character === ':';
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

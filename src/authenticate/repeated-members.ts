/**
 * Whether an object of a JSON text names a member twice. Parsers disagree on which one counts (RFC 8259 §4), so that two
 * readers of one token could see two different callers.
 *
 * @param text a valid JSON text.
 * @param value what `JSON.parse(text)` returned: a member that was named twice is in there once.
 */
export function repeatsMember(text: string, value: unknown): boolean {
  return countNames(text) !== countMembers(value);
}

/** How many members the text names: strings with a colon behind them. */
function countNames(text: string): number {
  let names = 0;
  for (let start = text.indexOf('"'); start !== -1; ) {
    let end = text.indexOf('"', start + 1);
    while (isEscaped(text, end)) end = text.indexOf('"', end + 1);
    let after = end + 1;
    while (isSpace(text.charCodeAt(after))) after += 1;
    if (text.charCodeAt(after) === COLON) names += 1;
    start = text.indexOf('"', after);
  }
  return names;
}

function countMembers(value: unknown): number {
  if (typeof value !== 'object' || value === null) return 0;
  let members = 0;
  if (Array.isArray(value)) {
    for (const item of value) if (typeof item === 'object') members += countMembers(item);
    return members;
  }
  for (const name of Object.keys(value)) {
    const item = (value as Record<string, unknown>)[name];
    members += typeof item === 'object' ? 1 + countMembers(item) : 1;
  }
  return members;
}

const COLON = 0x3a;
const BACKSLASH = 0x5c;

function isSpace(code: number): boolean {
  return code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09;
}

/** Whether an odd number of backslashes stands before. */
function isEscaped(text: string, index: number): boolean {
  let first = index;
  while (text.charCodeAt(first - 1) === BACKSLASH) first -= 1;
  return (index - first) % 2 === 1;
}

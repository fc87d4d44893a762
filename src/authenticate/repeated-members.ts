/**
 * Whether an object of a JSON text names a member twice. Parsers disagree on which one counts (RFC 8259 §4), so that two
 * readers of one token could see two different callers.
 *
 * @param value what `JSON.parse(text)` returned. A text that is written as JSON.stringify would write it, as most issuers
 *   do, needs no second look.
 */
export function repeatsMember(text: string, value: unknown): boolean {
  return JSON.stringify(value) !== text && scan(text);
}

/** Walks a valid JSON text: of every object only the names of its members are kept. */
function scan(text: string): boolean {
  const open: (Set<string> | undefined)[] = [];
  // Strings, brackets and separators; everything between them is numbers, words and white space.
  const tokens = /"(?:[^"\\]|\\.)*"|[{}[\],]/g;
  let expectsName = false;
  for (let match = tokens.exec(text); match !== null; match = tokens.exec(text)) {
    const token = match[0];
    const members = open.at(-1);
    if (token === '{') {
      open.push(new Set());
      expectsName = true;
    } else if (token === '[') {
      open.push(undefined);
      expectsName = false;
    } else if (token === '}' || token === ']') {
      open.pop();
      expectsName = false;
    } else if (token === ',') {
      expectsName = members !== undefined;
    } else if (expectsName && members !== undefined) {
      const name = String(JSON.parse(token));
      if (members.has(name)) return true;
      members.add(name);
      expectsName = false;
    }
  }
  return false;
}

import { OptionsParser } from '../errors/options-parser.js';
import type { UsageEvent } from '../meter/usage-event.js';

/** The columns of `eventsToCsv`; `quantities.<name>` and `dimensions.<name>` come after, as asked for. */
const COLUMNS = [
  'id',
  'source',
  'seq',
  'type',
  'time',
  'issuer',
  'authId',
  'tenant',
  'clientId',
  'tokenId',
  'plan',
  'subject.kind',
  'subject.id',
  'resource.type',
  'resource.id',
  'requestId',
  'method',
  'route',
  'status',
  'outcome',
  'billable',
  'durationMs',
  'corrects',
  'reason',
] as const;

/** Events as JSON lines, byte for byte what sinks were given, one per chunk. */
export async function* eventsToJsonl(events: AsyncIterable<UsageEvent>): AsyncGenerator<string> {
  for await (const event of events) yield `${JSON.stringify(event)}\n`;
}

export interface CsvOptions {
  /** Quantities that get a column each, in this order. Default `['requests']`. */
  readonly quantities?: readonly string[];
  /** Dimensions that get a column each, in this order. Default none. */
  readonly dimensions?: readonly string[];
  /**
   * What becomes of texts that a spreadsheet takes for a formula. Callers choose some: request ids, resources, dimensions.
   * `escape` (default) puts an apostrophe before them; `dangerouslyKeep` is for a reader that evaluates nothing.
   */
  readonly formulas?: 'escape' | 'dangerouslyKeep';
}

/** What spreadsheets take for the beginning of a formula, in every width (OWASP, CSV Injection). */
const FORMULA = /^[=+\-@\t\r\n\uFF1D\uFF0B\uFF0D\uFF20]/;

/**
 * Events as CSV (RFC 4180), the header first, one line per chunk. Absent values are empty. JSON lines are the exact form:
 * here a text that a spreadsheet would take for a formula is escaped.
 *
 * @throws TypeError that lists every problem of the options, when the first line is asked for.
 */
export async function* eventsToCsv(
  events: AsyncIterable<UsageEvent>,
  options: CsvOptions = {},
): AsyncGenerator<string> {
  const { quantities, dimensions, keepFormulas } = parseOptions(options);
  const line = (values: readonly unknown[]): string =>
    `${values.map((value) => cell(value, keepFormulas)).join(',')}\r\n`;
  const named = [...quantities.map((name) => `quantities.${name}`), ...dimensions.map((name) => `dimensions.${name}`)];
  yield line([...COLUMNS, ...named]);
  for await (const event of events) {
    const { subject, resource } = event;
    const flat: Partial<Record<string, unknown>> = {
      ...event,
      'subject.kind': subject?.kind,
      'subject.id': subject?.id,
      'resource.type': resource?.type,
      'resource.id': resource?.id,
    };
    yield line([
      ...COLUMNS.map((column) => flat[column]),
      ...quantities.map((name) => own(event.quantities, name)?.value),
      ...dimensions.map((name) => own(event.dimensions, name)),
    ]);
  }
}

function own<T>(record: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(record, name) ? record[name] : undefined;
}

function parseOptions(options: CsvOptions) {
  const parser = new OptionsParser('eventsToCsv');
  const {
    quantities = ['requests'],
    dimensions = [],
    formulas,
  } = parser.known(options, ['quantities', 'dimensions', 'formulas']);
  for (const [name, value] of Object.entries({ quantities, dimensions })) {
    const named = Array.isArray(value) && value.every((each) => typeof each === 'string');
    parser.check(named, `${name} must be an array of names`);
  }
  const mode = parser.oneOf('formulas', formulas, ['escape', 'dangerouslyKeep'], 'escape');
  parser.done();
  return { quantities, dimensions, keepFormulas: mode === 'dangerouslyKeep' };
}

function cell(value: unknown, keepFormulas: boolean): string {
  let text = value === undefined || value === null ? '' : String(value);
  if (typeof value === 'string' && !keepFormulas && FORMULA.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

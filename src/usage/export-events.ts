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
}

/**
 * Events as CSV (RFC 4180), the header first, one line per chunk. Absent values are empty. Values stand as they are: open
 * the file with a tool that does not evaluate cells as formulas.
 */
export async function* eventsToCsv(
  events: AsyncIterable<UsageEvent>,
  { quantities = ['requests'], dimensions = [] }: CsvOptions = {},
): AsyncGenerator<string> {
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

function line(values: readonly unknown[]): string {
  return `${values.map(cell).join(',')}\r\n`;
}

function cell(value: unknown): string {
  const text = value === undefined || value === null ? '' : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

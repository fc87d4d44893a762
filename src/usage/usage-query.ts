import { OptionsParser } from '../errors/options-parser.js';
import type { UsageEvent } from '../meter/usage-event.js';
import type { EventFilter, UsageFilter, UsageKey, UsageQuery } from './ledger.js';
import { type IntervalStart, intervalStarts, isTimeZone } from './local-interval.js';
import { keyText } from './rollup.js';

/** A query that was checked. Instants are milliseconds since the epoch. */
export interface ParsedQuery {
  readonly fromMs: number;
  readonly toMs: number;
  /** What each row is keyed by, companions included (`issuer` of an `authId`). */
  readonly keys: readonly string[];
  readonly quantities: ReadonlySet<string> | undefined;
  readonly intervalStart: IntervalStart | undefined;
  readonly filter: UsageFilter;
}

const KEYS = ['tenant', 'clientId', 'authId', 'issuer', 'subject', 'resource', 'plan', 'type'] as const;
const FILTERS = ['tenant', 'clientId', 'authId', 'issuer', 'type'] as const;
const COMPANIONS: Readonly<Partial<Record<string, readonly string[]>>> = {
  authId: ['issuer'],
  subject: ['issuer', 'subject.kind'],
  resource: ['resource.type'],
};
const TEXT_FILTERS = [...FILTERS, 'requestId', 'id', 'source'] as const;
const EVENT_FILTERS = [...TEXT_FILTERS, 'from', 'to', 'subject', 'resource'] as const;

/** @throws TypeError that lists every problem of the query. */
export function parseUsageQuery(query: UsageQuery): ParsedQuery {
  const parser = new OptionsParser('usage');
  const given = parser.known(query, ['from', 'to', 'groupBy', 'interval', 'quantities', 'timeZone', 'filter']);
  const fromMs = instant('from', given.from, parser);
  const toMs = instant('to', given.to, parser);
  if (fromMs > toMs) parser.problem('from must not be after to');
  const keys = new Set<string>();
  if (!Array.isArray(given.groupBy)) parser.problem('groupBy must be an array');
  else {
    for (const key of given.groupBy as readonly UsageKey[]) {
      if (KEYS.includes(key as never) || /^dimensions\.[A-Za-z_][A-Za-z0-9_.-]{0,63}$/.test(key)) {
        keys.add(key);
        for (const companion of COMPANIONS[key] ?? []) keys.add(companion);
      } else parser.problem(`groupBy: one of ${KEYS.join(', ')} or dimensions.<name> is needed`);
    }
  }
  const { interval, timeZone = 'UTC', quantities } = given;
  if (interval !== undefined) parser.oneOf('interval', interval, ['hour', 'day', 'month'], 'hour');
  const zoned = isTimeZone(timeZone);
  parser.check(zoned, 'timeZone must be an IANA time zone');
  if (
    quantities !== undefined &&
    !(Array.isArray(quantities) && quantities.every((name) => typeof name === 'string'))
  ) {
    parser.problem('quantities must be an array of names');
  }
  const filter = parser.known(given.filter ?? {}, FILTERS, 'filter');
  for (const [name, value] of Object.entries(filter)) if (value !== undefined) parser.string(`filter.${name}`, value);
  parser.done();
  return {
    fromMs,
    toMs,
    keys: [...keys],
    quantities: quantities === undefined ? undefined : new Set(quantities),
    intervalStart: interval === undefined ? undefined : intervalStarts(interval, timeZone),
    filter,
  };
}

/** @throws TypeError that lists every problem of the filter. */
export function parseEventFilter(filter: EventFilter): EventFilter & { fromMs: number; toMs: number } {
  const parser = new OptionsParser('events');
  const given = parser.known(filter, EVENT_FILTERS);
  const fromMs = given.from === undefined ? Number.NEGATIVE_INFINITY : instant('from', given.from, parser);
  const toMs = given.to === undefined ? Number.POSITIVE_INFINITY : instant('to', given.to, parser);
  if (fromMs > toMs) parser.problem('from must not be after to');
  for (const name of TEXT_FILTERS) if (given[name] !== undefined) parser.string(name, given[name]);
  // A filter that says nothing would match everything.
  for (const [name, keys] of [
    ['subject', ['kind', 'id']],
    ['resource', ['type', 'id']],
  ] as const) {
    if (given[name] === undefined) continue;
    const pair = parser.known<Readonly<Record<string, unknown>>>(given[name] as never, keys, name);
    for (const key of keys) parser.string(`${name}.${key}`, pair[key]);
  }
  parser.done();
  return { ...given, fromMs, toMs };
}

/** Whether an event passes the filter, but for its time. */
export function matches(event: UsageEvent, filter: EventFilter): boolean {
  const { tenant, clientId, authId, issuer, type, requestId, id, source, subject, resource } = filter;
  return (
    same(tenant, event.tenant) &&
    same(clientId, event.clientId) &&
    same(authId, event.authId) &&
    same(issuer, event.issuer) &&
    same(type, event.type) &&
    same(requestId, event.requestId) &&
    same(id, event.id) &&
    same(source, event.source) &&
    same(subject?.kind, event.subject?.kind) &&
    same(subject?.id, event.subject?.id) &&
    same(resource?.type, event.resource?.type) &&
    same(resource?.id, event.resource?.id)
  );
}

/** What an event states for a key of a row; undefined where it states nothing. */
export function keyOf(event: UsageEvent, key: string): string | undefined {
  const value = statedFor(event, key);
  return value === undefined || value === '' ? undefined : keyText(value);
}

function statedFor(event: UsageEvent, key: string): string | undefined {
  switch (key) {
    case 'subject':
      return event.subject?.id;
    case 'subject.kind':
      return event.subject?.kind;
    case 'resource':
      return event.resource?.id;
    case 'resource.type':
      return event.resource?.type;
    case 'tenant':
    case 'clientId':
    case 'authId':
    case 'issuer':
    case 'plan':
    case 'type':
      return event[key];
    default: {
      const name = key.slice('dimensions.'.length);
      return Object.hasOwn(event.dimensions, name) ? String(event.dimensions[name]) : undefined;
    }
  }
}

function same(wanted: string | undefined, found: string | undefined): boolean {
  return wanted === undefined || wanted === found || (found !== undefined && keyText(wanted) === keyText(found));
}

function instant(name: string, value: unknown, parser: OptionsParser): number {
  const text =
    typeof value === 'string' &&
    /^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d))?$/i.test(value) &&
    isDay(value.slice(0, 10));
  const ms = value instanceof Date ? value.getTime() : text ? Date.parse(value) : Number.NaN;
  if (Number.isNaN(ms)) parser.problem(`${name} must be a Date or RFC 3339`);
  return ms;
}

/** `Date` takes the 30th of February for the 2nd of March: a bill would begin or end on another day. */
function isDay(text: string): boolean {
  const ms = Date.parse(text);
  return !Number.isNaN(ms) && new Date(ms).toISOString().startsWith(text);
}

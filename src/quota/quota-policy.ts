import type { OptionsParser } from '../errors/options-parser.js';
import { calendarWindow } from './calendar-window.js';
import { isUnits, type StoreWindow } from './quota-store.js';

/**
 * Whose use is counted together, within the caller's tenant: a client or key that is used in several tenants has its limit
 * once in each. Without a tenant it is within the client where some policy is `per: 'client'`, else within the subject, so
 * that all policies of a request can be decided in one step. `subject` is issuer, kind and id.
 */
export type QuotaScope = 'subject' | 'tenant' | 'client' | 'authId';

/** How a policy's count is forgotten. */
export type QuotaWindow =
  /**
   * A rate: `limit` units per `periodSeconds`, given back evenly, and never more than `burst` at once (default: the limit).
   * In any interval of t seconds at most `burst + limit · t / periodSeconds` units pass.
   */
  | { readonly kind?: 'gcra'; readonly periodSeconds: number; readonly burst?: number }
  /**
   * `limit` units per day, week or month of `timeZone` (IANA, default `UTC`); weeks begin on Monday, months on `anchorDay`
   * (1 to 31, default 1; the last day of a shorter month). Around the end of a window up to twice the limit may pass.
   */
  | {
      readonly kind: 'calendar';
      readonly unit: 'day' | 'week' | 'month';
      readonly timeZone?: string;
      readonly anchorDay?: number;
    }
  /** `limit` units at the same time. What never ends is given back after `ttlSeconds` (default 300). */
  | { readonly kind: 'concurrent'; readonly ttlSeconds?: number };

/** One limit of a plan. */
export interface QuotaPolicy {
  /** 1 to 64 printable ASCII characters, unique within the plan. Plans that share a name share the count. */
  readonly name: string;
  readonly per: QuotaScope;
  /** What is counted: `requests` (default), or a quantity that `cost`, `reserve` or `usageOf(req)` name. */
  readonly unit?: string;
  /** Units: a safe integer of at least 0. */
  readonly limit: number;
  /**
   * What happens when the store fails. `deny` (default): 503. `local`: this process counts up to its share,
   * ⌈limit / replicas⌉. `allow`: the policy is not applied.
   */
  readonly onStoreError?: 'deny' | 'local' | 'allow';
  readonly window: QuotaWindow;
}

/** A policy as it was understood. */
export interface ParsedPolicy {
  readonly name: string;
  /** The name as headers carry it: an RFC 9651 String. */
  readonly label: string;
  /** The unit as they carry it: nothing for requests. */
  readonly unitLabel: string;
  readonly per: QuotaScope;
  readonly unit: string;
  readonly limit: number;
  readonly onStoreError: 'deny' | 'local' | 'allow';
  readonly window: StoreWindow;
  /** Part of the counter's key: a window of another kind counts anew. */
  readonly windowId: 'gcra' | 'day' | 'week' | 'month' | 'concurrent';
}

/** Names of quantities, as `usageOf(req)` takes them. */
const UNIT = /^(?!__proto__$)[A-Za-z_][A-Za-z0-9_.-]{0,63}$/;
/** RFC 9651 §3.3.3: the characters of a String. */
const NAME = /^[\x21-\x7E](?:[\x20-\x7E]{0,62}[\x21-\x7E])?$/;
/** Ten years. */
const MAX_SECONDS = 315_360_000;

/** The policies of one plan; what is wrong is noted. */
export function parsePolicies(parser: OptionsParser, where: string, given: unknown): ParsedPolicy[] {
  if (!Array.isArray(given)) {
    parser.problem(`${where} must be an array of policies`);
    return [];
  }
  const names = new Set<string>();
  return given.map((item: QuotaPolicy, index) => {
    const at = `${where}[${index}]`;
    const keys = ['name', 'per', 'unit', 'limit', 'onStoreError', 'window'];
    const { name, per, unit = 'requests', limit, onStoreError, window } = parser.known(item, keys, at);
    const named = parser.check(typeof name === 'string' && NAME.test(name), `${at}.name must be printable ASCII`);
    if (named) parser.check(!names.has(name), `${at}.name is used twice`);
    names.add(name);
    if (per === undefined) parser.problem(`${at}.per is missing`);
    parser.check(typeof unit === 'string' && UNIT.test(unit), `${at}.unit must be the name of a quantity`);
    parser.check(isUnits(limit), `${at}.limit must be a safe integer of at least 0`);
    return {
      name,
      label: `"${String(name).replace(/["\\]/g, '\\$&')}"`,
      unitLabel: unitLabelOf(unit, window),
      per: parser.oneOf(`${at}.per`, per, ['subject', 'tenant', 'client', 'authId'], 'subject'),
      unit,
      limit,
      onStoreError: parser.oneOf(`${at}.onStoreError`, onStoreError, ['deny', 'local', 'allow'], 'deny'),
      ...parseWindow(parser, `${at}.window`, window, limit),
    };
  });
}

/** `qu` of the draft, §3.1.2: without it, `requests` is meant. Units that have no registered name keep their own. */
function unitLabelOf(unit: string, window: QuotaWindow): string {
  if (unit === 'request_bytes' || unit === 'response_bytes') return ';qu="content-bytes"';
  if (unit !== 'requests') return `;qu="${unit}"`;
  return window?.kind === 'concurrent' ? ';qu="concurrent-requests"' : '';
}

function parseWindow(
  parser: OptionsParser,
  at: string,
  given: QuotaWindow,
  limit: number,
): Pick<ParsedPolicy, 'window' | 'windowId'> {
  const kind = parser.oneOf(`${at}.kind`, given?.kind, ['gcra', 'calendar', 'concurrent'], 'gcra');
  if (given?.kind === 'calendar') {
    const { unit, timeZone, anchorDay } = parser.known(given, ['kind', 'unit', 'timeZone', 'anchorDay'], at);
    if (unit === undefined) parser.problem(`${at}.unit is missing`);
    const windowId = parser.oneOf(`${at}.unit`, unit, ['day', 'week', 'month'], 'day');
    const anchor = parser.number(`${at}.anchorDay`, anchorDay, 1, { min: 1, max: 31, integer: true });
    parser.check(anchorDay === undefined || unit === 'month', `${at}.anchorDay is for months`);
    let windowAt: ReturnType<typeof calendarWindow>;
    try {
      windowAt = calendarWindow({ unit: windowId, timeZone, anchorDay: anchor });
    } catch {
      parser.problem(`${at}.timeZone must be an IANA time zone`);
      windowAt = calendarWindow({ unit: windowId });
    }
    return { windowId, window: { kind: 'calendar', at: windowAt } };
  }
  if (given?.kind === 'concurrent') {
    const { ttlSeconds } = parser.known(given, ['kind', 'ttlSeconds'], at);
    const ttl = parser.number(`${at}.ttlSeconds`, ttlSeconds, 300, { min: 0.001, max: MAX_SECONDS });
    return {
      windowId: kind === 'concurrent' ? kind : 'concurrent',
      window: { kind: 'concurrent', ttlMs: ttl * 1_000 },
    };
  }
  const { periodSeconds, burst } = parser.known(
    given as { periodSeconds: number },
    ['kind', 'periodSeconds', 'burst'],
    at,
  ) as {
    periodSeconds?: number;
    burst?: number;
  };
  if (periodSeconds === undefined) parser.problem(`${at}.periodSeconds is missing`);
  const period = parser.number(`${at}.periodSeconds`, periodSeconds, 1, { min: 0.001, max: MAX_SECONDS });
  const most = parser.number(`${at}.burst`, burst, limit, { min: 1, integer: true });
  return { windowId: 'gcra', window: { kind: 'gcra', periodMs: period * 1_000, burst: most } };
}

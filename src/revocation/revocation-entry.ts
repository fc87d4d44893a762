import { createHash } from 'node:crypto';
import { OptionsParser } from '../errors/options-parser.js';
import { FOREVER } from './hashed-table.js';
import type { RevocationEntry } from './revocation-store.js';
import type { ChangeTarget, RevocationTarget, RevokeOptions } from './revocations.js';

/** Seconds that a denial is kept past its `expiresAt`: verifiers tolerate clocks that differ. */
const EXPIRY_MARGIN_SECONDS = 60;
/** Seconds for which a change is kept, so that processes that were cut off for a while hear of it. */
export const CHANGE_KEEP_SECONDS = 3_600;

export type TargetKind = 'token' | 'client' | 'tenant' | 'subject' | 'issuer' | 'key' | 'all';
export type ChangeKind = 'token' | 'client' | 'key';

/** What an entry names. */
export interface NamedTarget {
  readonly action: 'revoke' | 'change';
  readonly kind: TargetKind;
  /** Empty for `all`. */
  readonly id: string;
  /** Empty: whichever issuer. */
  readonly issuer: string;
}

const KINDS = { tokenId: 'token', clientId: 'client', tenant: 'tenant', subject: 'subject', keyId: 'key' } as const;
/** The kinds whose target may, or must, name an issuer. */
const WITH_ISSUER: readonly TargetKind[] = ['token', 'client', 'subject'];
const CHANGEABLE: readonly TargetKind[] = ['token', 'client', 'key'];

/**
 * The entry that a call of `revoke` makes.
 *
 * @throws TypeError that lists every problem.
 */
export function revocationEntry(
  target: RevocationTarget,
  options: RevokeOptions | undefined,
  nowMs: number,
): RevocationEntry {
  const parser = new OptionsParser('revoke');
  const named = parseTarget(parser, 'revoke', target);
  const { before, expiresAt, reason } = parser.known(options ?? {}, ['before', 'expiresAt', 'reason'], 'options');
  // A token is denied as such; whoever holds a leaked key states any `iat`.
  const absolute = named.kind === 'token' || named.kind === 'key';
  const cutOff = instant(parser, 'before', before, absolute ? FOREVER : Math.floor(nowMs / 1_000));
  const end = instant(parser, 'expiresAt', expiresAt, FOREVER);
  const readable = typeof reason === 'string' && reason.length <= 500 && !/\p{C}/u.test(reason);
  parser.check(reason === undefined || readable, 'options.reason must be printable text of at most 500 characters');
  parser.done();
  return {
    ...keyed(named),
    before: named.kind === 'token' ? FOREVER : cutOff,
    expiresAt: Math.min(FOREVER, end + EXPIRY_MARGIN_SECONDS),
    ...(reason === undefined ? {} : { reason }),
  };
}

/**
 * The entry that a call of `changed` makes.
 *
 * @throws TypeError that lists every problem.
 */
export function changeEntry(target: ChangeTarget, nowMs: number): RevocationEntry {
  const parser = new OptionsParser('changed');
  const named = parseTarget(parser, 'change', target);
  parser.done();
  return { ...keyed(named), before: 0, expiresAt: Math.floor(nowMs / 1_000) + CHANGE_KEEP_SECONDS };
}

/**
 * What an entry of a store names.
 *
 * @throws TypeError for what this version of the package does not understand: ignoring it could let somebody through.
 */
export function namedTarget(entry: RevocationEntry): NamedTarget {
  const parsed: unknown = JSON.parse(entry.target);
  const [action, kind, id, issuer] = (Array.isArray(parsed) ? parsed : []) as Partial<Record<number, unknown>> &
    unknown[];
  const known =
    (action === 'revoke' && ([...Object.values(KINDS), 'issuer', 'all'] as unknown[]).includes(kind)) ||
    (action === 'change' && (CHANGEABLE as unknown[]).includes(kind));
  if (!known || typeof id !== 'string' || typeof issuer !== 'string' || !isSecond(entry.before)) {
    throw new TypeError('the revocation store holds an entry of an unknown form');
  }
  if (!isSecond(entry.expiresAt)) throw new TypeError('the revocation store holds an entry with an unknown expiry');
  return { action, kind, id, issuer } as NamedTarget;
}

function parseTarget(
  parser: OptionsParser,
  action: NamedTarget['action'],
  target: RevocationTarget | ChangeTarget,
): NamedTarget {
  const given = parser.known(target as object, [...Object.keys(KINDS), 'issuer', 'all'], 'target');
  const { issuer, all } = given as { issuer?: unknown; all?: unknown };
  const names = Object.keys(KINDS).filter((name) => (given as Record<string, unknown>)[name] !== undefined);
  const [name] = names as (keyof typeof KINDS)[];
  const count = names.length + (all === undefined ? 0 : 1);
  if (issuer !== undefined) parser.string('target.issuer', issuer);
  const issuerText = typeof issuer === 'string' ? issuer : '';
  if (count > 1) parser.problem('target must name one thing only');
  if (all !== undefined) parser.check(all === true && issuer === undefined, 'target.all must be true and stand alone');
  let named: NamedTarget = { action, kind: 'all', id: '', issuer: '' };
  if (name !== undefined) {
    const kind = KINDS[name];
    const id = parser.string(`target.${name}`, (given as Record<string, unknown>)[name]);
    if (kind === 'subject') parser.check(issuerText !== '', 'target.subject needs target.issuer beside it');
    else if (!WITH_ISSUER.includes(kind)) parser.check(issuer === undefined, `target.${name} takes no issuer`);
    named = { action, kind, id, issuer: issuerText };
  } else if (issuer !== undefined) named = { action, kind: 'issuer', id: issuerText, issuer: '' };
  else if (count === 0) parser.problem('target names nothing');
  if (action === 'change' && count === 1) {
    parser.check(CHANGEABLE.includes(named.kind), 'target must be a tokenId, a clientId or a keyId');
  } else if (action === 'change' && issuer !== undefined)
    parser.problem('target must be a tokenId, a clientId or a keyId');
  return named;
}

function keyed({ action, kind, id, issuer }: NamedTarget): { key: string; target: string } {
  const target = JSON.stringify([action, kind, id, issuer]);
  return { key: createHash('sha256').update(target).digest('base64url'), target };
}

/** Whole epoch seconds. The bound also catches milliseconds, which would deny everything for ever. */
function instant(parser: OptionsParser, name: string, value: unknown, fallback: number): number {
  if (value === undefined) return fallback;
  if (value === Number.POSITIVE_INFINITY) return FOREVER;
  if (typeof value === 'number' && value >= 0 && value < FOREVER) return Math.floor(value);
  parser.problem(`options.${name} must be epoch seconds (not milliseconds) or Infinity`);
  return fallback;
}

function isSecond(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= FOREVER;
}

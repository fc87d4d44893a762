import { RegistryError } from '../errors/registry-error.js';
import type { KeyRecord, KeyState } from './key-store.js';

/** The rules of time of one ring, in seconds. */
export interface KeyTimes {
  /** Between being published and signing. */
  readonly publishSeconds: number;
  /** Between the last signature and being withdrawn. */
  readonly keepSeconds: number;
}

const PUBLISHED: readonly KeyState[] = ['next', 'active', 'retiring'];

/** Whether verifiers are told of the key. */
export function isPublished(record: KeyRecord): boolean {
  return PUBLISHED.includes(record.state);
}

/** The instant, in epoch seconds, from which a `next` key may sign. */
export function activatableAt(record: KeyRecord, times: KeyTimes): number {
  return record.stagedAt + times.publishSeconds;
}

/** The instant, in epoch seconds, from which a key that signs no more may be withdrawn. */
export function retirableAt(record: KeyRecord, times: KeyTimes): number {
  // A key that never signed has nothing that could still be valid.
  return record.retiringAt === undefined ? record.stagedAt : record.retiringAt + times.keepSeconds;
}

/** Makes a `next` key the one that signs; the one that signed until now only verifies from here on. */
export function activated(records: readonly KeyRecord[], kid: string, now: number, times: KeyTimes): KeyRecord[] {
  const record = find(records, kid);
  if (record.state === 'active') return [...records];
  if (record.state !== 'next') throw refusal(`a key that is ${record.state} cannot become active`);
  const first = !records.some(({ state }) => state === 'active');
  if (!first && isBefore(now, activatableAt(record, times))) {
    throw refusal(
      `the key has not been published for ${times.publishSeconds} s: a verifier may not know it yet, so it may sign ` +
        `from ${instant(activatableAt(record, times))} on`,
    );
  }
  return promote(records, kid, now);
}

/** Withdraws a key that nothing valid can be signed with any more. */
export function retired(records: readonly KeyRecord[], kid: string, now: number, times: KeyTimes): KeyRecord[] {
  const record = find(records, kid);
  if (record.state === 'retired') return [...records];
  if (record.state === 'active') throw refusal('the active key cannot be retired: activate another one first');
  if (record.state === 'revoked') throw refusal('the key is revoked already');
  if (record.state === 'retiring' && isBefore(now, retirableAt(record, times))) {
    throw refusal(
      `what the key signed may still be valid: it may be retired from ${instant(retirableAt(record, times))} on`,
    );
  }
  return records.map((item) => (item.kid === kid ? ended(item, 'retired', now) : item));
}

/** Withdraws a key at once. If it signs, the `next` key that has been published the longest takes over. */
export function revoked(records: readonly KeyRecord[], kid: string, now: number): KeyRecord[] {
  const record = find(records, kid);
  if (record.state === 'revoked') return [...records];
  let rest = [...records];
  if (record.state === 'active') {
    const [heir] = records.filter(({ state }) => state === 'next').sort((a, b) => a.stagedAt - b.stagedAt);
    if (heir === undefined) throw refusal('the active key cannot be revoked without a next one: stage a key first');
    rest = promote(records, heir.kid, now);
  }
  return rest.map((item) => (item.kid === kid ? ended(item, 'revoked', now) : item));
}

/**
 * What the ring becomes when its file holds `fresh`, in this order: a new key is published; the first one signs as soon as
 * it has been published long enough; one that has left the file keeps verifying until nothing it signed can be valid.
 */
export function reconciled(
  records: readonly KeyRecord[],
  fresh: readonly KeyRecord[],
  now: number,
  times: KeyTimes,
): KeyRecord[] {
  const listed = new Set(fresh.map(({ kid }) => kid));
  const known = new Set(records.map(({ kid }) => kid));
  let result = [...records, ...fresh.filter(({ kid }) => !known.has(kid))];
  const first = fresh.map(({ kid }) => find(result, kid)).find(isPublished);
  const none = !result.some(({ state }) => state === 'active');
  if (first?.state === 'next' && (none || !isBefore(now, activatableAt(first, times)))) {
    result = promote(result, first.kid, now);
  }
  return result.map((record) => {
    if (listed.has(record.kid) || record.state === 'active' || !isPublished(record)) return record;
    // Another process may have signed with it: what left the file counts as having signed until now.
    const leaving: KeyRecord = record.state === 'next' ? { ...record, state: 'retiring', retiringAt: now } : record;
    return isBefore(now, retirableAt(leaving, times)) ? leaving : ended(leaving, 'retired', now);
  });
}

function promote(records: readonly KeyRecord[], kid: string, now: number): KeyRecord[] {
  return records.map((record) => {
    if (record.kid === kid) return { ...record, state: 'active', activatedAt: now };
    if (record.state === 'active') return { ...record, state: 'retiring', retiringAt: now };
    return record;
  });
}

/** A withdrawn key's record, without its private part. */
function ended({ privateJwk: _, ...record }: KeyRecord, state: 'retired' | 'revoked', now: number): KeyRecord {
  return { ...record, state, endedAt: now };
}

function find(records: readonly KeyRecord[], kid: string): KeyRecord {
  const record = records.find((item) => item.kid === kid);
  if (record === undefined) throw new RegistryError('not_found', ['the key ring has no key with this kid']);
  return record;
}

/** Compared in whole milliseconds: fractions of seconds do not add up exactly. */
function isBefore(now: number, instantSeconds: number): boolean {
  return Math.round(now * 1_000) < Math.round(instantSeconds * 1_000);
}

function instant(seconds: number): string {
  return new Date(Math.ceil(seconds * 1_000)).toISOString();
}

function refusal(problem: string): RegistryError {
  return new RegistryError('conflict', [problem]);
}

import assert from 'node:assert/strict';
import type { UsageEvent } from '../meter/usage-event.js';
import type { Ledger, UsageReport } from '../usage/ledger.js';

/** Adds a case to the contract. */
export type AddLedgerCase = (name: string, body: (ledger: Ledger) => Promise<void>) => void;

/** The day of `usageEvent`. */
export const DAY = { from: '2026-03-01T00:00:00Z', to: '2026-03-02T00:00:00Z' } as const;

/** For calls that nobody ends. */
export const signal: AbortSignal = new AbortController().signal;

/** A complete, billable usage event of 2026-03-01; what is undefined in `overrides` is left out. */
export function usageEvent(overrides: Partial<UsageEvent> = {}): UsageEvent {
  const seq = overrides.seq ?? 1;
  const event = {
    id: `e${seq}-${overrides.source ?? 'test/1'}`.replace('/', '.'),
    source: 'test/1',
    seq,
    type: 'call',
    time: '2026-03-01T10:00:00.000Z',
    authId: 'k1',
    subject: { kind: 'user', id: 'u' },
    issuer: 'iss',
    verifier: 'test',
    tenant: 't',
    outcome: 'complete',
    billable: true,
    quantities: { requests: amount(1) },
    dimensions: {},
    ...overrides,
  };
  return Object.fromEntries(Object.entries(event).filter(([, value]) => value !== undefined)) as unknown as UsageEvent;
}

export function amount(value: number): { value: number; basis: 'measured' } {
  return { value, basis: 'measured' };
}

export async function write(ledger: Ledger, events: readonly UsageEvent[]): Promise<void> {
  const verdicts = await ledger.write(events, signal);
  for (const verdict of verdicts ?? []) assert.equal(verdict.outcome, 'delivered');
}

export function plain(rows: UsageReport['rows']) {
  return rows.map(({ key, events, quantities, notBillable }) => ({
    key: { ...key },
    events,
    quantities: { ...quantities },
    rest: notBillable.events,
    restQuantities: { ...notBillable.quantities },
  }));
}

export function sorted(rows: readonly unknown[]): unknown[] {
  const text = (row: unknown): string =>
    JSON.stringify(row, (_key, value) =>
      typeof value === 'object' && value !== null && !Array.isArray(value) ? Object.entries(value).sort() : value,
    );
  return [...rows].sort((a, b) => (text(a) < text(b) ? -1 : 1));
}

export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

import { memoryLedger } from 'tollkeeper';
import { ledgerContract } from 'tollkeeper/testing';
import { describe, expect, it } from 'vitest';

describe('memoryLedger', () => {
  for (const { name, run } of ledgerContract(async () => ({ ledger: memoryLedger() }))) it(name, run);

  it('is a sink by the name that it is given', () => {
    expect(memoryLedger().name).toBe('ledger');
    expect(memoryLedger({ name: 'books' }).name).toBe('books');
  });
});

describe('ledgerContract', () => {
  it('refuses ledgers that are broken', async () => {
    const broken = [
      // Takes duplicates: forgets what it has.
      () => {
        const ledger = memoryLedger();
        let serial = 0;
        const write: typeof ledger.write = (events, signal) =>
          ledger.write(
            events.map((event) => ({ ...event, id: `${event.id}-${serial++}` })),
            signal,
          );
        return { ...ledger, write };
      },
      // Loses every tenth event.
      () => {
        const ledger = memoryLedger();
        return {
          ...ledger,
          write: (events, signal) =>
            ledger.write(
              events.filter(({ seq }) => seq % 10 !== 0),
              signal,
            ),
        } as typeof ledger;
      },
      // Knows no gaps.
      () => {
        const ledger = memoryLedger();
        return { ...ledger, audit: async () => (await ledger.audit()).map((audit) => ({ ...audit, missing: [] })) };
      },
    ];
    for (const make of broken) {
      const results = await Promise.allSettled(
        ledgerContract(async () => ({ ledger: make() })).map(({ run }) => run()),
      );
      expect(results.some(({ status }) => status === 'rejected')).toBe(true);
    }
  });
});

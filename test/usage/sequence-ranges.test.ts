import fc from 'fast-check';
import { memoryLedger } from 'tollkeeper';
import { usageEvent } from 'tollkeeper/testing';
import { expect, it } from 'vitest';

it('the audit misses the same numbers as a plain set, whatever arrives in whatever order', async () => {
  const signal = new AbortController().signal;
  const number = fc.integer({ min: 1, max: 60 });
  const run = fc
    .tuple(number, fc.integer({ min: 0, max: 8 }))
    .map(([from, more]) => Array.from({ length: more + 1 }, (_, i) => from + i));
  await fc.assert(
    fc.asyncProperty(
      fc.array(run, { minLength: 1, maxLength: 30 }),
      fc.array(number),
      number,
      async (runs, dead, last) => {
        const ledger = memoryLedger();
        const arrived = runs.flat();
        await ledger.write(
          arrived.map((seq) => usageEvent({ seq })),
          signal,
        );
        await ledger.sourceNotes(dead.map((seq) => ({ kind: 'dead_letter', source: 'test/1', seq, reason: 'x' })));
        await ledger.sourceNotes([{ kind: 'closed', source: 'test/1', lastSeq: last }]);
        const known = new Set([...arrived, ...dead]);
        const end = Math.max(...known, last);
        const [audit] = await ledger.audit();
        const missing = audit?.missing.flatMap(([from, to]) =>
          Array.from({ length: to - from + 1 }, (_, i) => from + i),
        );
        expect([audit?.last, audit?.count]).toEqual([end, new Set(arrived).size]);
        expect(missing).toEqual(Array.from({ length: end }, (_, i) => i + 1).filter((n) => !known.has(n)));
        // As few gaps as there can be.
        for (const [index, [from]] of (audit?.missing ?? []).entries()) {
          if (index > 0) expect(from).toBeGreaterThan((audit?.missing[index - 1]?.[1] ?? 0) + 1);
        }
      },
    ),
    { numRuns: 300 },
  );
});

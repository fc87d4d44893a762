import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { SequenceRanges } from '../../src/usage/sequence-ranges.js';

describe('SequenceRanges', () => {
  it('holds and misses the same numbers as a plain set, whatever is added in whatever order', () => {
    const run = fc
      .tuple(fc.integer({ min: 1, max: 60 }), fc.integer({ min: 0, max: 8 }))
      .map(([from, more]) => [from, from + more] as const);
    fc.assert(
      fc.property(fc.array(run, { maxLength: 30 }), fc.integer({ min: 0, max: 80 }), (runs, last) => {
        const ranges = new SequenceRanges(runs);
        const plain = new Set(runs.flatMap(([from, to]) => Array.from({ length: to - from + 1 }, (_, i) => from + i)));
        const expand = (list: readonly (readonly [number, number])[]) =>
          list.flatMap(([from, to]) => Array.from({ length: to - from + 1 }, (_, i) => from + i));
        expect(expand(ranges.runs())).toEqual([...plain].sort((a, b) => a - b));
        const missing = Array.from({ length: last }, (_, i) => i + 1).filter((n) => !plain.has(n));
        expect(expand(ranges.missing(last))).toEqual(missing);
        // As few runs as there are gaps.
        for (const [index, [from]] of ranges.runs().entries()) {
          if (index > 0) expect(from).toBeGreaterThan((ranges.runs()[index - 1] as readonly [number, number])[1] + 1);
        }
      }),
      { numRuns: 500 },
    );
  });
});

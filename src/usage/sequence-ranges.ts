/** First and last number of a run, inclusive. */
export type SequenceRange = readonly [from: number, to: number];

/** A set of sequence numbers, held as runs: as small as it has gaps. */
export class SequenceRanges {
  readonly #runs: [from: number, to: number][] = [];

  constructor(runs: Iterable<SequenceRange> = []) {
    for (const [from, to] of runs) this.add(from, to);
  }

  /** Adds every number from `from` to `to`. */
  add(from: number, to = from): void {
    const runs = this.#runs;
    // The first run that ends at or after the neighbour of `from`; numbers mostly come in order, so the end is tried first.
    let low = 0;
    let high = runs.length;
    const last = runs[high - 1];
    if (last !== undefined && last[1] < from - 1) low = high;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((runs[middle] as SequenceRange)[1] < from - 1) low = middle + 1;
      else high = middle;
    }
    let first = from;
    let end = to;
    let count = 0;
    for (let run = runs[low]; run !== undefined && run[0] <= to + 1; run = runs[low + count]) {
      first = Math.min(first, run[0]);
      end = Math.max(end, run[1]);
      count += 1;
    }
    runs.splice(low, count, [first, end]);
  }

  /** Whether the number is in the set. */
  has(number: number): boolean {
    return this.#runs.some(([from, to]) => from <= number && number <= to);
  }

  /** The runs, in order. */
  runs(): readonly SequenceRange[] {
    return this.#runs;
  }

  /** The runs from 1 to `last` that are not in the set. */
  missing(last: number): SequenceRange[] {
    const gaps: SequenceRange[] = [];
    let expected = 1;
    for (const [from, to] of this.#runs) {
      if (from > last) break;
      if (from > expected) gaps.push([expected, from - 1]);
      expected = to + 1;
    }
    if (expected <= last) gaps.push([expected, last]);
    return gaps;
  }
}

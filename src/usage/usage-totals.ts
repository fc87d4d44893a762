import type { UsageRow, UsageTotal } from './ledger.js';

/** One addend of a report: a quantity of a group, or its number of events. */
export interface UsageAddend {
  readonly key: Readonly<Record<string, string>>;
  /** The interval's first instant, in milliseconds. */
  readonly fromMs?: number;
  readonly billable: boolean;
  readonly events: number;
  readonly quantities: Iterable<readonly [name: string, amount: bigint]>;
}

interface Total {
  readonly quantities: Record<string, bigint>;
  events: number;
}

/** Adds up the rows of a report, exactly. */
export class UsageTotals {
  readonly #rows = new Map<string, { key: Readonly<Record<string, string>>; fromMs?: number; parts: [Total, Total] }>();

  add({ key, fromMs, billable, events, quantities }: UsageAddend): void {
    const id = JSON.stringify([fromMs, Object.entries(key).sort(([a], [b]) => (a < b ? -1 : 1))]);
    let row = this.#rows.get(id);
    if (row === undefined) {
      row = { key, fromMs, parts: [empty(), empty()] };
      this.#rows.set(id, row);
    }
    const total = row.parts[billable ? 0 : 1];
    total.events += events;
    for (const [name, amount] of quantities) total.quantities[name] = (total.quantities[name] ?? 0n) + amount;
  }

  /** The rows, by interval and then by key. */
  rows(): UsageRow[] {
    return [...this.#rows.entries()]
      .sort(([a, { fromMs: x = 0 }], [b, { fromMs: y = 0 }]) => x - y || (a < b ? -1 : 1))
      .map(
        ([
          ,
          {
            key,
            fromMs,
            parts: [billed, rest],
          },
        ]) => ({
          key,
          ...(fromMs === undefined ? {} : { from: new Date(fromMs) }),
          ...(billed satisfies UsageTotal),
          notBillable: rest,
        }),
      );
  }
}

function empty(): Total {
  return { quantities: Object.create(null) as Record<string, bigint>, events: 0 };
}

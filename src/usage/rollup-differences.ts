import type { UsageEvent } from '../meter/usage-event.js';
import type { LedgerDifference } from './ledger.js';
import { DAY_MS, EVENT_COUNT, joinAmount, ONE_REQUEST, ROLLUP_KEYS, RollupChanges, type RollupKey } from './rollup.js';

/** A roll-up as it is recorded. */
export interface RecordedRollup {
  readonly tier: number;
  readonly bucket: number;
  readonly key: RollupKey;
  readonly quantity: string;
  readonly amount: bigint;
}

/** Recomputes the roll-ups from the events, one by one, and then compares. */
export class RollupDifferences {
  readonly #changes = new RollupChanges<string>();
  readonly #prunedMs: number;

  /** @param prunedMs events before were deleted: roll-ups that reach back there cannot be recomputed and are passed over. */
  constructor(prunedMs: number) {
    this.#prunedMs = prunedMs;
  }

  /** @param key of the event whose attribution counts; undefined while that has not arrived. */
  add(event: UsageEvent, key: RollupKey | undefined): void {
    if (key === undefined) return;
    this.#changes.add(JSON.stringify(key), Date.parse(event.time), event, event.corrects === undefined);
  }

  /** Where the recorded roll-ups differ, both tiers. */
  compare(recorded: Iterable<RecordedRollup>): LedgerDifference[] {
    const expected = new Map<string, bigint>();
    for (const { tier, bucket, key, quantity, high, low } of this.#changes.sorted()) {
      expected.set(JSON.stringify([tier, bucket, key, quantity]), joinAmount(BigInt(high), BigInt(low)));
    }
    const differences: LedgerDifference[] = [];
    const report = (id: string, rolledUp: bigint, recomputed: bigint): void => {
      const [tier, bucket, key, quantity] = JSON.parse(id) as [number, number, string, string];
      if (rolledUp === recomputed || bucket < this.#prunedMs) return;
      differences.push({
        bucket: new Date(bucket),
        key: describe(tier, key),
        quantity: nameOf(quantity),
        rolledUp,
        recomputed,
      });
    };
    for (const { tier, bucket, key, quantity, amount } of recorded) {
      const id = JSON.stringify([tier, bucket, JSON.stringify(key), quantity]);
      report(id, amount, expected.get(id) ?? 0n);
      expected.delete(id);
    }
    for (const [id, recomputed] of expected) report(id, 0n, recomputed);
    return differences;
  }
}

/** The events themselves are counted too: under the name `events`, which is no quantity here. */
function nameOf(quantity: string): string {
  return quantity === EVENT_COUNT || quantity === ONE_REQUEST ? 'events' : quantity;
}

function describe(tier: number, key: string): Record<string, string> {
  const { values, billable } = JSON.parse(key) as RollupKey;
  const named = ROLLUP_KEYS.map((name, index) => [name, values[index] as string] as const);
  return {
    ...Object.fromEntries(named.filter(([, value]) => value !== '')),
    billable: String(billable),
    tier: tier === DAY_MS ? 'day' : 'quarter',
  };
}

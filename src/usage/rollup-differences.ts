import type { UsageEvent } from '../meter/usage-event.js';
import type { LedgerDifference } from './ledger.js';
import { DAY_MS, joinAmount, QUARTER_MS, ROLLUP_KEYS, RollupChanges, type RollupKey, rollupKeyOf } from './rollup.js';

/** A roll-up as it is recorded. Parts are decimal text. */
export interface RecordedRollup {
  readonly tier: number;
  readonly bucket: number;
  readonly key: RollupKey;
  readonly quantity: string;
  readonly high: string;
  readonly low: string;
}

/**
 * Recomputes the roll-ups from the events and reports where the recorded ones differ, both tiers.
 *
 * @param prunedMs events before were deleted: roll-ups that reach back there cannot be recomputed and are passed over.
 */
export function findDifferences(
  recorded: Iterable<RecordedRollup>,
  events: Iterable<{ event: UsageEvent; attributed: UsageEvent | undefined }>,
  prunedMs: number,
): LedgerDifference[] {
  const changes = new RollupChanges<string>();
  for (const { event, attributed } of events) {
    if (attributed === undefined) continue;
    changes.add(JSON.stringify(rollupKeyOf(attributed)), Date.parse(event.time), event, event.corrects === undefined);
  }
  const expected = new Map<string, bigint>();
  for (const { tier, bucket, key, quantity, high, low } of changes.sorted()) {
    expected.set(JSON.stringify([tier, bucket, key, quantity]), joinAmount(BigInt(high), BigInt(low)));
  }
  const differences: LedgerDifference[] = [];
  const report = (id: string, rolledUp: bigint, recomputed: bigint): void => {
    const [tier, bucket, key, quantity] = JSON.parse(id) as [number, number, string, string];
    if (rolledUp === recomputed || bucket < prunedMs) return;
    const { values, billable } = JSON.parse(key) as RollupKey;
    const named = ROLLUP_KEYS.map((name, index) => [name, values[index] as string] as const);
    differences.push({
      bucket: new Date(bucket),
      key: {
        ...Object.fromEntries(named.filter(([, value]) => value !== '')),
        billable: String(billable),
        tier: tier === DAY_MS ? 'day' : tier === QUARTER_MS ? 'quarter' : String(tier),
      },
      quantity,
      rolledUp,
      recomputed,
    });
  };
  for (const { tier, bucket, key, quantity, high, low } of recorded) {
    const id = JSON.stringify([tier, bucket, JSON.stringify(key), quantity]);
    report(id, joinAmount(BigInt(high), BigInt(low)), expected.get(id) ?? 0n);
    expected.delete(id);
  }
  for (const [id, recomputed] of expected) report(id, 0n, recomputed);
  return differences;
}

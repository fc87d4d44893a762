import fc from 'fast-check';
import { Redis } from 'ioredis';
import { memoryQuotaStore, type QuotaOp, type QuotaStore, type StoreWindow } from 'tollkeeper';
import { redisQuotaStore } from 'tollkeeper/redis';
import { manualClock } from 'tollkeeper/testing';
import { describe, expect, it } from 'vitest';
import { describeWith, startRedis } from '../support/index.js';

const DAY_MS = 86_400_000;

/** What is asked of a store, in any order. */
type Step =
  | { readonly kind: 'take'; readonly user: number; readonly costs: readonly number[] }
  | { readonly kind: 'hold'; readonly user: number; readonly id: number; readonly costs: readonly number[] }
  | { readonly kind: 'settle'; readonly user: number; readonly id: number; readonly actual: readonly number[] }
  | { readonly kind: 'plan'; readonly limits: readonly number[] }
  | { readonly kind: 'expire'; readonly seconds: number }
  | { readonly kind: 'setBack'; readonly hours: number };

const users = fc.nat(1);
const units = fc.array(fc.nat(6), { minLength: 2, maxLength: 2 });
const ids = fc.nat(3);
const steps = (withClock: boolean): fc.Arbitrary<Step[]> =>
  fc.array(
    fc.oneof(
      { weight: 5, arbitrary: fc.record({ kind: fc.constant('take' as const), user: users, costs: units }) },
      { weight: 4, arbitrary: fc.record({ kind: fc.constant('hold' as const), user: users, id: ids, costs: units }) },
      {
        weight: 4,
        arbitrary: fc.record({ kind: fc.constant('settle' as const), user: users, id: ids, actual: units }),
      },
      {
        weight: 1,
        arbitrary: fc.record({
          kind: fc.constant('plan' as const),
          limits: fc.array(fc.integer({ min: 0, max: 20 }), { minLength: 2, maxLength: 2 }),
        }),
      },
      ...(withClock
        ? [
            {
              weight: 1,
              arbitrary: fc.record({ kind: fc.constant('expire' as const), seconds: fc.integer({ min: 1, max: 400 }) }),
            },
            {
              weight: 1,
              arbitrary: fc.record({ kind: fc.constant('setBack' as const), hours: fc.integer({ min: 1, max: 24 }) }),
            },
          ]
        : []),
    ),
    { maxLength: 60 },
  );

interface ModelHold {
  readonly granted: readonly number[];
  charged: number[];
  readonly expires: number;
  settled: boolean;
}

/** The plainest thing that keeps the promises: one number per counter, one window that does not end. */
class Model {
  readonly used = new Map<string, number>();
  readonly holds = new Map<string, ModelHold>();
  /** A settled id is remembered for a while only: later it is a new one. */
  generation = 0;
  limits: readonly number[] = [10, 15];
  seconds = 0;

  of(user: number, index: number): number {
    return this.used.get(`${user} ${index}`) ?? 0;
  }

  add(user: number, index: number, amount: number): void {
    this.used.set(`${user} ${index}`, Math.max(0, this.of(user, index) + amount));
  }

  take(user: number, costs: readonly number[]): boolean {
    const fits = costs.every(
      (cost, index) => cost === 0 || this.of(user, index) + cost <= (this.limits[index] as number),
    );
    if (fits) for (const [index, cost] of costs.entries()) this.add(user, index, cost);
    return fits;
  }

  hold(user: number, id: number, costs: readonly number[]): boolean {
    const key = `${user} ${id}`;
    if (this.holds.has(key)) return true;
    if (!this.take(user, costs)) return false;
    this.holds.set(key, { granted: costs, charged: [...costs], expires: this.seconds + 300, settled: false });
    return true;
  }

  settle(user: number, id: number, actual: readonly number[]): void {
    const hold = this.holds.get(`${user} ${id}`);
    if (hold === undefined || hold.settled) return;
    hold.settled = true;
    for (const [index, charged] of hold.charged.entries()) {
      if ((hold.granted[index] as number) > 0) this.add(user, index, (actual[index] as number) - charged);
    }
  }

  advance(seconds: number): void {
    this.seconds += seconds;
    this.generation += 1;
    for (const [key, hold] of this.holds) {
      if (hold.settled) this.holds.delete(key);
      if (hold.settled || hold.expires > this.seconds) continue;
      const user = Number(key.split(' ')[0]);
      for (const [index, charged] of hold.charged.entries()) this.add(user, index, -charged);
      hold.charged = hold.charged.map(() => 0);
    }
  }
}

/** A window that does not end while a test runs. */
const calendar: StoreWindow = { kind: 'calendar', at: () => ({ startMs: 0, endMs: 100_000 * DAY_MS }) };

async function agree(
  store: QuotaStore,
  run: string,
  list: readonly Step[],
  clock: { advance(seconds: number): void; setBack(hours: number): void },
): Promise<void> {
  const model = new Model();
  const names = new Map<string, string>();
  /** The id under which a hold is known, which is a new one after the last was settled and forgotten. */
  const idOf = (user: number, id: number): string => {
    const key = `${user} ${id}`;
    if (!model.holds.has(key)) names.set(key, `h${id}.${model.generation}`);
    return names.get(key) as string;
  };
  const slot = (user: number): string => `${run}-${user}`;
  const ops = (user: number, costs: readonly number[], reserved = false): QuotaOp[] =>
    costs.map((cost, index) => ({
      key: `${run}-${user}-${index}`,
      window: calendar,
      limit: model.limits[index] as number,
      cost,
      reserved,
    }));
  for (const step of list) {
    if (step.kind === 'take') {
      const { allowed } = await store.take(slot(step.user), ops(step.user, step.costs), { mode: 'all' });
      expect(allowed).toBe(model.take(step.user, step.costs));
    } else if (step.kind === 'hold') {
      const asked = ops(step.user, step.costs, true);
      const { allowed } = await store.take(slot(step.user), asked, {
        mode: 'all',
        id: idOf(step.user, step.id),
        holdMs: 300_000,
      });
      expect(allowed).toBe(model.hold(step.user, step.id, step.costs));
    } else if (step.kind === 'settle') {
      await store.settle(slot(step.user), idOf(step.user, step.id), step.actual);
      model.settle(step.user, step.id, step.actual);
    } else if (step.kind === 'plan') model.limits = step.limits;
    else if (step.kind === 'setBack') clock.setBack(step.hours);
    else {
      clock.advance(step.seconds);
      model.advance(step.seconds);
    }
    for (const user of [0, 1]) {
      const { ops: standings } = await store.take(slot(user), ops(user, [0, 0]), { mode: 'peek' });
      expect(standings.map(({ used }) => used)).toEqual([model.of(user, 0), model.of(user, 1)]);
    }
  }
}

const RUNS = Number(process.env.QUOTA_MODEL_RUNS ?? 200);

describe('memoryQuotaStore', () => {
  it('agrees with a plain model, whatever is taken, held, settled, expired and changed in whatever order', async () => {
    await fc.assert(
      fc.asyncProperty(steps(true), async (list) => {
        const clock = manualClock(50_000 * DAY_MS);
        await agree(memoryQuotaStore({ clock }), 'm', list, {
          advance: (seconds) => clock.advance(seconds),
          setBack: (hours) => clock.set(clock.now() - hours * 3_600_000),
        });
      }),
      { numRuns: RUNS },
    );
  });

  it('never lets more through a rate than its burst and what drains, whatever is given back when', () => {
    const window: StoreWindow = { kind: 'gcra', periodMs: 10_000, burst: 8 };
    const op = (cost: number): QuotaOp => ({ key: 'k', window, limit: 10, cost });
    fc.assert(
      fc.property(
        fc.array(fc.record({ wait: fc.nat(4_000), cost: fc.integer({ min: 1, max: 8 }), back: fc.boolean() }), {
          maxLength: 60,
        }),
        (list) => {
          const clock = manualClock();
          const store = memoryQuotaStore({ clock });
          const kept: { at: number; cost: number }[] = [];
          for (const { wait, cost, back } of list) {
            clock.advance(wait / 1_000);
            const asked = [op(cost)];
            const taken = store.take('s', asked, { mode: 'all' });
            if (!taken.allowed) continue;
            if (back) {
              clock.advance(wait / 1_000);
              store.settle('s', { ops: asked, taken }, [0]);
            } else kept.push({ at: clock.monotonic(), cost });
          }
          for (const [first, { at }] of kept.entries()) {
            let sum = 0;
            for (const { at: later, cost } of kept.slice(first)) {
              sum += cost;
              expect(sum).toBeLessThanOrEqual(8 + ((later - at) * 10) / 10_000 + 1e-6);
            }
          }
        },
      ),
      { numRuns: RUNS },
    );
  });
});

describeWith('redis', 'redisQuotaStore', () => {
  it('agrees with the same model', async () => {
    const server = await startRedis();
    const client = new Redis(server.url);
    const store = redisQuotaStore(client, { deadlineSeconds: 10 });
    let run = 0;
    await fc.assert(
      fc.asyncProperty(steps(false), async (list) => {
        run += 1;
        await agree(store, `r${run}`, list, { advance: () => {}, setBack: () => {} });
      }),
      { numRuns: Math.ceil(RUNS / 8) },
    );
    await store.close?.();
    client.disconnect();
    await server.stop();
  });
});

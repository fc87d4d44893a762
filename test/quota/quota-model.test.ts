import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { Redis } from 'ioredis';
import { memoryQuotaStore, type QuotaOp, type QuotaStore, type StoreWindow, type TakeOptions } from 'tollkeeper';
import { redisQuotaStore } from 'tollkeeper/redis';
import { manualClock } from 'tollkeeper/testing';
import { describe, expect, it } from 'vitest';
import { describeWith, sized, startRedis } from '../support/index.js';

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
const steps: fc.Arbitrary<Step[]> = fc.array(
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
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant('expire' as const), seconds: fc.integer({ min: 1, max: 400 }) }),
    },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant('setBack' as const), hours: fc.integer({ min: 1, max: 24 }) }),
    },
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
  ms = 0;

  constructor(readonly holdMs: number) {}

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
    this.holds.set(key, {
      granted: costs,
      charged: [...costs],
      expires: this.ms + this.holdMs,
      settled: false,
    });
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
    this.generation += 1;
    for (const [key, hold] of this.holds) if (hold.settled) this.holds.delete(key);
    this.moveTo(this.ms + seconds * 1_000);
  }

  moveTo(ms: number): void {
    this.ms = ms;
    for (const [key, hold] of this.holds) {
      if (hold.settled || hold.expires > this.ms) continue;
      const user = Number(key.split(' ')[0]);
      for (const [index, charged] of hold.charged.entries()) this.add(user, index, -charged);
      hold.charged = hold.charged.map(() => 0);
    }
  }
}

/** What a store under test is like beside its contract. */
interface World {
  readonly window: StoreWindow;
  readonly holdMs: number;
  advance(seconds: number, model: Model): unknown;
  setBack(hours: number): void;
  /** The store's clock, where it is not in the test's hands: the model follows it. */
  readonly followsServer: boolean;
}

async function agree(store: QuotaStore, run: string, list: readonly Step[], world: World): Promise<void> {
  const model = new Model(world.holdMs);
  const take = async (user: number, asked: QuotaOp[], options: TakeOptions) => {
    const result = await store.take(slot(user), asked, options);
    if (world.followsServer) model.moveTo(result.serverNowMs);
    return result;
  };
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
      window: world.window,
      limit: model.limits[index] as number,
      cost,
      reserved,
    }));
  for (const step of list) {
    if (step.kind === 'take') {
      const { allowed } = await take(step.user, ops(step.user, step.costs), { mode: 'all' });
      expect(allowed).toBe(model.take(step.user, step.costs));
    } else if (step.kind === 'hold') {
      const asked = ops(step.user, step.costs, true);
      const id = idOf(step.user, step.id);
      const { allowed } = await take(step.user, asked, { mode: 'all', id, holdMs: world.holdMs });
      expect(allowed).toBe(model.hold(step.user, step.id, step.costs));
    } else if (step.kind === 'settle') {
      await store.settle(slot(step.user), idOf(step.user, step.id), step.actual);
      model.settle(step.user, step.id, step.actual);
    } else if (step.kind === 'plan') model.limits = step.limits;
    else if (step.kind === 'setBack') world.setBack(step.hours);
    else await world.advance(step.seconds, model);
    for (const user of [0, 1]) {
      const { ops: standings } = await take(user, ops(user, [0, 0]), { mode: 'peek' });
      expect(standings.map(({ used }) => used)).toEqual([model.of(user, 0), model.of(user, 1)]);
    }
  }
}

/** Requests on a rate, and what becomes of each. */
interface Visit {
  readonly wait: number;
  readonly cost: number;
  readonly end: 'kept' | 'refunded' | 'released' | 'expired';
}

const visits: fc.Arbitrary<Visit[]> = fc.array(
  fc.record({
    wait: fc.nat(20),
    cost: fc.integer({ min: 1, max: 6 }),
    end: fc.constantFrom('kept', 'refunded', 'released', 'expired'),
  }),
  { minLength: 20, maxLength: 60 },
);

/** Every lane goes on by itself; what they keep together is held against the bound, by the store's clock. */
async function keepsToRate(
  store: QuotaStore,
  key: string,
  lanes: readonly (readonly Visit[])[],
  pass: (ms: number) => unknown,
): Promise<void> {
  const window: StoreWindow = { kind: 'gcra', periodMs: 100, burst: 8 };
  const kept: { readonly at: number; readonly cost: number }[] = [];
  const walk = async (list: readonly Visit[], lane: number): Promise<void> => {
    for (const [index, { wait, cost, end }] of list.entries()) {
      await pass(wait);
      const isHeld = end === 'released' || end === 'expired';
      const asked: QuotaOp[] = [{ key, window, limit: 10, cost, reserved: isHeld }];
      const id = isHeld ? `${lane}.${index}` : undefined;
      const taken = await store.take(key, asked, { mode: 'all', id, holdMs: 10 });
      if (!taken.allowed) continue;
      if (end === 'kept') kept.push({ at: taken.serverNowMs, cost });
      if (end === 'expired' || end === 'kept') continue;
      await pass(wait);
      await store.settle(key, id ?? { ops: asked, taken }, [0]);
    }
  };
  await Promise.all(lanes.map(walk));
  kept.sort((one, other) => one.at - other.at);
  for (const [first, { at }] of kept.entries()) {
    let sum = 0;
    for (const { at: later, cost } of kept.slice(first)) {
      sum += cost;
      expect(sum).toBeLessThanOrEqual(8 + ((later - at) * 10) / 100 + 1e-6);
    }
  }
}

const RUNS = sized(200, 2_000);

describe('memoryQuotaStore', () => {
  it('agrees with a plain model, whatever is taken, held, settled, expired and changed in whatever order', async () => {
    await fc.assert(
      fc.asyncProperty(steps, async (list) => {
        const clock = manualClock(50_000 * DAY_MS);
        await agree(memoryQuotaStore({ clock }), 'm', list, {
          window: { kind: 'calendar', at: () => ({ startMs: 0, endMs: 100_000 * DAY_MS }) },
          holdMs: 300_000,
          advance(seconds, model) {
            clock.advance(seconds);
            model.advance(seconds);
          },
          setBack: (hours) => clock.set(clock.now() - hours * 3_600_000),
          followsServer: false,
        });
      }),
      { numRuns: RUNS },
    );
  });

  it('never lets more through a rate than its burst and what drains, whatever is given back when', async () => {
    await fc.assert(
      fc.asyncProperty(visits, async (list) => {
        const clock = manualClock();
        await keepsToRate(memoryQuotaStore({ clock }), 'm', [list], (ms) => clock.advance(ms / 1_000));
      }),
      { numRuns: RUNS },
    );
  });
});

describeWith('redis', 'redisQuotaStore', () => {
  it('agrees with the same model, with reservations that expire and a process whose clock jumps', async () => {
    const server = await startRedis();
    const client = new Redis(server.url);
    const began = Date.now();
    let skewMs = 0;
    const clock = { now: () => Date.now() + skewMs, monotonic: () => performance.now() };
    const store = redisQuotaStore(client, { deadlineSeconds: 10, clock });
    const holdMs = 30;
    const world: World = {
      // In the middle of a window by the server's clock; by the process's own often in another one.
      window: {
        kind: 'calendar',
        at(ms) {
          const startMs = began - DAY_MS / 2 + Math.floor((ms - began + DAY_MS / 2) / DAY_MS) * DAY_MS;
          return { startMs, endMs: startMs + DAY_MS };
        },
      },
      holdMs,
      advance: () => sleep(holdMs + 1),
      setBack: (hours) => {
        skewMs = (skewMs - hours * 3_600_000) % (3 * DAY_MS);
      },
      followsServer: true,
    };
    let run = 0;
    await fc.assert(
      fc.asyncProperty(steps, async (list) => {
        run += 1;
        await agree(store, `r${run}`, list, world);
      }),
      { numRuns: Math.ceil(RUNS / 8) },
    );
    await store.close?.();
    client.disconnect();
    await server.stop();
  });

  it('never lets more through a rate than its burst and what drains, whatever is given back when', async () => {
    const server = await startRedis();
    const client = new Redis(server.url);
    const store = redisQuotaStore(client, { deadlineSeconds: 10 });
    // Time is real here, so that a failure cannot be made smaller; all runs at once, each on a counter of its own.
    const runs = fc.sample(fc.array(visits, { minLength: 1, maxLength: 3 }), RUNS / 2);
    await Promise.all(runs.map((lanes, run) => keepsToRate(store, `rate-${run}`, lanes, sleep)));
    await store.close?.();
    client.disconnect();
    await server.stop();
  });

  it('never charges more than the limit, nor loses a unit, whatever is taken and settled at the same time', async () => {
    const server = await startRedis();
    const client = new Redis(server.url);
    const stores = [1, 2, 3].map(() => redisQuotaStore(client, { deadlineSeconds: 10 }));
    const window: StoreWindow = { kind: 'calendar', at: () => ({ startMs: 0, endMs: 100_000 * DAY_MS }) };
    const requests = fc.array(
      fc.record({ cost: fc.integer({ min: 1, max: 6 }), held: fc.boolean(), actual: fc.nat(6), of: fc.nat(2) }),
      { minLength: 5, maxLength: 40 },
    );
    let run = 0;
    await fc.assert(
      fc.asyncProperty(requests, async (list) => {
        run += 1;
        const key = `parallel-${run}`;
        const op = (cost: number, reserved = false): QuotaOp => ({ key, window, limit: 30, cost, reserved });
        let kept = 0;
        let most = 0;
        const work = async ({ cost, held, actual, of }: (typeof list)[number], index: number): Promise<void> => {
          const store = stores[of] as QuotaStore;
          const id = held ? `h${index}` : undefined;
          const taken = await store.take(key, [op(cost, held)], { mode: 'all', id });
          most = Math.max(most, taken.ops[0]?.used ?? 0);
          if (!taken.allowed) return;
          // Less than was held: a bound on what is used holds at every moment.
          const used = held ? Math.min(actual, cost) : cost;
          if (id !== undefined) await Promise.all([0, 1].map(() => store.settle(key, id, [used])));
          kept += used;
        };
        await Promise.all(list.map(work));
        expect(most).toBeLessThanOrEqual(30);
        const [standing] = (await (stores[0] as QuotaStore).take(key, [op(0)], { mode: 'peek' })).ops;
        expect(standing?.used).toBe(kept);
      }),
      { numRuns: Math.ceil(RUNS / 8) },
    );
    for (const store of stores) await store.close?.();
    client.disconnect();
    await server.stop();
  });
});

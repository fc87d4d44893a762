import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import type { OpResult, QuotaOp, QuotaStore, StoreWindow, TakeOptions, TakeResult } from '../quota/quota-store.js';
import type { ContractCase } from './contract-case.js';

/** A store, and what ends it. Stores may share counters: every case uses slots of its own. */
export interface QuotaStoreUnderTest {
  readonly store: QuotaStore;
  end?(): Promise<void>;
}

const HOUR = 3_600_000;
/** Drains so slowly that a test sees nothing of it. */
const rate: StoreWindow = { kind: 'gcra', periodMs: 1_000 * HOUR, burst: 10 };
const day: StoreWindow = { kind: 'calendar', at: (ms) => windowOf(ms, 24 * HOUR) };
const parallel: StoreWindow = { kind: 'concurrent', ttlMs: HOUR };
const windows = { gcra: rate, calendar: day } as const;

/** What every quota store must do, as runner-neutral cases. */
export function quotaStoreContract(make: () => Promise<QuotaStoreUnderTest>): ContractCase[] {
  const cases: ContractCase[] = [];
  const test = (name: string, body: (counter: Counters) => Promise<void>): void => {
    cases.push({
      name,
      async run() {
        const { store, end } = await make();
        try {
          await body(new Counters(store));
        } finally {
          await end?.();
        }
      },
    });
  };

  for (const [kind, window] of Object.entries(windows)) {
    test(`${kind}: admits up to the limit and not one more`, async (on) => {
      const op = on.op('k', window);
      for (let used = 1; used <= 10; used++) {
        const { allowed, ops } = await on.take([op]);
        assert.deepEqual([allowed, ops[0]?.granted, ops[0]?.used], [true, 1, used]);
      }
      const refused = await on.take([op]);
      assert.deepEqual([refused.allowed, refused.ops[0]?.granted, refused.ops[0]?.used], [false, 0, 10]);
      assert.ok((refused.ops[0]?.retryMs as number) > 0);
      assert.ok(refused.serverNowMs > 0);
    });

    test(`${kind}: admits exactly the limit of what comes at once`, async (on) => {
      const op = on.op('k', window);
      const results = await Promise.all(Array.from({ length: 60 }, () => on.take([op])));
      assert.equal(results.filter(({ allowed }) => allowed).length, 10);
    });

    test(`${kind}: settles a charge and a hold to what was used, once`, async (on) => {
      const op = on.op('k', window, { cost: 4 });
      const taken = await on.take([op]);
      await on.store.settle(on.slot, { ops: [op], taken }, [1]);
      assert.equal(await on.used(op), 1);
      await on.take([op], { id: 'hold' });
      assert.equal(await on.used(op), 5);
      await on.store.settle(on.slot, 'hold', [6]);
      assert.equal(await on.used(op), 7);
      await on.store.settle(on.slot, 'hold', [0]);
      await on.store.settle(on.slot, 'unknown', [0]);
      assert.equal(await on.used(op), 7);
      const more = await on.take([on.op('k', window, { cost: 3 })], { id: 'more' });
      assert.equal(more.allowed, true);
      await on.store.settle(on.slot, 'more', [9]);
      assert.equal(await on.used(op), 16);
    });

    test(`${kind}: gives an unsettled reservation back, and charges what a late settling says`, async (on) => {
      const op = on.op('k', window, { cost: 8, reserved: true });
      await on.take([op], { id: 'a', holdMs: 60 });
      assert.equal((await on.take([op], { id: 'b', holdMs: 60 })).allowed, false);
      await until(async () => (await on.used(op)) === 0);
      await on.store.settle(on.slot, 'a', [3]);
      assert.equal(await on.used(op), 3);
      await on.take([on.op('k', window, { cost: 2, reserved: true })], { id: 'c', holdMs: HOUR });
      await on.store.settle(on.slot, 'c', [0]);
      assert.equal(await on.used(op), 3);
    });

    test(`${kind}: forgets what was used when told to`, async (on) => {
      const op = on.op('k', window, { cost: 10 });
      await on.take([op]);
      await on.store.reset(on.slot, [op]);
      assert.equal(await on.used(op), 0);
      assert.equal((await on.take([op])).allowed, true);
    });

    test(`${kind}: follows a limit that changes`, async (on) => {
      const small = on.op('k', window, { cost: 6 });
      await on.take([small]);
      const large = on.op('k', sized(window, 100), { limit: 100, cost: 50 });
      assert.equal((await on.take([large])).allowed, true);
      const after = await on.take([small]);
      assert.deepEqual([after.allowed, after.ops[0]?.used], [false, 56]);
    });
  }

  test('charges all ops or none', async (on) => {
    const ops = [on.op('a', rate), on.op('b', day, { limit: 2 }), on.op('c', rate)];
    assert.equal((await on.take(ops)).allowed, true);
    assert.equal((await on.take(ops)).allowed, true);
    const refused = await on.take(ops);
    assert.equal(refused.allowed, false);
    assert.deepEqual(
      refused.ops.map(({ granted, used }) => [granted, used]),
      [
        [0, 2],
        [0, 2],
        [0, 2],
      ],
    );
    assert.deepEqual(
      refused.ops.map(({ retryMs }) => retryMs === 0),
      [true, false, true],
    );
    for (const op of ops) assert.equal(await on.used(op), 2);
  });

  test('peeks without charging, and charges nothing for a cost of 0', async (on) => {
    const op = on.op('k', rate, { cost: 10 });
    assert.equal((await on.take([op], { mode: 'peek' })).allowed, true);
    assert.equal((await on.take([on.op('k', rate, { cost: 0 })])).allowed, true);
    assert.equal(await on.used(op), 0);
    await on.take([op]);
    assert.equal((await on.take([op], { mode: 'peek' })).allowed, false);
    assert.equal((await on.take([on.op('k', rate, { cost: 0 })])).allowed, true);
    assert.equal((await on.take([on.op('k', rate, { cost: 0, need: 1 })])).allowed, false);
  });

  test('refuses for good what can never fit', async (on) => {
    for (const window of [rate, day]) {
      const { allowed, ops } = await on.take([on.op(window.kind, window, { cost: 11 })]);
      assert.deepEqual([allowed, ops[0]?.retryMs, ops[0]?.used], [false, null, 0]);
    }
    const none = await on.take([on.op('zero', { ...rate, burst: 1 } as StoreWindow, { limit: 0, cost: 2 })]);
    assert.deepEqual([none.allowed, none.ops[0]?.retryMs], [false, null]);
  });

  test('books debt over the limit', async (on) => {
    const op = on.op('k', day, { cost: 25 });
    const { allowed, ops } = await on.take([op], { mode: 'force' });
    assert.deepEqual([allowed, ops[0]?.granted, ops[0]?.used], [true, 25, 25]);
    assert.equal((await on.take([on.op('k', day)])).allowed, false);
  });

  test('leases what there is, no more than a share of it, and nothing below what is needed', async (on) => {
    const op = on.op('k', day, { limit: 100, cost: 1_000, need: 1 });
    const half = await on.take([op], { mode: 'upTo', share: 2 });
    assert.deepEqual([half.allowed, half.ops[0]?.granted], [true, 50]);
    const rest = await on.take([op], { mode: 'upTo' });
    assert.equal(rest.ops[0]?.granted, 50);
    const nothing = await on.take([op], { mode: 'upTo' });
    assert.deepEqual([nothing.allowed, nothing.ops[0]?.granted], [false, 0]);
    await on.store.settle(on.slot, { ops: [op], taken: half }, [10]);
    const needy = await on.take([{ ...op, need: 41 }], { mode: 'upTo' });
    assert.deepEqual([needy.allowed, needy.ops[0]?.granted], [false, 0]);
    assert.equal((await on.take([{ ...op, need: 40, cost: 40 }], { mode: 'upTo' })).ops[0]?.granted, 40);
  });

  test('charges once what is taken twice under one id', async (on) => {
    const ops = [on.op('a', rate, { cost: 3 }), on.op('b', parallel, { cost: 2 })];
    const first = await on.take(ops, { id: 'same' });
    const second = await on.take(ops, { id: 'same' });
    assert.deepEqual([first.allowed, second.allowed], [true, true]);
    assert.deepEqual(
      second.ops.map(({ granted }) => granted),
      [3, 2],
    );
    assert.deepEqual(
      second.ops.map(({ used }) => used),
      [3, 2],
    );
  });

  test('limits what is held at the same time, and ends what never ends', async (on) => {
    const op = on.op('k', parallel, { limit: 2 });
    for (const id of ['a', 'b']) assert.equal((await on.take([op], { id })).allowed, true);
    const refused = await on.take([op], { id: 'c' });
    assert.equal(refused.allowed, false);
    assert.ok((refused.ops[0]?.retryMs as number) > 0);
    await on.store.settle(on.slot, 'a', [1]);
    assert.equal((await on.take([op], { id: 'd' })).allowed, true);
    const short = on.op('short', { kind: 'concurrent', ttlMs: 60 }, { limit: 1 });
    await on.take([short], { id: 'e' });
    await until(async () => (await on.take([short], { mode: 'peek' })).allowed);
    await on.store.settle(on.slot, 'e', [1]);
    assert.equal((await on.take([short], { id: 'f' })).allowed, true);
  });

  test('counts each window of the calendar anew, and settles nothing on one that has ended', async (on) => {
    const brief: StoreWindow = { kind: 'calendar', at: (ms) => windowOf(ms, 400) };
    const op = on.op('k', brief, { cost: 10 });
    const taken = await on.take([op], { id: 'old' });
    await until(async () => (await on.take([op], { mode: 'peek' })).allowed);
    await on.store.settle(on.slot, 'old', [3]);
    await on.store.settle(on.slot, { ops: [op], taken }, [30]);
    assert.equal((await on.take([{ ...op, cost: 1 }], { mode: 'peek' })).ops[0]?.used, 0);
  });

  test('keeps slots and keys apart, whatever they are called', async (on) => {
    const keys = ['a', 'a:b', 'a}b', '{a}', 'a b', 'A', '*', '%'];
    for (const [index, key] of keys.entries()) await on.take([on.op(key, rate, { cost: index + 1 })]);
    for (const [index, key] of keys.entries()) assert.equal(await on.used(on.op(key, rate)), index + 1, key);
    const elsewhere = new Counters(on.store);
    assert.equal(await elsewhere.used(elsewhere.op('a', rate)), 0);
  });

  test('refuses amounts that cannot be counted, and changes nothing', async (on) => {
    const op = on.op('k', rate);
    for (const units of [Number.NaN, Number.POSITIVE_INFINITY, -1, 1.5, 2 ** 53, '3' as unknown as number]) {
      for (const bad of [{ cost: units }, { limit: units }, { need: units }]) {
        await assert.rejects(async () => on.take([{ ...op, ...bad }]), TypeError, JSON.stringify(bad));
      }
    }
    await assert.rejects(async () => on.take([{ ...op, reserved: true }]), TypeError);
    await assert.rejects(async () => on.take([on.op('c', parallel)]), TypeError);
    await assert.rejects(async () => on.take([op], { id: 'x', holdMs: 0 }), TypeError);
    assert.equal(await on.used(op), 0);
  });

  test('counts exactly beyond 2^32', async (on) => {
    const limit = Number.MAX_SAFE_INTEGER;
    const op = on.op('k', day, { limit, cost: limit - 1 });
    assert.equal((await on.take([op], { id: 'big' })).allowed, true);
    assert.equal((await on.take([{ ...op, cost: 2 }])).allowed, false);
    assert.equal((await on.take([{ ...op, cost: 1 }])).ops[0]?.used, limit);
    await on.store.settle(on.slot, 'big', [limit - 2]);
    assert.equal(await on.used(op), limit - 1);
  });

  return cases;
}

/** Counters in a slot of their own. */
class Counters {
  readonly slot = randomUUID();
  readonly store: QuotaStore;

  constructor(store: QuotaStore) {
    this.store = store;
  }

  op(key: string, window: StoreWindow, overrides: Partial<QuotaOp> = {}): QuotaOp {
    return { key: `${key}:${this.slot}`, window, limit: 10, cost: 1, ...overrides };
  }

  async take(ops: readonly QuotaOp[], options: Partial<TakeOptions> = {}): Promise<TakeResult> {
    return this.store.take(this.slot, ops, { mode: 'all', ...options });
  }

  async used(op: QuotaOp): Promise<number> {
    const { ops } = await this.take([{ ...op, cost: 0, need: undefined, reserved: false }], { mode: 'peek' });
    return (ops[0] as OpResult).used;
  }
}

function sized(window: StoreWindow, burst: number): StoreWindow {
  return window.kind === 'gcra' ? { ...window, burst } : window;
}

function windowOf(ms: number, length: number): { startMs: number; endMs: number } {
  const startMs = Math.floor(ms / length) * length;
  return { startMs, endMs: startMs + length };
}

async function until(holds: () => Promise<boolean>): Promise<void> {
  for (let turn = 0; turn < 500; turn++) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail('it did not come true within 5 s');
}

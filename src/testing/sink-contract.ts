import assert from 'node:assert/strict';
import type { Sink, Verdict } from '../meter/sink.js';
import type { UsageEvent } from '../meter/usage-event.js';
import type { ContractCase } from './contract-case.js';
import { usageEvent } from './ledger-fixture.js';

/** A sink, what has arrived behind it, and what ends it. */
export interface SinkUnderTest {
  readonly sink: Sink;
  /** The ids of the events that are at the destination, in any order; duplicates may be left out. Not asked without it. */
  received?(): Promise<readonly string[]>;
  end?(): Promise<void>;
}

/** What every sink must do, as runner-neutral cases. */
export function sinkContract(make: () => Promise<SinkUnderTest>): ContractCase[] {
  const cases: ContractCase[] = [];
  const test = (name: string, body: (under: SinkUnderTest) => Promise<void>): void => {
    cases.push({
      name,
      async run() {
        const under = await make();
        try {
          await under.sink.ready?.();
          await body(under);
        } finally {
          await under.sink.close?.();
          await under.end?.();
        }
      },
    });
  };

  test('has a name that cursors can be kept by', async ({ sink }) => {
    assert.match(sink.name, /^(?!\.)[A-Za-z0-9._-]{1,64}$/);
    assert.ok([undefined, 'billing', 'observational'].includes(sink.role));
  });

  test('takes a batch, and every event of it arrives', async ({ sink, received }) => {
    const events = [1, 2, 3].map((seq) => usageEvent({ seq }));
    await deliver(sink, events);
    await arrived(received, events);
  });

  test('takes an empty batch', async ({ sink, received }) => {
    await write(sink, []);
    await arrived(received, []);
  });

  test('answers a duplicate as delivered: the attempt before may have been lost on its way back', async ({
    sink,
    received,
  }) => {
    const events = [1, 2].map((seq) => usageEvent({ seq }));
    await deliver(sink, events);
    await deliver(sink, [...events, usageEvent({ seq: 3 })]);
    await arrived(received, [...events, usageEvent({ seq: 3 })]);
  });

  test('takes events that state as little as a correction does, and as much as an edge can send', async ({
    sink,
    received,
  }) => {
    const {
      authId: _a,
      subject: _s,
      issuer: _i,
      verifier: _v,
      tenant: _t,
      ...bare
    } = usageEvent({ id: 'bare', seq: 1 });
    const full = usageEvent({
      id: 'full',
      seq: 2,
      claims: { 'x-h': ['a', 'ü😀'], __proto__x: '"\\' },
      dimensions: { model: "'; DROP TABLE x; --", hot: true, n: 1.5 },
      quantities: {
        requests: { value: 1, basis: 'measured' },
        micro: { value: Number.MAX_SAFE_INTEGER, basis: 'reported' },
      },
      resource: { type: 'repo', id: 'a/b' },
      requestId: 'r 1',
      status: 200,
      durationMs: 1.5,
    });
    const verdicts = await write(sink, [
      { ...bare, corrects: 'x', quantities: { a: { value: -1, basis: 'reported' } } },
      full,
    ]);
    // A destination that needs an attribution may reject the first; it may not try again for ever.
    for (const verdict of verdicts) assert.notEqual(verdict.outcome, 'retry');
    assert.equal(verdicts[1]?.outcome, 'delivered');
    if (received !== undefined) assert.ok((await received()).includes('full'));
  });

  test('changes nothing about the events that it is given', async ({ sink }) => {
    const event = usageEvent({ seq: 1, claims: { a: ['b'] } });
    const before = JSON.stringify(event);
    await deliver(sink, [deepFreeze(event)]);
    assert.equal(JSON.stringify(event), before);
  });

  test('takes batches that come at once', async ({ sink, received }) => {
    const batches = [0, 1, 2, 3].map((batch) => [1, 2, 3].map((seq) => usageEvent({ seq: batch * 3 + seq })));
    for (const batch of chunks(batches, sink.limits?.concurrency ?? 1)) {
      await Promise.all(batch.map((events) => deliver(sink, events)));
    }
    await arrived(received, batches.flat());
  });

  test('closes twice', async ({ sink }) => {
    await deliver(sink, [usageEvent({ seq: 1 })]);
    await sink.close?.();
    await sink.close?.();
  });

  return cases;
}

/** The verdicts on a batch; a sink that returns nothing has taken everything. */
async function write(sink: Sink, events: readonly UsageEvent[]): Promise<readonly Verdict[]> {
  const verdicts = await sink.write(events, new AbortController().signal);
  if (verdicts === undefined) return events.map(() => ({ outcome: 'delivered' }));
  assert.equal(verdicts.length, events.length, 'one verdict per event');
  return verdicts;
}

async function deliver(sink: Sink, events: readonly UsageEvent[]): Promise<void> {
  for (const verdict of await write(sink, events)) assert.equal(verdict.outcome, 'delivered');
}

async function arrived(received: SinkUnderTest['received'], events: readonly UsageEvent[]): Promise<void> {
  if (received === undefined) return;
  assert.deepEqual([...new Set(await received())].sort(), events.map(({ id }) => id).sort());
}

function chunks<T>(items: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, index) =>
    items.slice(index * size, (index + 1) * size),
  );
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null)
    for (const each of Object.values(Object.freeze(value))) deepFreeze(each);
  return value;
}

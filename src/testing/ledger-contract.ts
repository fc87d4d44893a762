import assert from 'node:assert/strict';
import type { UsageEvent } from '../meter/usage-event.js';
import type { Ledger, UsageQuery, UsageReport } from '../usage/ledger.js';
import type { ContractCase } from './contract-case.js';

/** An empty, migrated ledger, and what ends it. */
export interface LedgerUnderTest {
  readonly ledger: Ledger;
  end?(): Promise<void>;
}

const DAY = { from: '2026-03-01T00:00:00Z', to: '2026-03-02T00:00:00Z' } as const;
const signal = new AbortController().signal;

/** What every ledger must do, as runner-neutral cases. */
export function ledgerContract(make: () => Promise<LedgerUnderTest>): ContractCase[] {
  const cases: ContractCase[] = [];
  const test = (name: string, body: (ledger: Ledger) => Promise<void>): void => {
    cases.push({
      name,
      async run() {
        const { ledger, end } = await make();
        try {
          await ledger.ready();
          await body(ledger);
        } finally {
          await end?.();
        }
      },
    });
  };

  test('takes every event once, however often it is written', async (ledger) => {
    const event = usageEvent({ seq: 1 });
    await write(ledger, [event, event]);
    await write(ledger, [event, usageEvent({ seq: 2 })]);
    await write(ledger, []);
    const { rows } = await ledger.usage({ ...DAY, groupBy: [] });
    assert.deepEqual(plain(rows), [{ key: {}, events: 2, quantities: { requests: 2n }, rest: 0, restQuantities: {} }]);
    assert.equal((await ledger.audit())[0]?.count, 2);
    assert.deepEqual(await ledger.verify(), []);
  });

  test('refuses what cannot be booked, and takes the rest of the batch', async (ledger) => {
    const hostile = [
      { id: '' },
      { id: 'a\nb' },
      { source: '' },
      { seq: 0 },
      { seq: 1.5 },
      { time: 'soon' },
      { time: '1969-12-31T23:59:59.999Z' },
      { time: '9999-12-31T23:59:59.999Z' },
      { type: 5 },
      { billable: 'yes' },
      { quantities: null },
      { quantities: { tokens: { value: 1.5, basis: 'measured' } } },
      { quantities: { '1': { value: 1, basis: 'measured' } } },
      { dimensions: null },
    ].map((wrong, index) => ({ ...usageEvent({ seq: index + 2 }), ...wrong }) as UsageEvent);
    const verdicts = await ledger.write([...hostile, usageEvent({ seq: 1 })], signal);
    assert.deepEqual(
      (verdicts ?? []).map(({ outcome }) => outcome),
      [...hostile.map(() => 'reject'), 'delivered'],
    );
    assert.equal((await ledger.usage({ ...DAY, groupBy: ['subject'] })).rows[0]?.events, 1);
    assert.deepEqual(await ledger.verify(), []);
  });

  test('groups and filters by texts that a database cannot hold as by those that it can', async (ledger) => {
    const texts = ['a\0b', 'a\ud800b', 'ab'];
    await write(
      ledger,
      texts.map((tenant, index) => usageEvent({ seq: index + 1, tenant })),
    );
    for (const groupBy of [['tenant'], ['tenant', 'subject']] as const) {
      const { rows } = await ledger.usage({ ...DAY, groupBy, filter: { authId: 'k1' } });
      assert.deepEqual(rows.map(({ key, events }) => [key.tenant, events]).sort(), [
        ['ab', 1],
        ['a\ufffdb', 2],
      ]);
      assert.equal((await ledger.usage({ ...DAY, groupBy, filter: { tenant: 'a\0b' } })).rows[0]?.events, 2);
    }
    assert.deepEqual(await ledger.verify(), []);
  });

  test('takes the same id from two sources for two events', async (ledger) => {
    await write(ledger, [usageEvent({ id: 'same', source: 'a/1' }), usageEvent({ id: 'same', source: 'b/1' })]);
    assert.equal((await ledger.usage({ ...DAY, groupBy: [] })).rows[0]?.events, 2);
  });

  test('takes concurrent writes of the same events once', async (ledger) => {
    const events = Array.from({ length: 50 }, (_, index) => usageEvent({ seq: index + 1, tenant: `t${index % 5}` }));
    await Promise.all([events, [...events].reverse(), events.slice(20), events].map((batch) => write(ledger, batch)));
    assert.equal((await ledger.usage({ ...DAY, groupBy: [] })).rows[0]?.events, 50);
    assert.deepEqual(await ledger.verify(), []);
  });

  test('gives the totals of an interval that begins at from and ends before to', async (ledger) => {
    const times = [
      '2026-02-28T23:59:59.999Z',
      '2026-03-01T00:00:00.000Z',
      '2026-03-01T23:59:59.999Z',
      '2026-03-02T00:00:00.000Z',
    ];
    await write(
      ledger,
      times.map((time, index) => usageEvent({ time, seq: index + 1 })),
    );
    assert.equal((await ledger.usage({ ...DAY, groupBy: [] })).rows[0]?.events, 2);
    const odd = { from: '2026-03-01T00:00:00.001Z', to: '2026-03-02T00:00:00.001Z' };
    assert.equal((await ledger.usage({ ...odd, groupBy: [] })).rows[0]?.events, 2);
    assert.deepEqual((await ledger.usage({ from: DAY.to, to: DAY.to, groupBy: [] })).rows, []);
  });

  test('groups by every key, and leaves absent what the events do not state', async (ledger) => {
    await write(ledger, [
      usageEvent({
        seq: 1,
        tenant: 't1',
        clientId: 'c1',
        plan: 'pro',
        resource: { type: 'repo', id: 'r' },
        dimensions: { model: 'm', hot: true },
      }),
      usageEvent({ seq: 2, tenant: undefined, authId: 'k2', type: 'other' }),
      usageEvent({ seq: 3, tenant: 't1', issuer: 'another' }),
    ]);
    const by = async (...groupBy: UsageQuery['groupBy']) =>
      plain((await ledger.usage({ ...DAY, groupBy })).rows).map(({ key, events }) => [key, events]);
    assert.deepEqual(
      sorted(await by('tenant')),
      sorted([
        [{ tenant: 't1' }, 2],
        [{}, 1],
      ]),
    );
    assert.deepEqual(
      sorted(await by('clientId')),
      sorted([
        [{ clientId: 'c1' }, 1],
        [{}, 2],
      ]),
    );
    assert.deepEqual(
      sorted(await by('authId')),
      sorted([
        [{ authId: 'k1', issuer: 'iss' }, 1],
        [{ authId: 'k1', issuer: 'another' }, 1],
        [{ authId: 'k2', issuer: 'iss' }, 1],
      ]),
    );
    assert.deepEqual(
      sorted(await by('type')),
      sorted([
        [{ type: 'call' }, 2],
        [{ type: 'other' }, 1],
      ]),
    );
    assert.deepEqual(
      sorted(await by('plan')),
      sorted([
        [{ plan: 'pro' }, 1],
        [{}, 2],
      ]),
    );
    assert.deepEqual(
      sorted(await by('resource')),
      sorted([
        [{ resource: 'r', 'resource.type': 'repo' }, 1],
        [{}, 2],
      ]),
    );
    assert.deepEqual(
      sorted(await by('subject')),
      sorted([
        [{ subject: 'u', 'subject.kind': 'user', issuer: 'iss' }, 2],
        [{ subject: 'u', 'subject.kind': 'user', issuer: 'another' }, 1],
      ]),
    );
    assert.deepEqual(
      sorted(await by('dimensions.model', 'type')),
      sorted([
        [{ 'dimensions.model': 'm', type: 'call' }, 1],
        [{ type: 'other' }, 1],
        [{ type: 'call' }, 1],
      ]),
    );
    assert.deepEqual(
      sorted(await by('dimensions.hot')),
      sorted([
        [{ 'dimensions.hot': 'true' }, 1],
        [{}, 2],
      ]),
    );
  });

  test('keeps billable and not billable apart', async (ledger) => {
    await write(ledger, [
      usageEvent({ seq: 1, quantities: { requests: amount(1), tokens: amount(5) } }),
      usageEvent({
        seq: 2,
        billable: false,
        outcome: 'server_error',
        quantities: { requests: amount(1), tokens: amount(7) },
      }),
      usageEvent({ seq: 3, tenant: 'free', billable: false }),
    ]);
    assert.deepEqual(plain((await ledger.usage({ ...DAY, groupBy: ['tenant'] })).rows), [
      { key: { tenant: 'free' }, events: 0, quantities: {}, rest: 1, restQuantities: { requests: 1n } },
      {
        key: { tenant: 't' },
        events: 1,
        quantities: { requests: 1n, tokens: 5n },
        rest: 1,
        restQuantities: { requests: 1n, tokens: 7n },
      },
    ]);
  });

  test('adds exactly, beyond what a number can hold', async (ledger) => {
    const value = Number.MAX_SAFE_INTEGER;
    await write(
      ledger,
      Array.from({ length: 9 }, (_, index) => usageEvent({ seq: index + 1, quantities: { micro: amount(value) } })),
    );
    assert.equal((await ledger.usage({ ...DAY, groupBy: [] })).rows[0]?.quantities.micro, BigInt(value) * 9n);
  });

  test('gives only the quantities and the events that are asked for', async (ledger) => {
    await write(ledger, [
      usageEvent({ seq: 1, quantities: { requests: amount(1), a: amount(2), b: amount(3) } }),
      usageEvent({ seq: 2, tenant: 'other', clientId: 'c', quantities: { a: amount(10) } }),
    ]);
    const { rows } = await ledger.usage({ ...DAY, groupBy: [], quantities: ['a', 'none'], filter: { tenant: 't' } });
    assert.deepEqual(plain(rows), [{ key: {}, events: 1, quantities: { a: 2n }, rest: 0, restQuantities: {} }]);
    assert.equal(
      (
        await ledger.usage({
          ...DAY,
          groupBy: [],
          filter: { clientId: 'c', authId: 'k1', issuer: 'iss', type: 'call' },
        })
      ).rows[0]?.events,
      1,
    );
    assert.deepEqual((await ledger.usage({ ...DAY, groupBy: [], filter: { clientId: 'C' } })).rows, []);
  });

  test('books a correction at its own time, with the attribution of what it corrects, whichever arrives first', async (ledger) => {
    const later = '2026-03-05T12:00:00.000Z';
    const correction = (seq: number, corrects: string, tokens: number, time = later): UsageEvent => ({
      id: `fix-${seq}`,
      source: 'test/1',
      seq,
      type: 'call',
      time,
      outcome: 'complete',
      billable: true,
      quantities: { tokens: amount(tokens) },
      dimensions: {},
      corrects,
      reason: 'recount',
    });
    await write(ledger, [correction(3, 'late', -4), correction(4, 'nobody', 99)]);
    await write(ledger, [
      usageEvent({ id: 'e1', seq: 1, tenant: 'acme', dimensions: { model: 'm' }, quantities: { tokens: amount(10) } }),
      correction(5, 'e1', -3),
      correction(5, 'e1', -3),
      correction(6, 'e1', 2, '2026-03-01T12:00:00.000Z'),
      usageEvent({ id: 'late', seq: 2, tenant: 'free', billable: false, quantities: { tokens: amount(4) } }),
    ]);
    const of = async (from: string, to: string) =>
      plain((await ledger.usage({ from, to, groupBy: ['tenant', 'dimensions.model'] })).rows);
    assert.deepEqual(await of(DAY.from, DAY.to), [
      {
        key: { tenant: 'acme', 'dimensions.model': 'm' },
        events: 1,
        quantities: { tokens: 12n },
        rest: 0,
        restQuantities: {},
      },
      { key: { tenant: 'free' }, events: 0, quantities: {}, rest: 1, restQuantities: { tokens: 4n } },
    ]);
    assert.deepEqual(await of('2026-03-05T00:00:00Z', '2026-03-06T00:00:00Z'), [
      {
        key: { tenant: 'acme', 'dimensions.model': 'm' },
        events: 0,
        quantities: { tokens: -3n },
        rest: 0,
        restQuantities: {},
      },
      { key: { tenant: 'free' }, events: 0, quantities: {}, rest: 0, restQuantities: { tokens: -4n } },
    ]);
    const rolled = await ledger.usage({
      from: '2026-03-01T00:00:00Z',
      to: '2026-04-01T00:00:00Z',
      groupBy: ['tenant'],
    });
    assert.deepEqual(
      plain(rolled.rows).map(({ key, quantities, restQuantities }) => [key.tenant, quantities, restQuantities]),
      [
        ['acme', { tokens: 9n }, {}],
        ['free', {}, { tokens: 0n }],
      ],
    );
    assert.deepEqual(await ledger.verify(), []);
  });

  test('makes hours, days and months by the clock of a time zone', async (ledger) => {
    const times = [
      '2026-03-28T18:10:00Z',
      '2026-03-28T18:20:00Z',
      '2026-03-29T00:30:00Z',
      '2026-03-29T01:30:00Z',
      '2026-03-31T22:30:00Z',
    ];
    await write(
      ledger,
      times.map((time, index) => usageEvent({ time: new Date(time).toISOString(), seq: index + 1 })),
    );
    const query = { from: '2026-03-01T00:00:00Z', to: '2026-05-01T00:00:00Z', groupBy: [] };
    const counts = async (interval: 'hour' | 'day' | 'month', timeZone?: string) =>
      (await ledger.usage({ ...query, interval, timeZone })).rows.map((row) => [row.from?.toISOString(), row.events]);
    assert.deepEqual(await counts('day', 'Asia/Kathmandu'), [
      ['2026-03-27T18:15:00.000Z', 1],
      ['2026-03-28T18:15:00.000Z', 3],
      ['2026-03-31T18:15:00.000Z', 1],
    ]);
    assert.deepEqual(await counts('day', 'Europe/Berlin'), [
      ['2026-03-27T23:00:00.000Z', 2],
      ['2026-03-28T23:00:00.000Z', 2],
      ['2026-03-31T22:00:00.000Z', 1],
    ]);
    assert.deepEqual(await counts('month', 'Europe/Berlin'), [
      ['2026-02-28T23:00:00.000Z', 4],
      ['2026-03-31T22:00:00.000Z', 1],
    ]);
    assert.deepEqual(await counts('month'), [['2026-03-01T00:00:00.000Z', 5]]);
    assert.equal((await counts('hour', 'Asia/Kathmandu')).length, 5);
  });

  test('makes hours of what one clock put far into the past or the future', async (ledger) => {
    const times = [
      '1970-01-01T00:00:00.000Z',
      '2026-03-01T10:00:00.000Z',
      '2026-03-02T10:00:00.000Z',
      '9998-06-01T00:00:00.000Z',
    ];
    await write(
      ledger,
      times.map((time, index) => usageEvent({ time, seq: index + 1 })),
    );
    const query = { from: '1970-01-01', to: '9999-01-01', groupBy: ['tenant'] as const, timeZone: 'Asia/Kathmandu' };
    for (const [interval, rows] of [
      ['hour', 4],
      ['day', 4],
      ['month', 3],
    ] as const) {
      assert.equal((await ledger.usage({ ...query, interval })).rows.length, rows);
    }
    assert.deepEqual(
      (await ledger.usage({ ...query, interval: 'hour', from: '2026-03-01T10:00:00.001Z' })).rows.map(
        ({ from }) => from,
      ),
      ['2026-03-02T09:15:00.000Z', '9998-05-31T23:15:00.000Z'].map((time) => new Date(time)),
    );
  });

  test('audits each source: gaps are missing, duplicates, dead letters and what came before it are not', async (ledger) => {
    await write(
      ledger,
      [1, 2, 5, 2, 9].map((seq) => usageEvent({ seq })),
    );
    await write(ledger, [usageEvent({ seq: 4, source: 'test/2' }), usageEvent({ seq: 5, source: 'test/2' })]);
    assert.deepEqual(await ledger.audit(), [
      {
        source: 'test/1',
        state: 'open',
        last: 9,
        count: 4,
        missing: [
          [3, 4],
          [6, 8],
        ],
      },
      { source: 'test/2', state: 'open', last: 5, count: 2, missing: [[1, 3]] },
    ]);
    for (let twice = 0; twice < 2; twice++) {
      await ledger.sourceNotes([
        { kind: 'dead_letter', source: 'test/1', seq: 3, reason: 'poison' },
        { kind: 'closed', source: 'test/1', lastSeq: 10 },
        { kind: 'attached', source: 'test/2', firstSeq: 4 },
        { kind: 'closed', source: 'test/2', lastSeq: 5 },
        { kind: 'closed', source: 'test/3', lastSeq: 0 },
      ]);
    }
    assert.deepEqual(await ledger.audit(), [
      {
        source: 'test/1',
        state: 'closed',
        last: 10,
        count: 4,
        missing: [
          [4, 4],
          [6, 8],
          [10, 10],
        ],
      },
      { source: 'test/2', state: 'closed', last: 5, count: 2, missing: [] },
      { source: 'test/3', state: 'closed', last: 0, count: 0, missing: [] },
    ]);
    await write(
      ledger,
      [4, 6, 7, 8, 10].map((seq) => usageEvent({ seq })),
    );
    assert.deepEqual((await ledger.audit())[0]?.missing, []);
  });

  test('says until when the totals are final, and which sources keep them open', async (ledger) => {
    const ask = async (): Promise<[string | undefined, readonly string[]]> => {
      const report: UsageReport = await ledger.usage({ ...DAY, groupBy: [] });
      return [report.completeThrough?.toISOString(), report.openSources];
    };
    assert.deepEqual(await ask(), ['2026-03-02T00:00:00.000Z', []]);
    await write(ledger, [usageEvent({ seq: 1 })]);
    assert.deepEqual(await ask(), [undefined, ['test/1']]);
    const through = (source: string, lastSeq: number, time: string) =>
      ledger.sourceNotes([{ kind: 'through', source, lastSeq, time }]);
    await through('test/1', 1, '2026-03-01T15:00:00.000Z');
    assert.deepEqual(await ask(), ['2026-03-01T15:00:00.000Z', ['test/1']]);
    await through('test/2', 0, '2026-03-01T14:00:00.000Z');
    assert.deepEqual(await ask(), ['2026-03-01T14:00:00.000Z', ['test/1', 'test/2']]);
    await through('test/2', 2, '2026-03-03T00:00:00.000Z');
    assert.deepEqual(await ask(), [undefined, ['test/1', 'test/2']]);
    await write(ledger, [usageEvent({ seq: 1, source: 'test/2' }), usageEvent({ seq: 2, source: 'test/2' })]);
    assert.deepEqual(await ask(), ['2026-03-01T15:00:00.000Z', ['test/1', 'test/2']]);
    await ledger.sourceNotes([{ kind: 'closed', source: 'test/1', lastSeq: 1 }]);
    assert.deepEqual(await ask(), ['2026-03-02T00:00:00.000Z', ['test/2']]);
    await ledger.sourceNotes([{ kind: 'closed', source: 'test/2', lastSeq: 3 }]);
    assert.deepEqual(await ask(), [undefined, ['test/2']]);
  });

  test('gives the events back as they were written, by time, filtered', async (ledger) => {
    const full = usageEvent({
      id: 'full',
      seq: 7,
      time: '2026-03-01T10:00:00.000Z',
      clientId: 'c',
      tokenId: 'tok',
      plan: 'pro',
      resource: { type: 'repo', id: 'r/"1"' },
      claims: { 'x-h': ['a', 'b'], nested: { list: [1, null, { deep: 'ü😀' }] } },
      requestId: 'req-1',
      method: 'POST',
      route: '/v1/:id',
      status: 200,
      durationMs: 12,
      dimensions: { model: 'm', n: 1.5, hot: false },
    });
    await write(ledger, [
      usageEvent({ id: 'z', seq: 9, time: '2026-03-01T11:00:00.000Z' }),
      full,
      usageEvent({ id: 'a', seq: 8, time: '2026-03-01T09:00:00.000Z' }),
    ]);
    const ids = async (filter: Parameters<Ledger['events']>[0]) =>
      (await collect(ledger.events(filter))).map(({ id }) => id);
    assert.deepEqual(await ids({}), ['a', 'full', 'z']);
    assert.deepEqual(await ids({ from: '2026-03-01T10:00:00Z', to: new Date('2026-03-01T11:00:00Z') }), ['full']);
    for (const filter of [
      { requestId: 'req-1' },
      { id: 'full' },
      { clientId: 'c' },
      { resource: { type: 'repo', id: 'r/"1"' } },
      {
        subject: { kind: 'user' as const, id: 'u' },
        requestId: 'req-1',
        source: 'test/1',
        tenant: 't',
        authId: 'k1',
        type: 'call',
        issuer: 'iss',
      },
    ]) {
      assert.deepEqual(await ids(filter), ['full'], JSON.stringify(filter));
    }
    assert.deepEqual(await collect(ledger.events({ requestId: 'req-1' })), [full]);
    assert.deepEqual(await ids({ tenant: 'nobody' }), []);
  });

  test('takes hostile text for what it is', async (ledger) => {
    const hostile = [
      '__proto__',
      'constructor',
      "'; DROP TABLE events; --",
      '"',
      '\\',
      'ünï😀',
      ' ',
      '%',
      'a\nb',
      '{"a":1}',
    ];
    await write(
      ledger,
      hostile.map((text, index) =>
        usageEvent({ seq: index + 1, tenant: text, authId: text, type: text, dimensions: { model: text } }),
      ),
    );
    const { rows } = await ledger.usage({ ...DAY, groupBy: ['tenant', 'dimensions.model'] });
    assert.deepEqual(rows.map(({ key }) => key.tenant).sort(), [...hostile].sort());
    for (const text of hostile) {
      assert.equal(
        (await ledger.usage({ ...DAY, groupBy: ['type'], filter: { tenant: text } })).rows[0]?.key.type,
        text,
      );
    }
    assert.deepEqual(await ledger.verify(), []);
  });

  test('refuses a wrong query with every problem at once', async (ledger) => {
    const query = {
      from: 'yesterday',
      to: 5,
      groupBy: ['tenants'],
      interval: 'week',
      timeZone: 'Mars/Olympus',
      quantities: 'requests',
      filter: { tenat: 'x' },
      extra: 1,
    };
    await assert.rejects(
      async () => ledger.usage(query as never),
      (error: Error) => {
        assert.ok(error instanceof TypeError);
        for (const part of ['from', 'to', 'groupBy', 'interval', 'timeZone', 'quantities', 'filter.tenat', '"extra"']) {
          assert.ok(error.message.includes(part), part);
        }
        return true;
      },
    );
    await assert.rejects(async () => ledger.usage({ from: DAY.to, to: DAY.from, groupBy: [] }), TypeError);
    for (const from of ['x', '2026-02-30', '2026-02-29T00:00:00Z', '2026-13-01']) {
      await assert.rejects(async () => ledger.usage({ ...DAY, from, groupBy: [] }), TypeError);
      await assert.rejects(async () => collect(ledger.events({ from })), TypeError);
    }
    // None of these gives all events instead.
    for (const wrong of [
      { subject: 'u' },
      { resource: { id: 'r' } },
      { tenant: 5 },
      { id: '' },
      { to: DAY.from, from: DAY.to },
    ]) {
      await assert.rejects(async () => collect(ledger.events(wrong as never)), TypeError);
    }
  });

  test('can be migrated again, and closed twice', async (ledger) => {
    await write(ledger, [usageEvent({ seq: 1 })]);
    await Promise.all([ledger.migrate(), ledger.migrate()]);
    assert.equal((await ledger.usage({ ...DAY, groupBy: [] })).rows[0]?.events, 1);
    await ledger.close();
    await ledger.close();
  });

  return cases;
}

/** A complete, billable usage event of 2026-03-01; what is undefined in `overrides` is left out. */
export function usageEvent(overrides: Partial<UsageEvent> = {}): UsageEvent {
  const seq = overrides.seq ?? 1;
  const event = {
    id: `e${seq}-${overrides.source ?? 'test/1'}`.replace('/', '.'),
    source: 'test/1',
    seq,
    type: 'call',
    time: '2026-03-01T10:00:00.000Z',
    authId: 'k1',
    subject: { kind: 'user', id: 'u' },
    issuer: 'iss',
    verifier: 'test',
    tenant: 't',
    outcome: 'complete',
    billable: true,
    quantities: { requests: amount(1) },
    dimensions: {},
    ...overrides,
  };
  return Object.fromEntries(Object.entries(event).filter(([, value]) => value !== undefined)) as unknown as UsageEvent;
}

function amount(value: number): { value: number; basis: 'measured' } {
  return { value, basis: 'measured' };
}

async function write(ledger: Ledger, events: readonly UsageEvent[]): Promise<void> {
  const verdicts = await ledger.write(events, signal);
  for (const verdict of verdicts ?? []) assert.equal(verdict.outcome, 'delivered');
}

function plain(rows: UsageReport['rows']) {
  return rows.map(({ key, events, quantities, notBillable }) => ({
    key: { ...key },
    events,
    quantities: { ...quantities },
    rest: notBillable.events,
    restQuantities: { ...notBillable.quantities },
  }));
}

function sorted(rows: readonly unknown[]): unknown[] {
  const text = (row: unknown): string =>
    JSON.stringify(row, (_key, value) =>
      typeof value === 'object' && value !== null && !Array.isArray(value) ? Object.entries(value).sort() : value,
    );
  return [...rows].sort((a, b) => (text(a) < text(b) ? -1 : 1));
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

import assert from 'node:assert/strict';
import type { UsageEvent } from '../meter/usage-event.js';
import type { Ledger, SourceAudit, UsageReport } from '../usage/ledger.js';
import type { ContractCase } from './contract-case.js';
import { type AddLedgerCase, collect, DAY, plain, signal, usageEvent, write } from './ledger-fixture.js';
import { addReportCases } from './ledger-report-cases.js';

/** An empty, migrated ledger, and what ends it. */
export interface LedgerUnderTest {
  readonly ledger: Ledger;
  end?(): Promise<void>;
}

/** What every ledger must do, as runner-neutral cases. */
export function ledgerContract(make: () => Promise<LedgerUnderTest>): ContractCase[] {
  const cases: ContractCase[] = [];
  const test: AddLedgerCase = (name, body) => {
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
    // An operator who has decided that what is missing will never come: it keeps the totals open no longer.
    await ledger.sourceNotes([
      { kind: 'attached', source: 'test/2', firstSeq: 4 },
      { kind: 'closed', source: 'test/2', lastSeq: 3 },
    ]);
    assert.deepEqual(await ask(), ['2026-03-02T00:00:00.000Z', []]);
    const written: SourceAudit = { source: 'test/2', state: 'closed', last: 3, count: 2, missing: [] };
    assert.deepEqual((await ledger.audit())[1], written);
    // It is on the books all the same, should its disk be found.
    await write(ledger, [usageEvent({ seq: 3, source: 'test/2' })]);
    assert.deepEqual((await ledger.audit())[1], { ...written, count: 3 });
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

  addReportCases(test);
  return cases;
}

import assert from 'node:assert/strict';
import type { UsageEvent } from '../meter/usage-event.js';
import type { UsageQuery } from '../usage/ledger.js';
import { type AddLedgerCase, amount, DAY, plain, sorted, usageEvent, write } from './ledger-fixture.js';

/** What every ledger's `usage()` must tell. */
export function addReportCases(test: AddLedgerCase): void {
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
}

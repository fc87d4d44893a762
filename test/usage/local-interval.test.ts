import { memoryLedger } from 'tollkeeper';
import { usageEvent } from 'tollkeeper/testing';
import { describe, expect, it } from 'vitest';

const signal = new AbortController().signal;
const AGES = { from: '2000-01-01', to: '2100-01-01', groupBy: [] as const };

/** The first instant of the interval that an event at `at` is reported under. */
async function start(interval: 'hour' | 'day' | 'month', timeZone: string, at: string): Promise<string | undefined> {
  const ledger = memoryLedger();
  await ledger.write([usageEvent({ time: new Date(at).toISOString() })], signal);
  const { rows } = await ledger.usage({ ...AGES, interval, timeZone });
  return rows[0]?.from?.toISOString();
}

describe('the intervals of a report', () => {
  it.each([
    ['hour', 'UTC', '2026-03-01T10:59:59.999Z', '2026-03-01T10:00:00.000Z'],
    ['day', 'UTC', '2026-03-01T23:59:59Z', '2026-03-01T00:00:00.000Z'],
    ['month', 'UTC', '2026-03-31T23:59:59Z', '2026-03-01T00:00:00.000Z'],
    // +05:45
    ['hour', 'Asia/Kathmandu', '2026-03-01T10:20:00Z', '2026-03-01T10:15:00.000Z'],
    ['hour', 'Asia/Kathmandu', '2026-03-01T10:14:00Z', '2026-03-01T09:15:00.000Z'],
    ['day', 'Asia/Kathmandu', '2026-03-01T18:15:00Z', '2026-03-01T18:15:00.000Z'],
    ['day', 'Asia/Kathmandu', '2026-03-01T18:14:59Z', '2026-02-28T18:15:00.000Z'],
    ['month', 'Asia/Kathmandu', '2026-02-28T18:15:00Z', '2026-02-28T18:15:00.000Z'],
    // A day of 23 hours and one of 25.
    ['day', 'Europe/Berlin', '2026-03-29T21:59:00Z', '2026-03-28T23:00:00.000Z'],
    ['day', 'Europe/Berlin', '2026-03-29T22:00:00Z', '2026-03-29T22:00:00.000Z'],
    ['day', 'Europe/Berlin', '2026-10-25T22:59:00Z', '2026-10-24T22:00:00.000Z'],
    ['day', 'Europe/Berlin', '2026-10-25T23:00:00Z', '2026-10-25T23:00:00.000Z'],
    ['month', 'Europe/Berlin', '2026-03-31T21:59:59Z', '2026-02-28T23:00:00.000Z'],
    // The repeated hour is two hours.
    ['hour', 'Europe/Berlin', '2026-10-25T00:30:00Z', '2026-10-25T00:00:00.000Z'],
    ['hour', 'Europe/Berlin', '2026-10-25T01:30:00Z', '2026-10-25T01:00:00.000Z'],
    // Midnight does not exist: the clocks of Cairo go from 00:00 to 01:00 on 2026-04-24.
    ['day', 'Africa/Cairo', '2026-04-24T12:00:00Z', '2026-04-23T22:00:00.000Z'],
    ['day', 'America/Sao_Paulo', '2018-11-04T12:00:00Z', '2018-11-04T03:00:00.000Z'],
    // Midnight exists twice: Havana falls back from 01:00 to 00:00.
    ['day', 'America/Havana', '2026-11-01T12:00:00Z', '2026-11-01T04:00:00.000Z'],
    // Half an hour of daylight saving time.
    ['hour', 'Australia/Lord_Howe', '2026-10-03T15:45:00Z', '2026-10-03T15:30:00.000Z'],
    ['day', 'Australia/Lord_Howe', '2026-10-04T05:00:00Z', '2026-10-03T13:30:00.000Z'],
    // A day that does not exist at all: Samoa skipped 2011-12-30.
    ['day', 'Pacific/Apia', '2011-12-30T12:00:00Z', '2011-12-30T10:00:00.000Z'],
  ] as const)('the %s of %s that %s falls in begins at %s', async (interval, timeZone, at, expected) => {
    expect(await start(interval, timeZone, at)).toBe(expected);
  });

  it.each(['Australia/Lord_Howe', 'Africa/Cairo'])(
    'are the days of the local calendar, all through a year: %s',
    async (timeZone) => {
      const first = Date.parse('2026-01-02T00:00:00Z');
      const quarters = Array.from({ length: 330 * 96 }, (_, index) => first + index * 900_000);
      const ledger = memoryLedger();
      await ledger.write(
        quarters.map((ms, index) => usageEvent({ seq: index + 1, time: new Date(ms).toISOString() })),
        signal,
      );
      const { rows } = await ledger.usage({ ...AGES, interval: 'day', timeZone });
      const format = new Intl.DateTimeFormat('en-CA', { timeZone, year: 'numeric', month: '2-digit', day: '2-digit' });
      const expected = new Map<string, number>();
      for (const ms of quarters) {
        const label = format.format(ms);
        expected.set(label, (expected.get(label) ?? 0) + 1);
      }
      expect(rows.map(({ from, events }) => [format.format(from), events])).toEqual([...expected]);
    },
  );
});

import fc from 'fast-check';
import Libsql from 'libsql';
import pg from 'pg';
import { type Ledger, memoryLedger, type UsageEvent, type UsageKey } from 'tollkeeper';
import { postgresLedger } from 'tollkeeper/postgres';
import { sqliteLedger } from 'tollkeeper/sqlite';
import { usageEvent } from 'tollkeeper/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { describeWith } from '../support/availability.js';
import { sized } from '../support/full-size.js';
import type { RunningServer } from '../support/running-server.js';
import { startPostgres } from '../support/start-postgres.js';

const RUNS = sized(25, 200);
const signal = new AbortController().signal;
const names = (prefix: string, count: number) => fc.integer({ min: 1, max: count }).map((n) => `${prefix}${n}`);

/** Instants around a change of clocks, on quarters and between them. */
const instant = fc
  .tuple(
    fc.constantFrom('2026-03-28T00:00:00Z', '2026-10-24T00:00:00Z'),
    fc.integer({ min: 0, max: 3 * 96 }),
    fc.constantFrom(0, 0, 1, 450_123, 899_999),
  )
  .map(([base, quarter, more]) => new Date(Date.parse(base) + quarter * 900_000 + more).toISOString());

const original = fc.record({
  time: instant,
  source: fc.constantFrom('a/1', 'b/1'),
  tenant: fc.option(names('t', 3), { nil: undefined }),
  clientId: fc.option(names('c', 3), { nil: undefined }),
  authId: names('k', 3),
  issuer: names('iss', 2),
  type: names('type', 2),
  billable: fc.boolean(),
  model: fc.option(names('m', 2), { nil: undefined }),
  user: names('u', 2),
  repo: fc.option(names('r', 2), { nil: undefined }),
  plan: fc.option(names('p', 2), { nil: undefined }),
  tokens: fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
  corrections: fc.array(fc.record({ time: instant, tokens: fc.integer({ min: -1_000_000, max: 1_000_000 }) }), {
    maxLength: 2,
  }),
});

/** What sinks are given: events in any order, some of them twice, corrections before or after what they correct. */
const history = fc
  .array(original, { minLength: 1, maxLength: 40 })
  .map((drafts) => {
    const sequences: Record<string, number> = {};
    const next = (source: string): number => {
      sequences[source] = (sequences[source] ?? 0) + 1;
      return sequences[source];
    };
    return drafts.flatMap(({ source, model, user, repo, tokens, corrections, ...rest }, index): UsageEvent[] => {
      const id = `e${index}`;
      const event = usageEvent({
        ...rest,
        id,
        source,
        seq: next(source),
        subject: { kind: 'user', id: user },
        resource: repo === undefined ? undefined : { type: 'repo', id: repo },
        dimensions: model === undefined ? {} : { model },
        quantities: { requests: { value: 1, basis: 'measured' }, tokens: { value: tokens, basis: 'reported' } },
      });
      const fixes = corrections.map(
        ({ time, tokens: value }, n): UsageEvent => ({
          id: `${id}-fix${n}`,
          source,
          seq: next(source),
          type: 'correction',
          time,
          outcome: 'complete',
          billable: true,
          quantities: { tokens: { value, basis: 'reported' } },
          dimensions: {},
          corrects: id,
          reason: 'recount',
        }),
      );
      return [event, ...fixes];
    });
  })
  .chain((events) =>
    fc.record({
      events: fc.constant(events),
      // A shuffled copy with duplicates, cut into batches.
      written: fc
        .tuple(
          fc.shuffledSubarray(events, { minLength: events.length, maxLength: events.length }),
          fc.shuffledSubarray(events),
          fc.integer({ min: 1, max: 9 }),
        )
        .map(([all, again, size]) => {
          const list = [...all, ...again];
          return Array.from({ length: Math.ceil(list.length / size) }, (_, i) => list.slice(i * size, (i + 1) * size));
        }),
      groupBy: fc.oneof(
        fc.subarray<UsageKey>(['tenant', 'clientId', 'authId', 'type', 'issuer']),
        fc.subarray<UsageKey>(['tenant', 'authId', 'subject', 'resource', 'plan', 'dimensions.model']),
      ),
      interval: fc.constantFrom(undefined, 'hour', 'day', 'month'),
      timeZone: fc.constantFrom('UTC', 'Asia/Kathmandu', 'Europe/Berlin', 'America/St_Johns'),
      from: instant,
      to: instant,
    }),
  );

type History = typeof history extends fc.Arbitrary<infer T> ? T : never;

/** The plain model: labels of the local clock, maps and bigints. */
function model({ events, groupBy, interval, timeZone, from, to }: History): unknown {
  const originals = new Map(events.filter(({ corrects }) => corrects === undefined).map((event) => [event.id, event]));
  const totals = new Map<
    string,
    { events: number; rest: number; quantities: Record<string, bigint>; restQuantities: Record<string, bigint> }
  >();
  for (const event of events) {
    if (!(event.time >= from && event.time < to)) continue;
    const who = event.corrects === undefined ? event : (originals.get(event.corrects) as UsageEvent);
    const key: [string, string][] = [];
    for (const name of groupBy) {
      const value = statedBy(who, name);
      if (value !== undefined) key.push([name, value]);
      if (name === 'authId' || name === 'subject') key.push(['issuer', String(who.issuer)]);
      if (name === 'subject') key.push(['subject.kind', 'user']);
      if (name === 'resource' && value !== undefined) key.push(['resource.type', 'repo']);
    }
    const label = interval === undefined ? '' : localLabel(event.time, interval, timeZone);
    const id = JSON.stringify([label, [...new Map(key)].sort()]);
    const total = totals.get(id) ?? { events: 0, rest: 0, quantities: {}, restQuantities: {} };
    totals.set(id, total);
    if (event.corrects === undefined) total[who.billable ? 'events' : 'rest'] += 1;
    const target = total[who.billable ? 'quantities' : 'restQuantities'];
    for (const [name, { value }] of Object.entries(event.quantities))
      target[name] = (target[name] ?? 0n) + BigInt(value);
  }
  return sorted([...totals.entries()]);
}

function statedBy(event: UsageEvent, name: UsageKey): string | undefined {
  if (name === 'subject') return event.subject?.id;
  if (name === 'resource') return event.resource?.id;
  if (name === 'dimensions.model') return event.dimensions.model as string | undefined;
  return event[name as 'tenant'];
}

/** Where the JSON of an event has a key. */
const PATHS: Partial<Record<UsageKey, string>> = {
  subject: '{subject,id}',
  resource: '{resource,id}',
  'dimensions.model': '{dimensions,model}',
};

/** What PostgreSQL makes of the events themselves, by its own calendar and its own time zones. */
async function summedBySql(pool: pg.Pool, { groupBy, interval, timeZone, from, to }: History): Promise<string[]> {
  // The columns that accompany these change no group: a user has a kind, a key of the model's is of its issuer.
  const names = groupBy.some((name) => name === 'authId' || name === 'subject')
    ? [...new Set<UsageKey>([...groupBy, 'issuer'])]
    : groupBy;
  const keys = names.map((name) => `coalesce(who #>> '${PATHS[name] ?? `{${name}}`}', '-')`);
  const start =
    interval === undefined ? "'-'" : `(extract(epoch FROM date_trunc('${interval}', at, $3)) * 1000)::bigint::text`;
  const { rows } = await pool.query(
    `WITH events AS (SELECT id, time AS at, json::jsonb AS event FROM tollkeeper_events),
       told AS (SELECT at, event, coalesce(o, event) AS who FROM events
         LEFT JOIN LATERAL (SELECT event AS o FROM events AS other WHERE other.id = events.event ->> 'corrects') AS o ON true)
     SELECT concat_ws('|', ${[...keys, start, "who ->> 'billable'"].join(', ')}) AS id,
       count(*) FILTER (WHERE event -> 'corrects' IS NULL)::text AS events,
       sum((event #>> '{quantities,tokens,value}')::numeric)::text AS tokens
     FROM told WHERE at >= $1 AND at < $2 AND $3::text IS NOT NULL GROUP BY 1`,
    [from, to, timeZone],
  );
  return rows.map(({ id, events, tokens }) => `${id}|${events}|${tokens}`).sort();
}

async function summedByLedger(ledger: Ledger, { groupBy, interval, timeZone, from, to }: History): Promise<string[]> {
  const { rows } = await ledger.usage({ from, to, groupBy, interval, timeZone });
  const names = groupBy.some((name) => name === 'authId' || name === 'subject')
    ? [...new Set<UsageKey>([...groupBy, 'issuer'])]
    : groupBy;
  return rows
    .flatMap(({ key, from: start, events, quantities, notBillable }) =>
      [
        { billable: true, events, quantities },
        { billable: false, ...notBillable },
      ]
        .filter((total) => total.events > 0 || total.quantities.tokens !== undefined)
        .map((total) =>
          [
            ...names.map((name) => key[name] ?? '-'),
            start?.getTime() ?? '-',
            total.billable,
            total.events,
            total.quantities.tokens ?? 0n,
          ].join('|'),
        ),
    )
    .sort();
}

async function reported(ledger: Ledger, { groupBy, interval, timeZone, from, to }: History): Promise<unknown> {
  const { rows } = await ledger.usage({ from, to, groupBy, interval, timeZone });
  return sorted(
    rows.map(({ key, from: start, events, quantities, notBillable }) => {
      const label = interval === undefined ? '' : localLabel((start as Date).toISOString(), interval, timeZone);
      return [
        JSON.stringify([label, Object.entries(key).sort()]),
        {
          events,
          rest: notBillable.events,
          quantities: { ...quantities },
          restQuantities: { ...notBillable.quantities },
        },
      ];
    }),
  );
}

function sorted(entries: unknown[]): unknown {
  return Object.fromEntries(entries as [string, unknown][]);
}

/** What a wall clock of the zone shows, with its offset, since an hour may be shown twice. */
function localLabel(time: string, interval: 'hour' | 'day' | 'month', timeZone: string): string {
  const part: Intl.DateTimeFormatOptions = { year: 'numeric', month: '2-digit' };
  if (interval !== 'month') part.day = '2-digit';
  if (interval === 'hour') Object.assign(part, { hour: '2-digit', hourCycle: 'h23', timeZoneName: 'longOffset' });
  return new Intl.DateTimeFormat('en-CA', { timeZone, ...part }).format(new Date(time));
}

async function check(ledger: Ledger, example: History, independentTokens: () => Promise<bigint>): Promise<void> {
  for (const batch of example.written) await ledger.write(batch, signal);
  if (example.from <= example.to) expect(await reported(ledger, example)).toEqual(model(example));
  const whole = await ledger.usage({ from: '2026-01-01', to: '2027-01-01', groupBy: [], quantities: ['tokens'] });
  const [row] = whole.rows;
  const total = (row?.quantities.tokens ?? 0n) + (row?.notBillable.quantities.tokens ?? 0n);
  expect(total).toBe(await independentTokens());
  expect(await ledger.verify()).toEqual([]);
  for (const { missing } of await ledger.audit()) expect(missing).toEqual([]);
}

describe('usage() equals a plain model in every grouping, interval and time zone', () => {
  it('in memory', async () => {
    await fc.assert(
      fc.asyncProperty(history, async (example) => {
        await check(memoryLedger(), example, async () =>
          example.events.reduce((sum, { quantities }) => sum + BigInt(quantities.tokens?.value ?? 0), 0n),
        );
      }),
      { numRuns: RUNS * 4 },
    );
  }, 120_000);

  it('in SQLite, and an independent SQL sum', async () => {
    await fc.assert(
      fc.asyncProperty(history, async (example) => {
        const db = new Libsql(':memory:');
        const ledger = sqliteLedger(db as never);
        await ledger.migrate();
        await check(ledger, example, async () => {
          const rows = db
            .prepare(
              "SELECT CAST(json_extract(json, '$.quantities.tokens.value') AS TEXT) AS tokens FROM tollkeeper_events",
            )
            .all() as { tokens: string }[];
          return rows.reduce((sum, { tokens }) => sum + BigInt(tokens), 0n);
        });
        db.close();
      }),
      { numRuns: RUNS },
    );
  }, 120_000);
});

describeWith('postgres', 'usage() equals a plain model in PostgreSQL', () => {
  let server: RunningServer;
  let pool: pg.Pool;
  beforeAll(async () => {
    server = await startPostgres();
    pool = new pg.Pool({ connectionString: server.url, max: 4 });
    pool.on('error', () => {});
    await postgresLedger(pool).migrate();
  });
  afterAll(async () => {
    await pool?.end();
    await server?.stop();
  });

  it('in every grouping, interval and time zone, and independent SQL sums of each group', async () => {
    await fc.assert(
      fc.asyncProperty(history, async (example) => {
        await pool.query(
          'TRUNCATE tollkeeper_events, tollkeeper_rollups, tollkeeper_sources, tollkeeper_ledger_state, tollkeeper_usage_keys',
        );
        await check(postgresLedger(pool), example, async () => {
          const { rows } = await pool.query(
            "SELECT coalesce(sum((json::jsonb #>> '{quantities,tokens,value}')::numeric), 0)::text AS tokens FROM tollkeeper_events",
          );
          return BigInt(rows[0].tokens);
        });
        if (example.from <= example.to) {
          expect(await summedByLedger(postgresLedger(pool), example)).toEqual(await summedBySql(pool, example));
        }
      }),
      { numRuns: RUNS },
    );
  }, 120_000);
});

import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { postgresLedger } from 'tollkeeper/postgres';
import { ledgerContract, usageEvent } from 'tollkeeper/testing';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { describeWith } from '../support/availability.js';
import type { RunningServer } from '../support/running-server.js';
import { startPostgres } from '../support/start-postgres.js';

const signal = new AbortController().signal;

describeWith('postgres', 'postgresLedger', () => {
  let server: RunningServer;
  let admin: pg.Pool;
  let serial = 0;
  beforeAll(async () => {
    server = await startPostgres();
    admin = new pg.Pool({ connectionString: server.url });
  });
  afterAll(async () => {
    await admin?.end();
    await server?.stop();
  });

  /** A ledger in a database of its own. */
  async function open() {
    const database = `ledger_${++serial}`;
    await admin.query(`CREATE DATABASE ${database}`);
    const pool = new pg.Pool({ connectionString: server.url.replace(/[^/]+$/, database), max: 5 });
    pool.on('error', () => {});
    const ledger = postgresLedger(pool);
    await ledger.migrate();
    return { pool, ledger, end: () => pool.end() };
  }

  for (const { name, run } of ledgerContract(open)) it(name, run);

  it('is not ready before migrate(), and says so', async () => {
    await expect(postgresLedger(admin).ready()).rejects.toThrow('call migrate() first');
  });

  it('reports roll-ups that somebody has changed', async () => {
    const { pool, ledger, end } = await open();
    await ledger.write([usageEvent({ seq: 1 })], signal);
    await pool.query("UPDATE tollkeeper_rollups SET amount = 7 WHERE quantity = '1' AND tier = 900000");
    expect(await ledger.verify()).toMatchObject([
      { quantity: 'events', rolledUp: 7n, recomputed: 1n, bucket: new Date('2026-03-01T10:00:00Z') },
    ]);
    await end();
  });

  it('forgets old events by the month, keeps their totals and their audit, and still knows a duplicate of them', async () => {
    const { pool, ledger, end } = await open();
    const old = [
      usageEvent({ seq: 1, time: '2026-01-15T10:00:00.000Z' }),
      usageEvent({ seq: 2, time: '2026-02-20T10:00:00.000Z' }),
    ];
    await ledger.write([...old, usageEvent({ seq: 3 })], signal);
    await ledger.prune(new Date('2026-02-25T00:00:00Z'));
    expect((await pool.query("SELECT to_regclass('tollkeeper_events_2026_01') AS gone")).rows[0].gone).toBe(null);
    await ledger.write(old, signal);
    const query = { from: '2026-01-01T00:00:00Z', to: '2026-04-01T00:00:00Z' };
    expect((await ledger.usage({ ...query, groupBy: ['tenant'] })).rows[0]?.events).toBe(3);
    expect((await ledger.usage({ ...query, groupBy: ['subject'] })).rows[0]?.events).toBe(1);
    expect(await ledger.audit()).toEqual([{ source: 'test/1', state: 'open', last: 3, count: 3, missing: [] }]);
    expect(await ledger.verify()).toEqual([]);
    await expect(ledger.prune(new Date(Number.NaN))).rejects.toThrow(TypeError);
    await end();
  });

  it('takes whatever texts an identity has: NUL, halves of characters, and longer than an index can hold', async () => {
    const { ledger, end } = await open();
    const long = randomBytes(6_000).toString('base64');
    const texts = ['a\0b', 'a\ud800b', long, `${long}!`, 'a\nb'];
    const events = texts.map((text, index) =>
      usageEvent({
        seq: index + 1,
        tenant: text,
        authId: text,
        requestId: text.slice(0, 100),
        claims: { 'x-text': text },
      }),
    );
    const verdicts = await ledger.write(events, signal);
    expect(verdicts?.map(({ outcome }) => outcome)).toEqual(texts.map(() => 'delivered'));
    const { rows } = await ledger.usage({ from: '2026-03-01', to: '2026-03-02', groupBy: ['tenant'] });
    expect(rows.map(({ key, events }) => [key.tenant, events]).sort()).toEqual(
      [
        ['a\nb', 1],
        ['a\ufffdb', 2],
        [long, 1],
        [`${long}!`, 1],
      ].sort(),
    );
    expect(await ledger.verify()).toEqual([]);
    const found = [];
    for await (const event of ledger.events({ requestId: 'a\nb' })) found.push(event);
    expect(found).toEqual([events[4]]);
    await end();
  });

  it('has a batch split that holds a value which PostgreSQL refuses, so that the rest of it gets in', async () => {
    const { ledger, end } = await open();
    const hostile = usageEvent({ seq: 2, requestId: randomBytes(6_000).toString('base64') });
    await expect(ledger.write([usageEvent({ seq: 1 }), hostile], signal)).rejects.toMatchObject({
      code: 'sink_error',
      action: 'split',
    });
    expect(await ledger.audit()).toEqual([]);
    await end();
  });

  it('verifies a correction whose original was forgotten', async () => {
    const { ledger, end } = await open();
    const fix = usageEvent({
      id: 'fix',
      seq: 2,
      corrects: 'old',
      quantities: { tokens: { value: -2, basis: 'reported' } },
    });
    const { authId: _a, subject: _s, issuer: _i, verifier: _v, tenant: _t, ...correction } = fix;
    await ledger.write(
      [usageEvent({ id: 'old', seq: 1, time: '2026-01-15T10:00:00.000Z' }), correction],
      new AbortController().signal,
    );
    await ledger.prune(new Date('2026-02-01T00:00:00Z'));
    expect(await ledger.verify()).toEqual([]);
    const { rows } = await ledger.usage({ from: '2026-01-01', to: '2026-04-01', groupBy: ['tenant'] });
    expect(rows).toMatchObject([{ key: { tenant: 't' }, events: 1, quantities: { tokens: -2n } }]);
    await end();
  });

  it('makes a month again that another process has dropped', async () => {
    const { pool, ledger, end } = await open();
    const old = usageEvent({ seq: 1, time: '2026-01-15T10:00:00.000Z' });
    await ledger.write([old], signal);
    await postgresLedger(pool).prune(new Date('2026-02-25T00:00:00Z'));
    await ledger.write([old, usageEvent({ seq: 2, time: '2026-01-16T10:00:00.000Z' })], signal);
    expect(await ledger.audit()).toMatchObject([{ last: 2, count: 2, missing: [] }]);
    const { rows } = await ledger.usage({ from: '2026-01-01', to: '2026-02-01', groupBy: [] });
    expect(rows[0]?.events).toBe(2);
    await end();
  });

  it('is not held up by an export that somebody reads slowly, and neither is a new month', async () => {
    const { ledger, end } = await open();
    await ledger.write(
      Array.from({ length: 10 }, (_, index) => usageEvent({ seq: index + 1 })),
      signal,
    );
    const reading = ledger.events({})[Symbol.asyncIterator]();
    await reading.next();
    await ledger.write([usageEvent({ seq: 11, time: '2026-07-01T00:00:00.000Z' })], signal);
    await reading.return?.();
    expect((await ledger.audit())[0]?.count).toBe(11);
    await end();
  });

  it('gives up a write whose signal aborts, and its connection with it', async () => {
    const own = await startPostgres();
    const pool = new pg.Pool({ connectionString: own.url, max: 1 });
    pool.on('error', () => {});
    const ledger = postgresLedger(pool);
    await ledger.migrate();
    own.pause();
    await expect(ledger.write([usageEvent({ seq: 1 })], AbortSignal.timeout(300))).rejects.toThrow();
    own.resume();
    // The only place of the pool is free again.
    await ledger.write([usageEvent({ seq: 1 })], signal);
    expect(await ledger.audit()).toMatchObject([{ count: 1 }]);
    await pool.end();
    await own.stop();
  });

  it('books a correction and its original that two processes write at once', async () => {
    const { pool, ledger, end } = await open();
    const other = postgresLedger(pool);
    for (let round = 0; round < 20; round++) {
      const original = usageEvent({ id: `o${round}`, seq: round + 1, source: 'a/1' });
      const {
        authId: _a,
        subject: _s,
        issuer: _i,
        verifier: _v,
        tenant: _t,
        ...rest
      } = usageEvent({ seq: round + 1, source: 'b/1' });
      const correction = {
        ...rest,
        id: `c${round}`,
        corrects: `o${round}`,
        quantities: { tokens: { value: 1, basis: 'reported' as const } },
      };
      await Promise.all([ledger.write([original], signal), other.write([correction], signal)]);
    }
    const { rows } = await ledger.usage({ from: '2026-03-01', to: '2026-03-02', groupBy: ['tenant'] });
    expect(rows).toMatchObject([{ key: { tenant: 't' }, events: 20, quantities: { requests: 20n, tokens: 20n } }]);
    expect(await ledger.verify()).toEqual([]);
    await end();
  });

  it('needs a pool', () => {
    expect(() => postgresLedger({} as never)).toThrow(TypeError);
  });
});

import Libsql from 'libsql';
import { type SqliteDatabase, sqliteLedger } from 'tollkeeper/sqlite';
import { ledgerContract, usageEvent } from 'tollkeeper/testing';
import { describe, expect, it } from 'vitest';

/** The drivers that this Node has: libsql everywhere, `node:sqlite` from Node 22.13 on. */
const drivers: [string, () => SqliteDatabase & { close(): void }][] = [
  ['libsql', () => new Libsql(':memory:') as never],
];
const builtin = process.getBuiltinModule?.('node:sqlite' as never) as
  | { DatabaseSync: new (path: string) => SqliteDatabase & { close(): void } }
  | undefined;
if (builtin !== undefined) drivers.push(['node:sqlite', () => new builtin.DatabaseSync(':memory:')]);

async function open(make: () => SqliteDatabase & { close(): void }) {
  const db = make();
  const ledger = sqliteLedger(db);
  await ledger.migrate();
  return { db, ledger, end: async () => db.close() };
}

for (const [driver, make] of drivers) {
  describe(`sqliteLedger on ${driver}`, () => {
    for (const { name, run } of ledgerContract(() => open(make))) it(name, run);

    it('is not ready before migrate(), and says so', async () => {
      const db = make();
      await expect(sqliteLedger(db).ready()).rejects.toThrow('call migrate() first');
      db.close();
    });

    it('reports roll-ups that somebody has changed, and the events that are behind them', async () => {
      const { db, ledger, end } = await open(make);
      await ledger.write([usageEvent({ seq: 1 }), usageEvent({ seq: 2, tenant: 'b' })], new AbortController().signal);
      db.exec("UPDATE tollkeeper_rollups SET low = low + 5 WHERE quantity = '1' AND tier = 900000 AND key_id = 1");
      db.exec("DELETE FROM tollkeeper_rollups WHERE quantity = '1' AND tier = 86400000 AND key_id = 2");
      const differences = await ledger.verify();
      expect(differences).toEqual([
        {
          bucket: new Date('2026-03-01T10:00:00Z'),
          key: { tenant: 't', issuer: 'iss', authId: 'k1', type: 'call', billable: 'true', tier: 'quarter' },
          quantity: 'events',
          rolledUp: 6n,
          recomputed: 1n,
        },
        expect.objectContaining({
          bucket: new Date('2026-03-01T00:00:00Z'),
          quantity: 'events',
          rolledUp: 0n,
          recomputed: 1n,
        }),
      ]);
      await end();
    });

    it('forgets old events, keeps their totals and their audit, and still knows a duplicate of them', async () => {
      const { ledger, end } = await open(make);
      const signal = new AbortController().signal;
      const old = usageEvent({ seq: 1, time: '2026-02-01T10:00:00.000Z' });
      await ledger.write([old, usageEvent({ seq: 2 })], signal);
      expect(await ledger.prune(new Date('2026-03-01T00:00:00Z'))).toBe(1);
      await ledger.write([old], signal);
      const query = { from: '2026-01-01T00:00:00Z', to: '2026-04-01T00:00:00Z' };
      expect((await ledger.usage({ ...query, groupBy: ['tenant'] })).rows[0]?.events).toBe(2);
      expect((await ledger.usage({ ...query, groupBy: ['subject'] })).rows[0]?.events).toBe(1);
      expect(await ledger.audit()).toEqual([{ source: 'test/1', state: 'open', last: 2, count: 2, missing: [] }]);
      expect(await ledger.verify()).toEqual([]);
      await expect(ledger.prune(new Date(Number.NaN))).rejects.toThrow(TypeError);
      await end();
    });

    it('verifies a correction whose original was forgotten', async () => {
      const { ledger, end } = await open(make);
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

    it('refuses an event whose time cannot be read, and takes the rest of the batch', async () => {
      const { ledger, end } = await open(make);
      const verdicts = await ledger.write(
        [usageEvent({ seq: 1 }), usageEvent({ seq: 2, time: 'soon' })],
        new AbortController().signal,
      );
      expect(verdicts).toEqual([{ outcome: 'delivered' }, { outcome: 'reject', reason: expect.any(String) }]);
      await end();
    });

    it('writes a batch whole or not at all', async () => {
      const { db, ledger, end } = await open(make);
      db.exec("CREATE TRIGGER stop BEFORE INSERT ON tollkeeper_sources BEGIN SELECT RAISE(ABORT, 'disk full'); END");
      const signal = new AbortController().signal;
      await expect(ledger.write([usageEvent({ seq: 1 })], signal)).rejects.toThrow('disk full');
      db.exec('DROP TRIGGER stop');
      await ledger.write([usageEvent({ seq: 1 })], signal);
      const { rows } = await ledger.usage({
        from: '2026-03-01T00:00:00Z',
        to: '2026-03-02T00:00:00Z',
        groupBy: ['tenant'],
      });
      expect(rows).toMatchObject([{ key: { tenant: 't' }, events: 1 }]);
      expect(await ledger.verify()).toEqual([]);
      await end();
    });
  });
}

describe('sqliteLedger', () => {
  it('needs a database', () => {
    expect(() => sqliteLedger({} as never)).toThrow(TypeError);
    expect(() => sqliteLedger(undefined as never)).toThrow(TypeError);
  });
});

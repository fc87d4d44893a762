import { readdir } from 'node:fs/promises';
import { Agent, get } from 'node:http';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { postgresLedger } from 'tollkeeper/postgres';
import { usageEvent } from 'tollkeeper/testing';
import { expect, it } from 'vitest';
import {
  describeWith,
  type RunningProcess,
  sized,
  startPostgres,
  startProcess,
  startStandby,
  tempFolder,
} from '../support/index.js';

/** How often the server is killed and restarted before the fail-over. */
const CRASHES = sized(2, 10);
const CONNECTIONS = 8;
const SERVICE = new URL('./ledger-service.ts', import.meta.url);

type Service = RunningProcess<{ port: number }>;

/** The address of the database, as a proxy or a virtual IP gives it: which server is behind it can change. */
class DatabaseAddress {
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;
  #target: number;

  constructor(target: number) {
    this.#target = target;
    this.#server = createServer((client) => {
      const upstream = connect(this.#target, '127.0.0.1');
      for (const [socket, other] of [
        [client, upstream],
        [upstream, client],
      ] as const) {
        this.#sockets.add(socket);
        socket.on('error', () => {});
        socket.once('close', () => {
          this.#sockets.delete(socket);
          other.destroy();
        });
        socket.pipe(other);
      }
    });
  }

  async open(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    return `postgres://postgres@127.0.0.1:${(this.#server.address() as AddressInfo).port}/postgres`;
  }

  moveTo(target: number): void {
    this.#target = target;
    for (const socket of this.#sockets) socket.destroy();
  }

  async close(): Promise<void> {
    this.moveTo(0);
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** Clients that use the service wherever it is, and write down the answers that they saw. */
class Clients {
  /** Event ids of whole answers with status 200. */
  readonly seen = new Set<string>();
  /** Requests that broke off: nobody knows what became of them. */
  brokenOff = 0;
  port: number | undefined;
  readonly #agent = new Agent({ keepAlive: true });
  readonly #workers: Promise<void>[];
  #stopped = false;

  constructor() {
    this.#workers = Array.from({ length: CONNECTIONS }, async () => {
      while (!this.#stopped) {
        if (this.port !== undefined) await this.#ask(this.port);
        // They do not have to be many: what counts is that there are always some.
        await sleep(3);
      }
    });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#workers);
    this.#agent.destroy();
  }

  /** Resolves when so many more answers were seen. */
  async more(count: number): Promise<void> {
    const enough = this.seen.size + count;
    await until(() => this.seen.size >= enough);
  }

  #ask(port: number): Promise<void> {
    return new Promise((resolve) => {
      const broken = (): void => {
        this.brokenOff += 1;
        resolve();
      };
      const request = get({ host: '127.0.0.1', port, agent: this.#agent }, (res) => {
        let body = '';
        res.setEncoding('utf8');
        res.on('data', (chunk) => {
          body += chunk;
        });
        res.on('end', () => {
          if (!res.complete) return broken();
          if (res.statusCode === 200) this.seen.add(body);
          resolve();
        });
        res.on('error', broken);
      });
      request.on('error', broken);
    });
  }
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 120_000; !(await condition()); ) {
    if (Date.now() > end) throw new Error(`it did not happen within two minutes: ${condition}`);
    await sleep(20);
  }
}

describeWith('postgres', 'a ledger whose server and whose application die under load', () => {
  it('has exactly the rows of what clients saw, none twice, after restarts and a fail-over to the replica', async () => {
    const folder = tempFolder('ledger-failover');
    const spool = join(folder.path, 'spool');
    const primary = await startPostgres({ durable: true });
    const address = new DatabaseAddress(primary.port);
    const url = await address.open();
    const pool = new pg.Pool({ connectionString: url, max: 2, connectionTimeoutMillis: 5_000 });
    pool.on('error', () => {});
    const ledger = postgresLedger(pool);
    await ledger.migrate();
    const replica = await startStandby(primary);
    await until(async () => {
      const { rows } = await pool.query("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'");
      return rows.length === 1;
    });

    const services: Service[] = [];
    const clients = new Clients();
    const start = async (): Promise<void> => {
      const service = await startProcess<{ port: number }>(SERVICE, { env: { DATABASE_URL: url, SPOOL: spool } });
      services.push(service);
      clients.port = service.ready.port;
    };
    const killService = async (): Promise<void> => {
      clients.port = undefined;
      await services.at(-1)?.kill();
    };
    const booked = async (): Promise<number> =>
      Number((await pool.query('SELECT count(*) AS count FROM tollkeeper_events')).rows[0].count);

    await start();
    await until(async () => (await booked()) > 0);
    for (let crash = 0; crash < CRASHES; crash++) {
      await clients.more(100);
      await primary.kill();
      // The service goes on without its ledger; it dies too, and starts again before the ledger is back.
      await clients.more(100);
      await killService();
      await start();
      await clients.more(100);
      await primary.restart();
      const before = await booked();
      await until(async () => (await booked()) > before);
    }

    await clients.more(100);
    // A host that stands still: connections stay open, and what they were asked is never answered.
    primary.pause();
    await clients.more(100);
    await killService();
    await start();
    await primary.kill();
    const promoted = new pg.Client({ connectionString: replica.url });
    await promoted.connect();
    expect((await promoted.query('SELECT pg_promote(true, 120) AS done')).rows).toEqual([{ done: true }]);
    await promoted.end();
    address.moveTo(replica.port);
    const moved = await booked();
    await clients.more(100);
    await until(async () => (await booked()) > moved);

    await clients.stop();
    // The last service adopts and delivers what the dead ones left, and then its own.
    await until(async () => {
      const [own, ...others] = (await readdir(spool)).filter((entry) => entry !== 'quarantine');
      return others.length === 0 && own !== undefined && (await readdir(join(spool, own, 'adopted'))).length === 0;
    });
    const last = services.at(-1) as Service;
    const closed = new Promise((resolve) => last.onMessage(resolve));
    last.send('close');
    expect(await closed).toEqual({ undelivered: 0 });
    expect(await readdir(spool)).toEqual([]);

    const { rows } = await pool.query(
      `SELECT id, json::jsonb ->> 'outcome' AS outcome, (json::jsonb ->> 'billable')::boolean AS billable,
         (json::jsonb #>> '{quantities,units,value}')::int AS units FROM tollkeeper_events`,
    );
    const ids = new Set(rows.map(({ id }) => id));
    const complete = rows.filter(({ outcome }) => outcome === 'complete');
    console.log(
      `${CRASHES} crashes and a fail-over, ${services.length} services: ${clients.seen.size} answers seen, ` +
        `${rows.length} events, ${rows.length - complete.length} of them not complete, ${clients.brokenOff} requests broken off`,
    );
    expect([...clients.seen].filter((id) => !ids.has(id))).toEqual([]);
    expect(ids.size).toBe(rows.length);
    // Whatever else is there is a request that broke off with its service.
    expect(rows.length - clients.seen.size).toBeLessThanOrEqual(clients.brokenOff);
    expect(complete.filter(({ units }) => units !== 3)).toEqual([]);
    const audit = await ledger.audit();
    expect(audit.length).toBe(services.length);
    for (const { state, missing } of audit) expect([state, missing]).toEqual(['closed', []]);
    expect(audit.reduce((sum, { count }) => sum + count, 0)).toBe(rows.length);
    const report = await ledger.usage({ from: '2020-01-01', to: '2100-01-01', groupBy: ['tenant'] });
    expect(report.openSources).toEqual([]);
    const [total] = report.rows;
    expect((total?.events ?? 0) + (total?.notBillable.events ?? 0)).toBe(rows.length);
    expect(total?.quantities.units).toBe(
      BigInt(rows.reduce((sum, { billable, units }) => sum + (billable ? units : 0), 0)),
    );
    expect(await ledger.verify()).toEqual([]);

    await pool.end();
    await address.close();
    await replica.stop();
    await primary.stop();
    folder.remove();
  }, 600_000);

  it('shows in the audit what an asynchronous replica had not received, and books what comes after it', async () => {
    const primary = await startPostgres();
    const address = new DatabaseAddress(primary.port);
    const pool = new pg.Pool({ connectionString: await address.open(), max: 2, connectionTimeoutMillis: 5_000 });
    pool.on('error', () => {});
    const ledger = postgresLedger(pool);
    await ledger.migrate();
    const write = (tenant: string, ...seqs: number[]) =>
      ledger.write(
        seqs.map((seq) => usageEvent({ seq, tenant })),
        new AbortController().signal,
      );
    await write('old', 1, 2, 3);
    const replica = await startStandby(primary, { synchronous: false });
    await replica.kill();
    // With these events, what their roll-ups are keyed by is lost as well.
    await write('new', 4, 5);
    await primary.kill();
    await replica.restart();
    const promoted = new pg.Client({ connectionString: replica.url });
    await promoted.connect();
    await promoted.query('SELECT pg_promote(true, 120)');
    await promoted.end();
    address.moveTo(replica.port);
    // The pool may still hold a connection that broke.
    const written = () =>
      write('new', 6, 7).then(
        () => true,
        () => false,
      );
    await until(written);
    expect(await ledger.audit()).toEqual([{ source: 'test/1', state: 'open', last: 7, count: 5, missing: [[4, 5]] }]);
    const report = await ledger.usage({ from: '2026-03-01', to: '2026-03-02', groupBy: ['tenant'] });
    expect(report.rows.map(({ key, events }) => [key.tenant, events])).toEqual([
      ['new', 2],
      ['old', 3],
    ]);
    expect(report.completeThrough).toBe(undefined);
    expect(report.openSources).toEqual(['test/1']);
    expect(await ledger.verify()).toEqual([]);
    await pool.end();
    await address.close();
    await replica.stop();
    await primary.stop();
  }, 300_000);
});

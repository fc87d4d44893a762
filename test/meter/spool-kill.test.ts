import { mkdir, readdir } from 'node:fs/promises';
import { Agent, get } from 'node:http';
import { join } from 'node:path';
import Database from 'libsql';
import type { PipelineStats } from 'tollkeeper';
import { sqliteLedger } from 'tollkeeper/sqlite';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type RunningProcess, sized, startProcess, tempFolder } from '../support/index.js';
import type { ServerReady, ServerSettings } from './metered-server.js';
import { until } from './spool-fixture.js';

/** How often a process is killed. */
const KILLS = sized(20, 200);
const CONNECTIONS = 16;
/**
 * What a process may lose of what it had finished, with `completion`: 5 ms, and what two event loops and the scheduler add
 * when tests share the processors. Asked of the median run: one process may wait long for a processor.
 */
const USUAL_LOSS_MS = 5 + 45;

type Server = RunningProcess<ServerReady>;

const SERVER = new URL('./metered-server.ts', import.meta.url);

let folder: ReturnType<typeof tempFolder>;
beforeAll(() => {
  folder = tempFolder('spool-kill');
});
afterAll(() => folder.remove());

const running = new Set<Server>();
afterAll(() => Promise.all([...running].map((server) => server.kill())));

type Question = 'stats' | 'close' | 'flush';
const waiting = new Map<Server, Map<Question, (answer: unknown) => void>>();

async function start(settings: ServerSettings): Promise<Server> {
  const server = await startProcess<ServerReady>(SERVER, { args: [JSON.stringify(settings)] });
  running.add(server);
  const questions = new Map<Question, (answer: unknown) => void>();
  waiting.set(server, questions);
  server.onMessage((message) => questions.get((message as { answer: Question }).answer)?.(message));
  return server;
}

function ask<T>(server: Server, question: Question): Promise<T> {
  return new Promise((resolve) => {
    waiting.get(server)?.set(question, resolve as (answer: unknown) => void);
    server.send({ ask: question });
  });
}

/** The client's own record: which answers it saw, and when. */
class Client {
  /** Event ids of the whole answers with status 200. */
  readonly seen = new Map<string, number>();
  refused = 0;
  #stopped = false;
  #workers: Promise<void>[] = [];
  readonly #agent = new Agent({ keepAlive: true });

  load(port: number): void {
    this.#stopped = false;
    this.#workers = Array.from({ length: CONNECTIONS }, async () => {
      while (!this.#stopped) {
        const path = Math.random() < 0.2 ? '/slow' : '/';
        const answer = await this.#get(port, path).catch(() => undefined);
        if (answer === undefined) return;
        if (answer.status === 200) this.seen.set(answer.body, performance.now());
        else this.refused++;
      }
    });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#workers);
    this.#agent.destroy();
  }

  #get(port: number, path: string): Promise<{ status: number | undefined; body: string }> {
    return new Promise((resolve, reject) => {
      const request = get({ port, path, host: '127.0.0.1', agent: this.#agent }, (res) => {
        let body = '';
        res.setEncoding('utf8');
        res.on('data', (chunk) => {
          body += chunk;
        });
        res.on('end', () => (res.complete ? resolve({ status: res.statusCode, body }) : reject(new Error('cut off'))));
        res.on('error', reject);
      });
      request.on('error', reject);
    });
  }
}

interface Row {
  readonly id: string;
  readonly source: string;
  readonly seq: number;
  readonly outcome: string;
  readonly units: number | null;
}

/** The ledger's rows, read with SQL of the test's own. */
function rowsOf(path: string): Row[] {
  const db = new Database(path, { readonly: true });
  const rows = db
    .prepare(
      `SELECT id, source, seq, json_extract(json, '$.outcome') AS outcome,
        json_extract(json, '$.quantities.units.value') AS units FROM tollkeeper_events`,
    )
    .all() as Row[];
  db.close();
  return rows;
}

/** Kills a server under load at a random moment, again and again, and then lets the last one deliver what is left. */
async function killAgainAndAgain(name: string, kills: number, durability: ServerSettings['durability']) {
  const directory = join(folder.path, name);
  await mkdir(directory);
  const settings: ServerSettings = {
    directory: join(directory, 'spool'),
    ledger: join(directory, 'ledger.db'),
    durability,
  };
  const client = new Client();
  const killedAt: { upTo: number; at: number }[] = [];
  for (let kill = 0; kill < kills; kill++) {
    const server = await start(settings);
    client.load(server.ready.port);
    await new Promise((resolve) => setTimeout(resolve, 5 + Math.random() * 250));
    const at = performance.now();
    await server.kill();
    running.delete(server);
    await client.stop();
    killedAt.push({ upTo: client.seen.size, at });
  }
  const last = await start(settings);
  await until(async () => (await ask<PipelineStats>(last, 'stats')).adopted > 0, 20_000);
  // Everything of the dead is adopted, delivered and removed.
  await until(async () => {
    await ask(last, 'flush');
    const left = (await readdir(settings.directory)).filter((entry) => entry !== 'quarantine');
    const [own] = left;
    if (left.length !== 1 || own === undefined) return false;
    return (await readdir(join(settings.directory, own, 'adopted'))).length === 0;
  }, 30_000);
  const stats = await ask<PipelineStats>(last, 'stats');
  const { undelivered } = await ask<{ undelivered: number }>(last, 'close');
  await last.exited;
  running.delete(last);
  const db = new Database(settings.ledger);
  const audit = await sqliteLedger(db).audit();
  db.close();
  return {
    client,
    killedAt,
    rows: rowsOf(settings.ledger),
    audit,
    stats,
    undelivered,
    left: await readdir(settings.directory),
  };
}

function twice(rows: readonly Row[]): string[] {
  const ids = new Set<string>();
  return rows.filter(({ id }) => ids.size === ids.add(id).size).map(({ id }) => id);
}

describe(`kill -9 under load at ${KILLS} random points`, () => {
  test('with intent: exactly one event for every answer that a client saw, none twice, and no gap', async () => {
    const { client, rows, audit, stats, undelivered, left } = await killAgainAndAgain('intent', KILLS, 'intent');
    const unknown = rows.filter(({ outcome }) => outcome === 'unknown').length;
    const known = new Map(rows.map((row) => [row.id, row]));
    const missing = [...client.seen.keys()].filter((id) => !known.has(id));
    console.log(
      `intent: ${KILLS} kills, ${client.seen.size} answers seen, ${rows.length} events (${unknown} unknown), ` +
        `${missing.length} missing, ${twice(rows).length} twice, ${client.refused} refused, ${stats.corrupt} corrupt`,
    );
    expect(client.seen.size).toBeGreaterThan(KILLS);
    expect(missing).toEqual([]);
    expect(twice(rows)).toEqual([]);
    // A request whose answer nobody saw: in flight when the process died, at most one for each connection.
    expect(rows.length - client.seen.size).toBeLessThanOrEqual(KILLS * CONNECTIONS);
    for (const row of rows) if (row.outcome === 'complete') expect(row.units).toBe(3);
    expect(audit.filter(({ missing }) => missing.length > 0)).toEqual([]);
    expect(audit.filter(({ state }) => state !== 'closed')).toEqual([]);
    expect(audit.reduce((sum, { count }) => sum + count, 0)).toBe(rows.length);
    expect(stats.corrupt).toBe(0);
    expect(undelivered).toBe(0);
    expect(left).toEqual([]);
  }, 900_000);

  const fewer = Math.max(5, Math.floor(KILLS / 4));
  test(`with completion (${fewer} times): none twice, no gap, and only what finished in the last moment is lost`, async () => {
    const { client, killedAt, rows, audit } = await killAgainAndAgain('completion', fewer, 'completion');
    const known = new Set(rows.map(({ id }) => id));
    const answers = [...client.seen];
    let lost = 0;
    const lostMs = killedAt.map(() => 0);
    for (const [index, [id, seenAt]] of answers.entries()) {
      if (known.has(id)) continue;
      lost++;
      const kill = killedAt.findIndex(({ upTo }) => index < upTo);
      lostMs[kill] = Math.max(lostMs[kill] ?? 0, (killedAt[kill]?.at ?? 0) - seenAt);
    }
    lostMs.sort((a, b) => a - b);
    const usual = lostMs[lostMs.length >> 1] ?? 0;
    const oldest = lostMs.at(-1) ?? 0;
    console.log(
      `completion: ${fewer} kills, ${client.seen.size} answers seen, ${rows.length} events, ${lost} lost, ` +
        `the oldest ${oldest.toFixed(1)} ms before the kill (${usual.toFixed(1)} ms in the median run), ${twice(rows).length} twice`,
    );
    expect(client.seen.size).toBeGreaterThan(fewer);
    expect(twice(rows)).toEqual([]);
    expect(usual).toBeLessThan(USUAL_LOSS_MS);
    expect(audit.filter(({ missing }) => missing.length > 0)).toEqual([]);
  }, 900_000);
});

describe('processes that share a directory', () => {
  test('write without interleaving; when one dies, exactly one of its peers adopts it within 5 seconds', async () => {
    const directory = join(folder.path, 'peers');
    await mkdir(directory);
    const settings = (name: string): ServerSettings => ({
      directory: join(directory, 'spool'),
      // Each has its own ledger, so that whoever delivered an event is known.
      ledger: join(directory, `${name}.db`),
      durability: 'intent',
      ...(name === 'dying' ? { ledgerDown: true } : {}),
    });
    const [dying, ...peers] = await Promise.all(['dying', 'a', 'b', 'c'].map((name) => start(settings(name))));
    const clients = [dying, ...peers].map((server) => {
      const client = new Client();
      client.load(server?.ready.port ?? 0);
      return client;
    });
    await new Promise((resolve) => setTimeout(resolve, 500));
    await dying?.kill();
    const died = performance.now();
    running.delete(dying as Server);
    const adoptions = async () =>
      (await Promise.all(peers.map((peer) => ask<PipelineStats>(peer, 'stats')))).map(({ adopted }) => adopted);
    await until(async () => (await adoptions()).some((count) => count > 0));
    expect(performance.now() - died).toBeLessThan(5_000);
    await Promise.all(clients.map((client) => client.stop()));
    // Nobody comes second.
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    expect((await adoptions()).sort()).toEqual([0, 0, 1]);
    for (const peer of peers) {
      expect((await ask<PipelineStats>(peer, 'flush')).corrupt).toBe(0);
      expect(await ask(peer, 'close')).toMatchObject({ undelivered: 0 });
      await peer.exited;
      running.delete(peer);
    }
    const ledgers = ['a', 'b', 'c'].map((name) => rowsOf(settings(name).ledger));
    const all = ledgers.flat();
    expect(twice(all)).toEqual([]);
    const known = new Set(all.map(({ id }) => id));
    for (const client of clients) {
      expect(client.seen.size).toBeGreaterThan(0);
      expect([...client.seen.keys()].filter((id) => !known.has(id))).toEqual([]);
    }
    // One source belongs to one ledger, and is gapless there.
    const owners = new Map<string, number>();
    for (const [index, rows] of ledgers.entries()) {
      for (const source of new Set(rows.map((row) => row.source))) {
        expect(owners.has(source)).toBe(false);
        owners.set(source, index);
        const seqs = rows.filter((row) => row.source === source).map(({ seq }) => seq);
        expect(seqs.sort((a, b) => a - b)).toEqual(seqs.map((_, seq) => seq + 1));
      }
    }
    expect(owners.size).toBe(4);
    expect(await readdir(settings('a').directory)).toEqual([]);
  }, 120_000);

  test('leave one alone that only stands still', async () => {
    const directory = join(folder.path, 'paused');
    await mkdir(directory);
    const settings = (name: string): ServerSettings => ({
      directory: join(directory, 'spool'),
      ledger: join(directory, `${name}.db`),
      durability: 'intent',
    });
    const [paused, peer] = (await Promise.all(['paused', 'peer'].map((name) => start(settings(name))))) as [
      Server,
      Server,
    ];
    paused.pause();
    // Two rounds of looking for dead ones.
    await new Promise((resolve) => setTimeout(resolve, 4_500));
    expect((await ask<PipelineStats>(peer, 'stats')).adopted).toBe(0);
    paused.resume();
    const client = new Client();
    client.load(paused.ready.port);
    await until(() => client.seen.size > 10);
    await client.stop();
    await ask(paused, 'close');
    await ask(peer, 'close');
    const ids = new Set(rowsOf(settings('paused').ledger).map(({ id }) => id));
    expect([...client.seen.keys()].filter((id) => !ids.has(id))).toEqual([]);
    for (const server of [paused, peer]) {
      await server.exited;
      running.delete(server);
    }
  }, 60_000);
});

import { setTimeout as sleep } from 'node:timers/promises';
import { SignJWT } from 'jose';
import pg from 'pg';
import { postgresRevocationStore } from 'tollkeeper/postgres';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import {
  describeWith,
  type RunningProcess,
  type RunningServer,
  sized,
  startPostgres,
  startProcess,
  startRedis,
} from '../support/index.js';
import type { ReplicaSettings } from './replica.js';

const SECRET = 'a secret of this test that has 32 bytes and some more';
const ROUNDS = sized(40, 400);
const POLL_SECONDS = 0.5;
const STALE_SECONDS = 2;
/** The time that a read may take at most, and what a client takes to connect again. */
const SLACK_MS = 5_000;

type Replica = RunningProcess<{ url: string }>;

interface Answer {
  readonly replica: number;
  readonly token: string;
  /** When the request was sent and when it was answered. */
  readonly sent: number;
  readonly at: number;
  readonly status: number;
  readonly code: string | undefined;
  readonly retryAfter: string | null;
}

function token(tokenId: string): Promise<string> {
  return new SignJWT({ sub: 'u1', jti: tokenId })
    .setProtectedHeader({ alg: 'HS256' })
    .setIssuer('https://idp.example')
    .setAudience('https://api.example')
    .setIssuedAt()
    .setExpirationTime('1h')
    .sign(new TextEncoder().encode(SECRET));
}

async function ask({ ready }: Replica, credential: string): Promise<Omit<Answer, 'replica' | 'token'>> {
  const sent = performance.now();
  const res = await fetch(ready.url, { headers: { authorization: `Bearer ${credential}` } });
  const body = (await res.json()) as { code?: string };
  const { status } = res;
  return { sent, at: performance.now(), status, code: body.code, retryAfter: res.headers.get('retry-after') };
}

async function revoke({ ready }: Replica, tokenId: string): Promise<number> {
  const headers = { 'content-type': 'application/json' };
  return (await fetch(`${ready.url}/revoke`, { method: 'POST', headers, body: JSON.stringify({ tokenId }) })).status;
}

/** Asks both replicas with every token, over and over, and keeps every answer. */
function load(replicas: readonly Replica[], tokens: Readonly<Record<string, string>>) {
  const answers: Answer[] = [];
  let over = false;
  const clients = replicas.flatMap((replica, index) =>
    Object.entries(tokens).map(async ([name, credential]) => {
      while (!over) {
        answers.push({ replica: index, token: name, ...(await ask(replica, credential)) });
        await sleep(2);
      }
    }),
  );
  return {
    answers,
    async stop(): Promise<Answer[]> {
      over = true;
      await Promise.all(clients);
      return answers;
    },
  };
}

function figures(name: string, milliseconds: number[]): void {
  const sorted = [...milliseconds].sort((a, b) => a - b);
  const [median, worst] = [sorted[sorted.length >> 1], sorted.at(-1)] as [number, number];
  console.log(`${name}: ${sorted.length} times, median ${median.toFixed(1)} ms, worst ${worst.toFixed(1)} ms`);
}

function replicas(kind: string, server: () => RunningServer): void {
  const running: Replica[] = [];
  afterEach(async () => {
    await Promise.all(running.splice(0).map((replica) => replica.kill()));
  });

  async function start(settings: Partial<ReplicaSettings> = {}): Promise<Replica> {
    const all: ReplicaSettings = {
      url: server().url,
      secret: SECRET,
      hints: true,
      pollSeconds: POLL_SECONDS,
      maxStalenessSeconds: STALE_SECONDS,
      ...settings,
    };
    const replica = await startProcess<{ url: string }>(new URL('./replica.ts', import.meta.url), {
      args: [JSON.stringify(all)],
    });
    running.push(replica);
    return replica;
  }

  /** Revokes in one process, and measures until the other refuses. */
  async function lags(label: string, one: Replica, other: Replica, rounds: number): Promise<number[]> {
    const innocent = await token(`${label}-innocent`);
    const measured: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const tokenId = `${label}-${round}`;
      const credential = await token(tokenId);
      const [here, there] = round % 2 === 0 ? [one, other] : [other, one];
      expect((await ask(here, credential)).status).toBe(200);
      expect((await ask(there, credential)).status).toBe(200);
      expect(await revoke(here, tokenId)).toBe(204);
      const written = performance.now();
      expect((await ask(here, credential)).status).toBe(401);
      let lag = 0;
      for (let answer = await ask(there, credential); answer.status !== 401; answer = await ask(there, credential)) {
        expect(answer.status).toBe(200);
        lag = Math.max(0, answer.at - written);
        expect(lag).toBeLessThan(POLL_SECONDS * 1_000 + SLACK_MS);
      }
      measured.push(lag);
      expect((await ask(there, innocent)).status).toBe(200);
    }
    return measured;
  }

  it('a revocation in one process holds there on the next request, and in the other by the hint', async () => {
    const [one, other] = await Promise.all([start({ pollSeconds: 2 }), start({ pollSeconds: 2 })]);
    figures(
      `${kind}: the last request that got through elsewhere, with hints`,
      await lags('hinted', one, other, ROUNDS),
    );
  });

  it('without any hint it holds in the other process within one poll', async () => {
    const [one, other] = await Promise.all([start({ hints: false }), start({ hints: false })]);
    const measured = await lags('polled', one, other, Math.ceil(ROUNDS / 5));
    figures(`${kind}: the same by polling every ${POLL_SECONDS * 1_000} ms alone`, measured);
  });

  it.each<['hangs' | 'is killed']>([['hangs'], ['is killed']])(
    'when the server %s under load, known callers go on until the view is stale, then get 503, and it recovers',
    async (how) => {
      const both = await Promise.all([start(), start()]);
      const [one, other] = both as [Replica, Replica];
      const tokens = {
        good: await token(`${how}-good`),
        bad: await token(`${how}-bad`),
        late: await token(`${how}-late`),
      };
      expect(await revoke(one, `${how}-bad`)).toBe(204);
      for (const replica of both) {
        expect((await ask(replica, tokens.good)).status).toBe(200);
        while ((await ask(replica, tokens.bad)).status !== 401) await sleep(5);
      }
      const { answers, stop } = load(both, tokens);
      await sleep(500);
      const stopped = performance.now();
      if (how === 'hangs') server().pause();
      else await server().kill();
      await sleep(300);
      // It cannot be written, so whoever asked is told; where it was asked it holds all the same.
      const refused = revoke(one, `${how}-late`).then((status) => ({ status, at: performance.now() }));
      await sleep(100);
      const asked = performance.now();
      await sleep(STALE_SECONDS * 1_000 + 1_000);
      const restarted = performance.now();
      if (how === 'hangs') server().resume();
      else await server().restart();
      const returned = performance.now();
      const back = async (replica: Replica): Promise<void> => {
        while ((await ask(replica, tokens.good)).status !== 200) {
          expect(performance.now() - returned).toBeLessThan(POLL_SECONDS * 1_000 + SLACK_MS);
          await sleep(5);
        }
      };
      await Promise.all(both.map(back));
      const recovered = performance.now();
      // Whoever was told of a failure asks again.
      if ((await refused).status !== 204) {
        while ((await revoke(one, `${how}-late`)) !== 204) await sleep(50);
      }
      while ((await ask(other, tokens.late)).status !== 401) {
        expect(performance.now() - recovered).toBeLessThan(POLL_SECONDS * 1_000 + 2 * SLACK_MS);
        await sleep(5);
      }
      const settled = performance.now();
      // A loaded machine asks less often: it takes longer.
      while (answers.filter((answer) => answer.token === 'bad').length <= 100) await sleep(20);
      await stop();

      const of = (name: string, from = 0, to = Number.POSITIVE_INFINITY): Answer[] =>
        answers.filter((answer) => answer.token === name && answer.sent >= from && answer.at <= to);
      expect(of('bad').length).toBeGreaterThan(100);
      expect(of('bad').filter(({ status }) => status !== 401)).toEqual([]);
      expect(of('good').filter(({ status, code }) => status !== 200 && code !== 'revocation_stale')).toEqual([]);
      const stale = of('good').filter(({ status }) => status === 503);
      for (const replica of [0, 1]) {
        const mine = stale.filter((answer) => answer.replica === replica);
        const [first] = mine as [Answer];
        // The last view is as old as one poll when the server goes.
        expect(first.at - stopped).toBeGreaterThan((STALE_SECONDS - POLL_SECONDS) * 1_000 - 1_000);
        const fresh = of('good', stopped, restarted).filter((each) => each.replica === replica && each.status === 200);
        const last = fresh.at(-1) as Answer;
        expect(last.sent - stopped).toBeLessThan(STALE_SECONDS * 1_000 + 1_500);
        console.log(
          `${kind} ${how}, process ${replica + 1}: known callers for ${(last.at - stopped).toFixed(0)} ms ` +
            `(maxStalenessSeconds ${STALE_SECONDS}), ${mine.length} × 503, ` +
            `back ${(recovered - returned).toFixed(0)} ms after the server`,
        );
      }
      expect(stale.filter(({ status, retryAfter }) => status !== 503 || !(Number(retryAfter) >= 1))).toEqual([]);
      expect(of('good', recovered).filter(({ status }) => status !== 200)).toEqual([]);
      // In the process where it was asked for: from then on, although it could not be written.
      const late = of('late', asked).filter(({ replica }) => replica === 0);
      expect(late.filter(({ status }) => status === 200)).toEqual([]);
      expect(of('late', settled).filter(({ status }) => status !== 401)).toEqual([]);
    },
  );

  it('a process that starts again refuses who was revoked before, and nobody gets in while it knows nothing', async () => {
    const one = await start();
    const [good, bad] = [await token('good2'), await token('bad2')];
    expect(await revoke(one, 'bad2')).toBe(204);
    await one.kill();
    const again = await start();
    expect((await ask(again, bad)).status).toBe(401);
    expect((await ask(again, good)).status).toBe(200);
    await again.kill();
    await server().kill();
    const blind = await start();
    const answers = await Promise.all([ask(blind, good), ask(blind, bad)]);
    expect(answers.map(({ status, code }) => [status, code])).toEqual([
      [503, 'revocation_stale'],
      [503, 'revocation_stale'],
    ]);
    await server().restart();
    while ((await ask(blind, good)).status !== 200) await sleep(20);
    expect((await ask(blind, bad)).status).toBe(401);
  });
}

describeWith('redis', 'revocations of two processes on Redis', () => {
  let server: RunningServer;
  beforeAll(async () => {
    server = await startRedis({ persist: true });
  });
  afterAll(() => server?.stop());
  replicas('Redis', () => server);
});

describeWith('postgres', 'revocations of two processes on PostgreSQL', () => {
  let server: RunningServer;
  beforeAll(async () => {
    server = await startPostgres({ durable: true });
    const pool = new pg.Pool({ connectionString: server.url });
    await postgresRevocationStore(pool).migrate();
    await pool.end();
  });
  afterAll(() => server?.stop());
  replicas('PostgreSQL', () => server);
});

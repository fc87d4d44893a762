import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import {
  createQuota,
  enforceQuota,
  type IdentityInput,
  memoryQuotaStore,
  type QuotaOp,
  type QuotaStore,
  type StoreWindow,
} from 'tollkeeper';
import { redisQuotaStore } from 'tollkeeper/redis';
import { asIdentity } from 'tollkeeper/testing';
import { startRedis } from '../test/support/index.js';
import { argument, environment, median, printTable, writeResults } from './report.js';

/**
 * Decisions per second, in memory and on a Redis of its own, beside what people use today. On Redis each request is about
 * three limits at once: ours decides about them in one step, the peers count three times.
 */
const rounds = argument('rounds', 5);
const calls = argument('calls', 60_000);
const inFlight = argument('in-flight', 128);
const callers = argument('callers', 500);

interface Case {
  readonly name: string;
  /** One decision about one request of caller `index`. */
  run(index: number): unknown;
  close?(): Promise<void>;
}

const DAY_MS = 86_400_000;
const month: StoreWindow = { kind: 'calendar', at: (ms) => windowOf(ms, 30 * DAY_MS) };
const day: StoreWindow = { kind: 'calendar', at: (ms) => windowOf(ms, DAY_MS) };
const minute: StoreWindow = { kind: 'gcra', periodMs: 60_000, burst: 1_000_000 };

function windowOf(ms: number, lengthMs: number): { startMs: number; endMs: number } {
  const startMs = Math.floor(ms / lengthMs) * lengthMs;
  return { startMs, endMs: startMs + lengthMs };
}

function opsOf(name: string, windows: readonly StoreWindow[]): readonly QuotaOp[][] {
  return Array.from({ length: callers }, (_, caller) =>
    windows.map((window, index) => ({ key: `${name}:${caller}:${index}`, window, limit: 1_000_000, cost: 1 })),
  );
}

function stored(name: string, store: QuotaStore, windows: readonly StoreWindow[]): Case {
  const ops = opsOf(name.replace(/\W/g, ''), windows);
  const slots = ops.map((_, caller) => `slot${caller}`);
  return {
    name,
    run: (index) => store.take(slots[index % callers] as string, ops[index % callers] as QuotaOp[], { mode: 'all' }),
    close: async () => store.close?.(),
  };
}

/** A peer that is installed beside the benchmarks, or undefined. */
async function peer<T>(name: string): Promise<T | undefined> {
  try {
    return (await import(name)) as T;
  } catch {
    console.log(`${name}: not installed (npm ci in bench/)`);
    return undefined;
  }
}

interface Flexible {
  RateLimiterRedis: new (options: object) => { consume(key: string, points?: number): Promise<unknown> };
  RateLimiterMemory: new (options: object) => { consume(key: string, points?: number): Promise<unknown> };
  RateLimiterUnion: new (...limiters: unknown[]) => { consume(key: string, points?: number): Promise<unknown> };
}
interface ExpressRateLimit {
  MemoryStore: new () => { init(options: object): void; increment(key: string): Promise<unknown>; shutdown?(): void };
}
interface RateLimitRedis {
  RedisStore: new (options: object) => { init(options: object): unknown; increment(key: string): Promise<unknown> };
}
const flexible = await peer<Flexible>('rate-limiter-flexible');
const expressRateLimit = await peer<ExpressRateLimit>('express-rate-limit');
const rateLimitRedis = await peer<RateLimitRedis>('rate-limit-redis');

async function inProcess(): Promise<Record<string, unknown>[]> {
  const quota = createQuota({
    store: memoryQuotaStore(),
    plans: { free: [{ name: 'rate', per: 'subject', limit: 1_000_000, window: { periodSeconds: 60 } }] },
    defaultPlan: 'free',
  });
  const enforce = enforceQuota({ quota, headers: false });
  const enforceWithHeaders = enforceQuota({ quota });
  const next = (): void => {};
  const signIns = Array.from({ length: callers }, (_, caller) => {
    const identity: IdentityInput = { subject: { kind: 'user', id: `user-${caller}` }, authId: `key-${caller}` };
    return asIdentity(identity);
  });
  const res = { on() {}, writableEnded: false, destroyed: false, headersSent: false, writeHead() {} } as never;
  /** A request that has just been authenticated. */
  const request = (index: number): never => {
    const req = {} as never;
    signIns[index % callers]?.(req, res, next);
    return req;
  };
  const memory = flexible && new flexible.RateLimiterMemory({ points: 1_000_000, duration: 60 });
  const peerStore = expressRateLimit && new expressRateLimit.MemoryStore();
  peerStore?.init({ windowMs: 60_000 });
  const keys = Array.from({ length: callers }, (_, caller) => `user-${caller}`);
  const cases: Case[] = [
    stored('memoryQuotaStore, one policy', memoryQuotaStore(), [minute]),
    stored('memoryQuotaStore, three policies', memoryQuotaStore(), [minute, day, month]),
    { name: 'making the request alone', run: (index) => void request(index) },
    {
      name: 'enforceQuota, one policy, no headers',
      run: (index) => enforce(request(index), res, next),
    },
    {
      name: 'enforceQuota, one policy',
      run: (index) => enforceWithHeaders(request(index), res, next),
    },
  ];
  if (peerStore) {
    cases.push({
      name: 'express-rate-limit in memory',
      run: (index) => peerStore.increment(keys[index % callers] as string),
    });
  }
  if (memory) {
    cases.push({
      name: 'rate-limiter-flexible in memory',
      run: (index) => memory.consume(keys[index % callers] as string),
    });
  }
  const count = calls * 10;
  const rows = [];
  for (const { name, run } of cases) {
    const nanoseconds: number[] = [];
    for (let round = 0; round <= rounds; round++) {
      const started = process.hrtime.bigint();
      for (let index = 0; index < count; index++) {
        const answer = run(index);
        if (index % 1_000 === 0) await answer;
      }
      // The first round warms up.
      if (round > 0) nanoseconds.push(Number(process.hrtime.bigint() - started) / count);
    }
    const each = median(nanoseconds);
    rows.push({ name, 'decisions/s': Math.round(1e9 / each), 'ns each': Math.round(each) });
  }
  peerStore?.shutdown?.();
  return rows;
}

async function onRedis(): Promise<Record<string, unknown>[]> {
  const server = await startRedis();
  const client = new Redis(server.port, server.host, { enableAutoPipelining: true });
  const generous = { deadlineSeconds: 30 };
  const cases: Case[] = [
    stored('redisQuotaStore, one policy', redisQuotaStore(client, generous), [minute]),
    stored('redisQuotaStore, three policies', redisQuotaStore(client, generous), [minute, day, month]),
    stored(
      'redisQuotaStore, three policies, leased',
      redisQuotaStore(client, { ...generous, lease: { replicas: 1 } }),
      [day, day, month],
    ),
  ];
  if (flexible) {
    const limiter = (duration: number, keyPrefix: string) =>
      new flexible.RateLimiterRedis({ storeClient: client, points: 1_000_000, duration, keyPrefix });
    const one = limiter(60, 'one');
    const union = new flexible.RateLimiterUnion(limiter(60, 'a'), limiter(86_400, 'b'), limiter(2_592_000, 'c'));
    cases.push(
      { name: 'rate-limiter-flexible, one limit', run: (index) => one.consume(`user-${index % callers}`) },
      { name: 'rate-limiter-flexible, union of three', run: (index) => union.consume(`user-${index % callers}`) },
    );
  }
  if (rateLimitRedis) {
    const stores = [60_000, 86_400_000, 2_147_483_647].map((windowMs, index) => {
      const store = new rateLimitRedis.RedisStore({
        prefix: `rl${index}:`,
        sendCommand: (command: string, ...args: string[]) => client.call(command, ...args),
      });
      store.init({ windowMs });
      return store;
    });
    const [first] = stores;
    cases.push(
      { name: 'rate-limit-redis, one limit', run: (index) => first?.increment(`user-${index % callers}`) },
      {
        name: 'rate-limit-redis, three limits',
        run: (index) => Promise.all(stores.map((store) => store.increment(`user-${index % callers}`))),
      },
    );
  }
  // In turn, so that a neighbour on the machine slows all of them alike. The first round warms up.
  const measured = new Map(cases.map(({ name }) => [name, [] as Round[]]));
  for (let round = 0; round <= rounds; round++) {
    for (const { name, run } of cases) {
      const before = await redisUse(client);
      const cpu = process.cpuUsage();
      const started = performance.now();
      let index = 0;
      const lane = async (): Promise<void> => {
        while (index < calls) await run(index++);
      };
      await Promise.all(Array.from({ length: inFlight }, lane));
      const seconds = (performance.now() - started) / 1_000;
      const { user, system } = process.cpuUsage(cpu);
      const after = await redisUse(client);
      if (round === 0) continue;
      measured.get(name)?.push({
        rate: calls / seconds,
        clientMicroseconds: (user + system) / calls,
        redisMicroseconds: ((after.cpuSeconds - before.cpuSeconds) * 1e6) / calls,
        scriptMicroseconds: (after.scriptMicroseconds - before.scriptMicroseconds) / calls,
        trips: (after.scripts - before.scripts) / calls,
      });
    }
  }
  const of = (name: string, value: (round: Round) => number): number => median((measured.get(name) ?? []).map(value));
  const rows = cases.map(({ name }) => ({
    name,
    'requests/s': Math.round(of(name, ({ rate }) => rate)),
    'client CPU µs/request': of(name, (round) => round.clientMicroseconds).toFixed(2),
    'Redis CPU µs/request': of(name, (round) => round.redisMicroseconds).toFixed(2),
    'in scripts µs/request': of(name, (round) => round.scriptMicroseconds).toFixed(2),
    'scripts/request': of(name, ({ trips }) => trips).toFixed(3),
  }));
  const ours = measured.get('redisQuotaStore, three policies') ?? [];
  const theirs = measured.get('rate-limiter-flexible, union of three') ?? [];
  if (theirs.length > 0) {
    const ratios = ours.map(({ rate }, round) => rate / (theirs[round] as Round).rate);
    console.log(
      `three policies, times rate-limiter-flexible, round by round: ${ratios.map((ratio) => ratio.toFixed(2)).join(' ')}; median ${median(ratios).toFixed(2)}`,
    );
  }
  for (const { close } of cases) await close?.();
  client.disconnect();
  await server.stop();
  return rows;
}

interface Round {
  readonly rate: number;
  readonly clientMicroseconds: number;
  readonly redisMicroseconds: number;
  readonly scriptMicroseconds: number;
  readonly trips: number;
}

async function redisUse(client: Redis): Promise<{ cpuSeconds: number; scripts: number; scriptMicroseconds: number }> {
  await sleep(20);
  const cpu = await client.info('cpu');
  const stats = await client.info('commandstats');
  const number = (pattern: RegExp, text: string): number => Number(pattern.exec(text)?.[1] ?? 0);
  return {
    cpuSeconds: number(/used_cpu_sys:([\d.]+)/, cpu) + number(/used_cpu_user:([\d.]+)/, cpu),
    scripts: number(/cmdstat_evalsha:calls=(\d+)/, stats) + number(/cmdstat_eval:calls=(\d+)/, stats),
    scriptMicroseconds: number(/cmdstat_evalsha:calls=\d+,usec=(\d+)/, stats),
  };
}

console.log(environment());
const memoryRows = await inProcess();
printTable(memoryRows);
const redisRows = await onRedis();
printTable(redisRows);
writeResults('quota', { inMemory: memoryRows, onRedis: redisRows });

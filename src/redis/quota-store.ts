import { OptionsParser } from '../errors/options-parser.js';
import {
  type Charge,
  checkOps,
  HOLD_MS,
  type OpResult,
  type QuotaOp,
  type QuotaStore,
  type TakeOptions,
  type TakeResult,
} from '../quota/quota-store.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { LeasedQuotaStore } from './leased-quota-store.js';
import { QUOTA_SCRIPT } from './quota-script.js';
import { isRedisClient, type RedisClient, redisCommand, redisScript } from './redis-client.js';

export interface RedisQuotaStoreOptions {
  /** What every key begins with: letters, digits, `.`, `_`, `-` and `:`. Default `tollkeeper:quota`. */
  readonly prefix?: string;
  /**
   * Seconds after which an answer is given up, from 0.005 to 60. Default 0.25. What was sent may have been charged all the
   * same: it is never sent again.
   */
  readonly deadlineSeconds?: number;
  /**
   * Leases: each process takes units in parts and spends them by itself, which saves round trips and never admits more than
   * the limit. For calendar windows only. `replicas` is the number of processes that share the limits.
   */
  readonly lease?: { readonly replicas: number };
  readonly clock?: Clock;
}

/** Failures in a row after which Redis is left alone for a while. */
const BREAKER_FAILURES = 5;
/** Milliseconds for which it is. */
const BREAKER_MS = 1_000;
const PREFIX = /^[A-Za-z0-9._:-]{1,64}$/;

/**
 * Counters in Redis (6.2 or later) or Valkey, shared by many processes: takes the app's own ioredis or node-redis client, or a
 * cluster of either. One script decides about all policies of a request in one round trip, by Redis's own clock.
 *
 * With ioredis it makes a duplicate connection of its own, which does not resend what was under way when a connection broke:
 * that would charge twice. The client that it was given is never closed.
 *
 * @throws TypeError for options out of range.
 */
export function redisQuotaStore(redis: RedisClient, options: RedisQuotaStoreOptions = {}): QuotaStore {
  const parser = new OptionsParser('redisQuotaStore');
  const given = parser.known(options, ['prefix', 'deadlineSeconds', 'lease', 'clock']);
  const { prefix = 'tollkeeper:quota', clock = systemClock } = given;
  if (!isRedisClient(redis)) parser.problem('a client of ioredis or node-redis is needed');
  parser.check(
    typeof prefix === 'string' && PREFIX.test(prefix),
    'prefix must be letters, digits, ".", "_", "-" and ":"',
  );
  const deadline = parser.number('deadlineSeconds', given.deadlineSeconds, 0.25, { min: 0.005, max: 60 });
  let replicas: number | undefined;
  if (given.lease !== undefined) {
    const lease = parser.known(given.lease, ['replicas'], 'lease');
    replicas = parser.number('lease.replicas', lease.replicas ?? Number.NaN, 1, {
      min: 1,
      max: 100_000,
      integer: true,
    });
  }
  parser.done();
  const store = new CountersInRedis(redis, prefix, deadline * 1_000, clock);
  return replicas === undefined ? store : new LeasedQuotaStore(store, replicas, clock);
}

interface Closable {
  disconnect?(): unknown;
}

class CountersInRedis implements QuotaStore {
  readonly #run: ReturnType<typeof redisScript>;
  readonly #prefix: string;
  readonly #deadlineMs: number;
  readonly #clock: Clock;
  readonly #own: Closable | undefined;
  #failures = 0;
  #closedUntilMs = Number.NEGATIVE_INFINITY;
  #closed = false;
  /** Redis's clock less ours, in milliseconds, as last seen. */
  #aheadMs = 0;

  constructor(redis: RedisClient, prefix: string, deadlineMs: number, clock: Clock) {
    const { client, own } = careful(redis);
    this.#run = redisScript(redisCommand(client), QUOTA_SCRIPT);
    this.#own = own;
    this.#prefix = prefix;
    this.#deadlineMs = deadlineMs;
    this.#clock = clock;
  }

  async take(slot: string, ops: readonly QuotaOp[], options: TakeOptions): Promise<TakeResult> {
    checkOps(ops, options);
    const { mode, id, holdMs = HOLD_MS, share = 1 } = options;
    const answer = await this.#call(slot, { c: 'take', m: mode, i: id, h: Math.ceil(holdMs), s: share }, ops);
    const results: OpResult[] = ops.map((_, index) => {
      const [granted, used, reset, retry] = answer.slice(2 + index * 4, 6 + index * 4) as string[];
      return {
        granted: Number(granted),
        used: Number(used),
        resetMs: Number(reset),
        retryMs: retry === '' ? null : Number(retry),
      };
    });
    return { allowed: answer[0] === '1', serverNowMs: Number(answer[1]), ops: results };
  }

  async settle(slot: string, hold: string | Charge, actual: readonly number[]): Promise<void> {
    if (typeof hold === 'string') {
      await this.#call(slot, { c: 'settle', i: hold, a: actual }, []);
      return;
    }
    const { ops, taken } = hold;
    const granted = taken.ops.map((each) => each.granted);
    await this.#call(slot, { c: 'settle', a: actual, g: granted, t: taken.serverNowMs }, ops);
  }

  async reset(slot: string, ops: readonly QuotaOp[]): Promise<void> {
    await this.#call(slot, { c: 'reset' }, ops);
  }

  async ready(): Promise<void> {
    await this.#call('ready', { c: 'reset' }, []);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#own?.disconnect?.();
  }

  /** Runs the script. Where the clocks are so far apart that it knew none of the windows, once more with Redis's time. */
  async #call(slot: string, args: object, ops: readonly QuotaOp[]): Promise<string[]> {
    const key = `${this.#prefix}:{${slot}}`;
    const send = () =>
      this.#guard(() => this.#run([key], [JSON.stringify(args), JSON.stringify(ops.map((op) => this.#spell(op)))]));
    let answer = await send();
    if (answer[0] === 'window') {
      this.#aheadMs = Number(answer[1]) - this.#clock.now();
      answer = await send();
      if (answer[0] === 'window') throw new Error('the clocks of Redis and of this process jump');
    }
    return answer;
  }

  #spell({ key, window, limit, cost, need, reserved }: QuotaOp): object {
    const op = { k: key, w: window.kind, l: limit, c: cost, n: need ?? cost, r: reserved === true };
    if (window.kind === 'gcra') return { ...op, b: window.burst, p: window.periodMs };
    if (window.kind === 'concurrent') return { ...op, b: limit, t: Math.ceil(window.ttlMs) };
    const now = window.at(this.#clock.now() + this.#aheadMs);
    const before = window.at(now.startMs - 1);
    const after = window.at(now.endMs);
    return { ...op, b: limit, v: [before, now, after].map(({ startMs, endMs }) => [startMs, endMs]) };
  }

  /** The deadline and the circuit breaker. */
  async #guard(work: () => Promise<unknown>): Promise<string[]> {
    if (this.#closed) throw new Error('the quota store is closed');
    if (this.#clock.monotonic() < this.#closedUntilMs) throw new Error('Redis failed a moment ago and is left alone');
    try {
      const answer = (await inTime(this.#deadlineMs, work())) as string[];
      this.#failures = 0;
      return answer;
    } catch (error) {
      this.#failures += 1;
      if (this.#failures >= BREAKER_FAILURES) this.#closedUntilMs = this.#clock.monotonic() + BREAKER_MS;
      throw error;
    }
  }
}

/** A connection that does not send a command twice; node-redis does not by itself. */
function careful(redis: RedisClient): { client: RedisClient; own: Closable | undefined } {
  if (!('call' in redis)) return { client: redis, own: undefined };
  const settings = { autoResendUnfulfilledCommands: false, maxRetriesPerRequest: 0 };
  const isCluster = 'nodes' in redis;
  const duplicate = redis.duplicate as (
    ...args: unknown[]
  ) => RedisClient & Closable & { on(event: string, listener: () => void): void };
  const client = isCluster ? duplicate.call(redis, [], { redisOptions: settings }) : duplicate.call(redis, settings);
  // What fails is told to whoever waits for a command.
  client.on('error', () => {});
  return { client, own: client };
}

/**
 * Rejects when there is no answer in time. On a busy machine the timer may be due before answers that have arrived are
 * read: they get one more turn.
 */
function inTime<T>(deadlineMs: number, work: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      setImmediate(() => reject(new Error(`no answer within ${deadlineMs} ms`)));
    }, deadlineMs);
    work.then(
      (value) => {
        clearTimeout(timer);
        resolve(value);
      },
      (error) => {
        clearTimeout(timer);
        reject(error);
      },
    );
  });
}

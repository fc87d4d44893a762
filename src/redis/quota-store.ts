import type { Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { OptionsParser } from '../errors/options-parser.js';
import { standing } from '../quota/memory-counter.js';
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
import { READY_WAIT_MS } from '../runtime/lifecycle.js';
import { LeasedQuotaStore } from './leased-quota-store.js';
import { QUOTA_SCRIPT } from './quota-script.js';
import {
  type IoredisClient,
  isRedisClient,
  type RedisClient,
  type RedisCommand,
  redisCommand,
  redisScript,
} from './redis-client.js';

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
/** Milliseconds after which `ready` asks again. */
const ASK_AGAIN_MS = 50;
const KIND = { gcra: 'g', calendar: 'c', concurrent: 'n' } as const;
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

/** What is used of an ioredis client beside its commands. */
interface Ioredis {
  readonly options?: { readonly redisOptions?: object };
  duplicate(...overrides: unknown[]): IoredisClient & Closable & OwnConnection;
}

/** What is used of the duplicate. A cluster has no stream: it has many. */
interface OwnConnection {
  readonly stream?: Pick<Writable, 'cork' | 'uncork'> | undefined;
  on(event: string, listener: () => void): void;
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
    const { command, own } = careful(redis);
    this.#run = redisScript(command, QUOTA_SCRIPT);
    this.#own = own;
    this.#prefix = prefix;
    this.#deadlineMs = deadlineMs;
    this.#clock = clock;
  }

  take(slot: string, ops: readonly QuotaOp[], options: TakeOptions): Promise<TakeResult> {
    checkOps(ops, options);
    const isPlain = options.mode === 'all' && (options.id ?? '') === '' && ops.length > 0;
    return isPlain ? this.#charge(slot, ops, options) : this.#take(slot, ops, options);
  }

  /** The short way, for what is charged without an id. */
  #charge(slot: string, ops: readonly QuotaOp[], options: TakeOptions): Promise<TakeResult> {
    const nowMs = this.#clock.now() + this.#aheadMs;
    const keys: string[] = [];
    let kinds = '';
    let numbers = '';
    for (const { key, window, limit, cost, need } of ops) {
      if (window.kind === 'concurrent') return this.#take(slot, ops, options);
      const name = `${this.#prefix}:{${slot}}:${key}`;
      numbers += `${numbers === '' ? '[' : ','}${limit},${need ?? cost},${cost},`;
      if (window.kind === 'gcra') {
        keys.push(name);
        numbers += `${window.burst},${window.periodMs}`;
      } else {
        const { startMs, endMs } = window.at(nowMs);
        keys.push(`${name}:${startMs}`);
        numbers += `${startMs},${endMs}`;
      }
      kinds += KIND[window.kind];
    }
    return this.#guard(
      () => this.#run(keys, ['charge', kinds, `${numbers}]`]),
      (answer) => {
        const verdict = Number(answer[0]);
        if (verdict < 0) return this.#take(slot, ops, options);
        const allowed = verdict === 1;
        const serverNowMs = Number(answer[1]);
        return {
          allowed,
          serverNowMs,
          ops: ops.map((op, index) => {
            const used = readLevel(op, answer[2 + index]);
            return standing(op, used, 0, serverNowMs, allowed ? 0 : (op.need ?? op.cost), allowed ? op.cost : 0);
          }),
        };
      },
    );
  }

  async #take(slot: string, ops: readonly QuotaOp[], options: TakeOptions): Promise<TakeResult> {
    const { mode, id = '', holdMs = HOLD_MS, share = 1 } = options;
    const head = ['take', mode, id, String(Math.ceil(holdMs)), String(share)];
    const answer = await this.#onTime(slot, head, ops);
    const results: OpResult[] = [];
    for (let at = 2; at < answer.length; at += 4) {
      const retryMs = Number(answer[at + 3]);
      results.push({
        granted: Number(answer[at]),
        used: Number(answer[at + 1]),
        resetMs: Number(answer[at + 2]),
        retryMs: retryMs < 0 ? null : retryMs,
      });
    }
    return { allowed: Number(answer[0]) === 1, serverNowMs: Number(answer[1]), ops: results };
  }

  async settle(slot: string, hold: string | Charge, actual: readonly number[]): Promise<void> {
    const units = actual.join(',');
    if (typeof hold === 'string') {
      await this.#call(slot, ['settle', '', hold, '0', '1', '0', units, '', '0']);
      return;
    }
    const { ops, taken } = hold;
    const granted = taken.ops.map((each) => each.granted).join(',');
    const head = ['settle', '', '', '0', '1', String(ops.length), units, granted, String(taken.serverNowMs)];
    await this.#call(slot, spell(head, ops, taken.serverNowMs));
  }

  async reset(slot: string, ops: readonly QuotaOp[]): Promise<void> {
    await this.#onTime(slot, ['reset', '', '', '0', '1'], ops);
  }

  /** A connection that is being made has up to 5 s. */
  async ready(signal?: AbortSignal): Promise<void> {
    const endsMs = performance.now() + READY_WAIT_MS;
    for (;;) {
      try {
        await this.#onTime('ready', ['reset', '', '', '0', '1'], []);
        return;
      } catch (error) {
        if (this.#closed || signal?.aborted === true || performance.now() >= endsMs) throw error;
        await sleep(ASK_AGAIN_MS, undefined, { ref: false });
      }
    }
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#own?.disconnect?.();
  }

  /** Runs the script. Where it is in another window of the calendar than this process, once more with Redis's time. */
  async #onTime(slot: string, head: readonly string[], ops: readonly QuotaOp[]): Promise<unknown[]> {
    for (let attempt = 0; attempt < 2; attempt++) {
      const now = this.#clock.now();
      const answer = await this.#call(
        slot,
        spell([...head, String(ops.length), '', '', '0'], ops, now + this.#aheadMs),
      );
      if (Number(answer[0]) >= 0) return answer;
      this.#aheadMs = Number(answer[1]) - this.#clock.now();
    }
    throw new Error('the clocks of Redis and of this process jump');
  }

  #call(slot: string, args: readonly string[]): Promise<unknown[]> {
    return this.#guard(
      () => this.#run([`${this.#prefix}:{${slot}}`], args),
      (answer) => answer,
    );
  }

  /**
   * The deadline and the circuit breaker. On a busy machine the timer may be due before answers that have arrived are read:
   * they get one more turn. In two halves, so that Redis has one of them though this process stands still before the write
   * goes out. One promise for all of it: this runs for every request.
   */
  #guard<T>(work: () => Promise<unknown>, read: (answer: unknown[]) => T | Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      if (this.#closed) throw new Error('the quota store is closed');
      if (this.#clock.monotonic() < this.#closedUntilMs) throw new Error('Redis failed a moment ago and is left alone');
      let isOver = false;
      const fail = (error: unknown): void => {
        if (isOver) return;
        isOver = true;
        clearTimeout(timer);
        this.#failures += 1;
        if (this.#failures >= BREAKER_FAILURES) this.#closedUntilMs = this.#clock.monotonic() + BREAKER_MS;
        reject(error);
      };
      const half = this.#deadlineMs / 2;
      let timer = setTimeout(() => {
        timer = setTimeout(() => {
          setImmediate(fail, new Error(`no answer within ${this.#deadlineMs} ms`));
        }, half);
      }, half);
      work().then((answer) => {
        if (isOver) return;
        isOver = true;
        clearTimeout(timer);
        this.#failures = 0;
        try {
          resolve(read(answer as unknown[]));
        } catch (error) {
          reject(error);
        }
      }, fail);
    });
  }
}

/** What the short way answers of a counter: a sum, or the level of a rate in millionths. */
function readLevel({ window }: QuotaOp, answer: unknown): number {
  const text = String(answer);
  if (window.kind !== 'gcra') return Number(text);
  return text.startsWith('L') ? Number(text.slice(1)) : Number(text) / 1e6;
}

/** The script's arguments: the head, then eight for each op, in the window of this instant. */
function spell(head: string[], ops: readonly QuotaOp[], nowMs: number): string[] {
  for (const { key, window, limit, cost, need, reserved } of ops) {
    const { kind } = window;
    let name = key;
    let [first, second] = [0, 0];
    if (kind === 'gcra') [first, second] = [window.burst, window.periodMs];
    else if (kind === 'concurrent') first = Math.ceil(window.ttlMs);
    else {
      const { startMs, endMs } = window.at(nowMs);
      [first, second] = [startMs, endMs];
      name = `${key}:${startMs}`;
    }
    head.push(name, KIND[kind], String(limit), String(need ?? cost), String(cost), reserved === true ? '1' : '0');
    head.push(String(first), String(second));
  }
  return head;
}

/**
 * A connection that does not send a command twice. ioredis does it in three ways: after a reconnect, per request, and, on a
 * cluster, when a node's connection is closed. node-redis does not.
 */
function careful(redis: RedisClient): { command: RedisCommand; own: Closable | undefined } {
  if (!('call' in redis)) return { command: redisCommand(redis), own: undefined };
  const settings = { autoResendUnfulfilledCommands: false, maxRetriesPerRequest: 0, lazyConnect: true };
  const { duplicate, options } = redis as Ioredis;
  const isCluster = 'nodes' in redis;
  const client = isCluster
    ? duplicate.call(redis, [], {
        lazyConnect: true,
        retryDelayOnFailover: 0,
        // ioredis 5 would put these in the place of the app's own, with its password.
        redisOptions: { ...options?.redisOptions, ...settings },
      })
    : duplicate.call(redis, { ...settings, enableAutoPipelining: false });
  // What fails is told to whoever waits for a command.
  client.on('error', () => {});
  return { command: isCluster ? redisCommand(client) : inOneWrite(client), own: client };
}

/**
 * What is sent in one turn of the event loop leaves in one write, as with ioredis's automatic pipelines. These wait for each
 * other, so that Redis and the client take turns; here the next write goes out while answers to the last are still coming.
 */
function inOneWrite(client: IoredisClient & OwnConnection): RedisCommand {
  const send = redisCommand(client);
  let corked: OwnConnection['stream'];
  const uncork = (): void => {
    corked?.uncork();
    corked = undefined;
  };
  return (args) => {
    if (corked === undefined && client.stream !== undefined) {
      corked = client.stream;
      corked.cork();
      setImmediate(uncork);
    }
    return send(args);
  };
}

import { OptionsParser } from '../errors/options-parser.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { freeOf, type HeldCharge, type Instant, MemoryCounter, standing } from './memory-counter.js';
import {
  type Charge,
  checkOps,
  HOLD_MS,
  type OpResult,
  type QuotaOp,
  type QuotaStore,
  type TakeOptions,
  type TakeResult,
} from './quota-store.js';

export interface MemoryQuotaStoreOptions {
  /**
   * Most counters that are kept, and most holds, from 1 to 16777216. Default 500000, at about 250 bytes each. Beyond it the
   * counter that was not used for longest goes, but never one that denies or has reservations: when only those are left,
   * new counters are refused, which is a failure of the store (`onStoreError`).
   */
  readonly maxEntries?: number;
  readonly clock?: Clock;
}

/** Milliseconds after its expiry that a reservation can still be settled. */
const LATE_MS = 86_400_000;
/** Milliseconds for which the id of a settled hold is remembered. */
const SETTLED_MS = 60_000;
/** Most counters that one eviction looks at: it stays cheap even when nearly all of them deny. */
const MAX_LOOKS = 256;

interface HeldOp {
  readonly op: QuotaOp;
  readonly counter: MemoryCounter | undefined;
  readonly charge: HeldCharge;
}

interface Hold {
  readonly granted: readonly number[];
  readonly held: readonly HeldOp[];
  settled: boolean;
  /** Monotonic: when it is forgotten. */
  keptUntilMs: number;
}

type Counters = readonly (MemoryCounter | undefined)[];

/**
 * Counters in this process: exact for one process, and synchronous: no promise, no timer, no I/O.
 *
 * @throws TypeError for options out of range.
 */
export function memoryQuotaStore(options: MemoryQuotaStoreOptions = {}): MemoryQuotaStore {
  const parser = new OptionsParser('memoryQuotaStore');
  const { maxEntries, clock } = parser.known(options, ['maxEntries', 'clock']);
  const bound = parser.number('maxEntries', maxEntries, 500_000, { min: 1, max: 2 ** 24, integer: true });
  parser.done();
  return new CountersInMemory(bound, clock ?? systemClock);
}

/** A store whose answers are there at once. */
export interface MemoryQuotaStore extends QuotaStore {
  /** Counters that are kept at this moment. */
  readonly size: number;
  take(slot: string, ops: readonly QuotaOp[], options: TakeOptions): TakeResult;
  settle(slot: string, hold: string | Charge, actual: readonly number[]): void;
  reset(slot: string, ops: readonly QuotaOp[]): void;
  ready(): Promise<void>;
  close(): Promise<void>;
}

class CountersInMemory implements MemoryQuotaStore {
  readonly #maxEntries: number;
  readonly #clock: Clock;
  readonly #counters = new Map<string, MemoryCounter>();
  readonly #holds = new Map<string, Hold>();
  /** Both are used within one call only, and spare the allocations. */
  readonly #now: Instant = { wallMs: 0, monotonicMs: 0 };
  readonly #counterOfOps: (MemoryCounter | undefined)[] = [];

  constructor(maxEntries: number, clock: Clock) {
    this.#maxEntries = maxEntries;
    this.#clock = clock;
  }

  get size(): number {
    return this.#counters.size;
  }

  take(slot: string, ops: readonly QuotaOp[], options: TakeOptions): TakeResult {
    checkOps(ops, options);
    const now = this.#instant();
    const { mode, id } = options;
    const counters = this.#counterOfOps;
    counters.length = ops.length;
    let allowed = true;
    for (let index = 0; index < ops.length; index++) {
      const op = ops[index] as QuotaOp;
      const counter = this.#present(op, now);
      counters[index] = counter;
      const need = op.need ?? op.cost;
      if (need > 0 && freeOf(op, counter?.used ?? 0) < need) {
        allowed = false;
        if (counter !== undefined && need > counter.deniedNeed) counter.deniedNeed = need;
      }
    }
    const known = id === undefined ? undefined : this.#holds.get(`${slot} ${id}`);
    if (known !== undefined) return answer(ops, counters, now, true, known.granted);
    if (mode === 'peek' || (mode === 'all' && !allowed)) return answer(ops, counters, now, allowed, undefined);
    const grants =
      mode === 'upTo' ? ops.map((op, index) => partOf(op, counters[index]?.used ?? 0, options.share)) : undefined;
    // Everything that can fail comes first: a full store charges nothing.
    for (let index = 0; index < ops.length; index++) {
      const op = ops[index] as QuotaOp;
      if (counters[index] === undefined && (grants?.[index] ?? op.cost) > 0) counters[index] = this.#make(op, now);
    }
    if (id !== undefined) this.#makeRoomForHold(now);
    for (let index = 0; index < ops.length; index++) {
      counters[index]?.charge(grants?.[index] ?? (ops[index] as QuotaOp).cost);
    }
    const granted = grants ?? costsOf(ops);
    if (id !== undefined && (mode !== 'upTo' || granted.some((units) => units > 0))) {
      this.#holds.set(`${slot} ${id}`, holdOf(ops, counters, granted, options, now));
    }
    return answer(ops, counters, now, mode !== 'upTo' || allowed, granted);
  }

  settle(slot: string, hold: string | Charge, actual: readonly number[]): void {
    const now = this.#instant();
    if (typeof hold !== 'string') {
      const { ops, taken } = hold;
      for (const [index, op] of ops.entries()) {
        const granted = taken.ops[index]?.granted ?? 0;
        const used = actual[index] ?? granted;
        if (granted === 0 || used === granted) continue;
        const found = this.#find(op, op.window.kind === 'calendar' ? op.window.at(taken.serverNowMs).startMs : 0);
        const counter = found ?? (op.window.kind === 'gcra' && used > granted ? this.#make(op, now) : undefined);
        counter?.bring(op, now);
        counter?.settle(granted, used, now.wallMs - taken.serverNowMs, now);
      }
      return;
    }
    const known = this.#holds.get(`${slot} ${hold}`);
    if (known === undefined || known.settled) return;
    known.settled = true;
    known.keptUntilMs = now.monotonicMs + SETTLED_MS;
    for (const [index, { op, counter, charge }] of known.held.entries()) {
      if (counter === undefined || charge.granted === 0) continue;
      counter.bring(op, now);
      counter.release(charge);
      counter.settle(charge.units, actual[index] ?? charge.granted, now.monotonicMs - charge.takenMs, now);
    }
  }

  reset(_slot: string, ops: readonly QuotaOp[]): void {
    const now = this.#instant();
    for (const op of ops) {
      const counter = this.#present(op, now);
      if (counter === undefined) continue;
      counter.gone = true;
      const head = this.#counters.get(op.key);
      if (head !== counter) {
        for (let at = head; at !== undefined; at = at.older) if (at.older === counter) at.older = counter.older;
      } else if (counter.older === undefined) this.#counters.delete(op.key);
      else this.#counters.set(op.key, counter.older);
    }
  }

  async ready(): Promise<void> {}

  async close(): Promise<void> {}

  #instant(): Instant {
    this.#now.wallMs = this.#clock.now();
    this.#now.monotonicMs = this.#clock.monotonic();
    return this.#now;
  }

  /** The counter of the op's present window, brought to this instant. */
  #present(op: QuotaOp, now: Instant): MemoryCounter | undefined {
    const counter = this.#find(op, op.window.kind === 'calendar' ? op.window.at(now.wallMs).startMs : 0);
    if (counter === undefined) return undefined;
    counter.touched = true;
    counter.bring(op, now);
    return counter;
  }

  #find(op: QuotaOp, startMs: number): MemoryCounter | undefined {
    let counter = this.#counters.get(op.key);
    while (counter !== undefined && (counter.startMs !== startMs || counter.kind !== op.window.kind)) {
      counter = counter.older;
    }
    return counter;
  }

  /** A counter for the op's present window. @throws Error when the store is full. */
  #make(op: QuotaOp, now: Instant): MemoryCounter {
    let others = this.#counters.get(op.key);
    if (others === undefined) this.#makeRoom(now);
    while (others?.isOver(now) === true) others = others.older;
    const counter = new MemoryCounter(op.window.kind, now.monotonicMs);
    if (op.window.kind === 'calendar') {
      const { startMs, endMs } = op.window.at(now.wallMs);
      counter.startMs = startMs;
      counter.endMs = endMs;
    }
    counter.older = others;
    counter.bring(op, now);
    this.#counters.set(op.key, counter);
    return counter;
  }

  /** Second chance: what was used since the last look goes to the back once. */
  #makeRoom(now: Instant): void {
    let spare: string | undefined;
    for (let looks = 0; this.#counters.size >= this.#maxEntries; looks++) {
      const [key, counter] = this.#counters.entries().next().value as [string, MemoryCounter];
      const needed = isNeeded(counter, now);
      if (!needed && (!counter.touched || counter.isOver(now))) {
        this.#evict(key, counter);
        continue;
      }
      if (!needed) spare ??= key;
      if (looks >= MAX_LOOKS) {
        const last = spare === undefined ? undefined : this.#counters.get(spare);
        if (spare === undefined || last === undefined) {
          throw new Error('the quota store is full of counters that deny');
        }
        this.#evict(spare, last);
        continue;
      }
      counter.touched = false;
      this.#counters.delete(key);
      this.#counters.set(key, counter);
    }
  }

  #evict(key: string, counter: MemoryCounter): void {
    this.#counters.delete(key);
    for (let at: MemoryCounter | undefined = counter; at !== undefined; at = at.older) at.gone = true;
  }

  #makeRoomForHold(now: Instant): void {
    for (let looks = 0; looks < 2 || this.#holds.size >= this.#maxEntries; looks++) {
      const first = this.#holds.entries().next();
      if (first.done === true) return;
      if (looks >= MAX_LOOKS) throw new Error('the quota store is full of holds');
      const [id, hold] = first.value;
      this.#holds.delete(id);
      if (hold.keptUntilMs > now.monotonicMs) this.#holds.set(id, hold);
    }
  }
}

/** Whether some window of the key still denies or has reservations. */
function isNeeded(head: MemoryCounter, now: Instant): boolean {
  for (let at: MemoryCounter | undefined = head; at !== undefined; at = at.older) if (at.isNeeded(now)) return true;
  return false;
}

function costsOf(ops: readonly QuotaOp[]): number[] {
  return ops.map(({ cost }) => cost);
}

/** What a lease is given: what is needed, and beyond it no more than a share of what is free. */
function partOf(op: QuotaOp, used: number, share = 1): number {
  const need = op.need ?? op.cost;
  const free = freeOf(op, used);
  return free < need ? 0 : Math.min(free, op.cost, Math.max(need, Math.floor(free / share)));
}

function holdOf(
  ops: readonly QuotaOp[],
  counters: Counters,
  granted: readonly number[],
  { mode, holdMs = HOLD_MS }: TakeOptions,
  { monotonicMs }: Instant,
): Hold {
  let latestMs = monotonicMs + holdMs;
  const held = ops.map((op, index): HeldOp => {
    const counter = counters[index];
    const units = granted[index] as number;
    let expiresMs = Number.POSITIVE_INFINITY;
    if (op.window.kind === 'concurrent') expiresMs = monotonicMs + op.window.ttlMs;
    else if (op.reserved === true && mode !== 'upTo') expiresMs = monotonicMs + holdMs;
    const charge: HeldCharge = { granted: units, units, takenMs: monotonicMs, expiresMs };
    if (expiresMs !== Number.POSITIVE_INFINITY) {
      latestMs = Math.max(latestMs, expiresMs);
      if (units > 0) counter?.hold(charge);
    }
    return { op, counter, charge };
  });
  return { granted, held, settled: false, keptUntilMs: latestMs + LATE_MS };
}

function answer(
  ops: readonly QuotaOp[],
  counters: Counters,
  now: Instant,
  allowed: boolean,
  granted: readonly number[] | undefined,
): TakeResult {
  const results: OpResult[] = [];
  for (let index = 0; index < ops.length; index++) {
    const op = ops[index] as QuotaOp;
    const units = granted?.[index];
    const need = units === undefined || (units === 0 && !allowed) ? (op.need ?? op.cost) : 0;
    const counter = counters[index];
    const expiryMs = counter === undefined ? 0 : counter.expiryMs(now);
    results.push(standing(op, counter?.used ?? 0, expiryMs, now.wallMs, need, units ?? 0));
  }
  return { allowed, serverNowMs: now.wallMs, ops: results };
}

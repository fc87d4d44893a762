import type { TimeWindow } from '../quota/calendar-window.js';
import {
  type Charge,
  checkOps,
  type OpResult,
  type QuotaOp,
  type QuotaStore,
  type TakeOptions,
  type TakeResult,
} from '../quota/quota-store.js';
import type { Clock } from '../runtime/clock.js';

/** Milliseconds for which a lease is spent at most; what is left of it after is returned. */
const LEASE_MS = 60_000;
/** A lease is at most this part of the limit: about one round trip in a hundred requests, and little is stranded. */
const PART_OF_LIMIT = 100;
/** What remains is shared by all processes, with room for as many again. */
const SHARES_PER_REPLICA = 2;
/** Counters with a lease that are kept, and as many that are used up. */
const MAX_LEASES = 100_000;
/** Milliseconds for which a counter that was used up is taken to be so still: else each refusal would be a round trip. */
const REFUSAL_MS = 1_000;

/** Units of one counter that this process may spend by itself. */
interface Lease {
  readonly slot: string;
  readonly op: QuotaOp;
  readonly window: TimeWindow;
  readonly granted: number;
  spent: number;
  /** Used by everybody, as far as Redis said when the lease was made. */
  readonly usedElsewhere: number;
  /** On the monotonic clock, counted from before it was asked for: it ends here before it ends there. */
  readonly endsMs: number;
}

/** What Redis could not grant a moment ago. */
interface Refusal {
  readonly limit: number;
  readonly need: number;
  readonly standing: OpResult;
  readonly serverNowMs: number;
  /** Monotonic. */
  readonly endsMs: number;
}

interface LocalHold {
  /** `units`: what is still charged: 0 once the reservation has expired. */
  readonly parts: readonly { units: number; readonly op: QuotaOp }[];
  readonly result: TakeResult;
  readonly timer: NodeJS.Timeout | undefined;
}

/**
 * Leases of calendar windows. Every unit that is spent here was charged in Redis before, so that no more than the limit is
 * ever admitted; what a process holds and does not spend is stranded for the others: at most N·(c + w − 1) units for N
 * processes, leases of c and requests of at most w. A process that dies takes its lease with it.
 */
export class LeasedQuotaStore implements QuotaStore {
  readonly leased = true;
  readonly #store: QuotaStore;
  readonly #replicas: number;
  readonly #clock: Clock;
  readonly #leases = new Map<string, Lease>();
  readonly #holds = new Map<string, LocalHold>();
  readonly #refusals = new Map<string, Refusal>();
  /** One refill at a time per slot: what waits for it then finds units. */
  readonly #refills = new Map<string, Promise<unknown>>();
  /** Redis's clock less ours, in milliseconds. */
  #aheadMs = 0;

  constructor(store: QuotaStore, replicas: number, clock: Clock) {
    this.#store = store;
    this.#replicas = replicas;
    this.#clock = clock;
  }

  take(slot: string, ops: readonly QuotaOp[], options: TakeOptions): TakeResult | Promise<TakeResult> {
    checkOps(ops, options);
    for (const { window } of ops) {
      if (window.kind !== 'calendar') throw new TypeError('quota: leases need calendar windows');
    }
    // Debt comes out of the leases too, where they have enough.
    if (options.mode === 'force') return this.#spend(slot, ops, options) ?? this.#store.take(slot, ops, options);
    if (options.mode !== 'all') return this.#store.take(slot, ops, options);
    return this.#spend(slot, ops, options) ?? this.#refused(ops) ?? this.#refill(slot, ops, options);
  }

  settle(slot: string, hold: string | Charge, actual: readonly number[]): void | Promise<void> {
    let known: LocalHold | undefined;
    if (typeof hold === 'string') {
      known = this.#holds.get(`${slot} ${hold}`);
      if (known === undefined) return;
      clearTimeout(known.timer);
      this.#holds.delete(`${slot} ${hold}`);
    } else {
      const { ops, taken } = hold;
      const parts = ops.map((op, index) => ({ op, units: taken.ops[index]?.granted ?? 0 }));
      known = { parts, result: taken, timer: undefined };
    }
    const { parts, result } = known;
    const now = this.#clock.now() + this.#aheadMs;
    const debts: QuotaOp[] = [];
    const refunds: { op: QuotaOp; units: number; used: number }[] = [];
    for (const [index, { units, op }] of parts.entries()) {
      const used = actual[index] ?? units;
      // A window that has ended stays as it was.
      if (used === units || startOf(op, now) !== startOf(op, result.serverNowMs)) continue;
      if (used > units) debts.push({ ...op, cost: used - units, need: undefined, reserved: false });
      else if (!this.#giveBack(op, units - used, result.serverNowMs)) refunds.push({ op, units, used });
    }
    if (debts.length === 0 && refunds.length === 0) return;
    return this.#book(slot, debts, refunds, result);
  }

  /** What the leases of this process cannot take: debts, and units whose lease is gone. */
  async #book(
    slot: string,
    debts: readonly QuotaOp[],
    refunds: readonly { readonly op: QuotaOp; readonly units: number; readonly used: number }[],
    result: TakeResult,
  ): Promise<void> {
    if (debts.length > 0) await this.take(slot, debts, { mode: 'force' });
    if (refunds.length === 0) return;
    const taken = { ...result, ops: refunds.map(({ units }) => ({ granted: units, used: 0, resetMs: 0, retryMs: 0 })) };
    await this.#store.settle(
      slot,
      { ops: refunds.map(({ op }) => op), taken },
      refunds.map(({ used }) => used),
    );
  }

  /** Back into the lease of the window in which they were charged: never into the next one's. */
  #giveBack({ key }: QuotaOp, units: number, chargedMs: number): boolean {
    const lease = this.#leases.get(key);
    if (lease === undefined || lease.spent < units) return false;
    if (chargedMs < lease.window.startMs || chargedMs >= lease.window.endMs) return false;
    lease.spent -= units;
    return true;
  }

  async reset(slot: string, ops: readonly QuotaOp[]): Promise<void> {
    for (const { key } of ops) {
      this.#leases.delete(key);
      this.#refusals.delete(key);
    }
    await this.#store.reset(slot, ops);
  }

  async ready(signal?: AbortSignal): Promise<void> {
    await this.#store.ready?.(signal);
  }

  /** Gives back what is left of every lease. */
  async close(signal?: AbortSignal): Promise<void> {
    for (const { timer } of this.#holds.values()) clearTimeout(timer);
    // What was asked for a moment ago is not burned either.
    await Promise.allSettled(this.#refills.values());
    const leases = [...this.#leases.values()];
    this.#leases.clear();
    await Promise.allSettled(leases.map((lease) => this.#return(lease)));
    await this.#store.close?.(signal);
  }

  /** Decides from what is leased; undefined when Redis has to be asked. */
  #spend(slot: string, ops: readonly QuotaOp[], options: TakeOptions): TakeResult | undefined {
    const known = options.id === undefined ? undefined : this.#holds.get(`${slot} ${options.id}`);
    if (known !== undefined) return known.result;
    const now = this.#clock.now() + this.#aheadMs;
    const monotonic = this.#clock.monotonic();
    const leases: (Lease | undefined)[] = [];
    for (const op of ops) {
      const need = unitsNeeded(op);
      const lease = need === 0 ? undefined : this.#live(op, now, monotonic);
      if (need > 0 && (lease === undefined || lease.granted - lease.spent < need)) return undefined;
      leases.push(lease);
    }
    for (const [index, lease] of leases.entries()) if (lease !== undefined) lease.spent += (ops[index] as QuotaOp).cost;
    return this.#hold(slot, ops, options, {
      allowed: true,
      serverNowMs: now,
      ops: ops.map((op, index) => this.#standing(op, leases[index], now)),
    });
  }

  #live(op: QuotaOp, now: number, monotonic: number): Lease | undefined {
    const lease = this.#leases.get(op.key);
    if (lease === undefined) return undefined;
    const { startMs, endMs } = lease.window;
    if (monotonic < lease.endsMs && now >= startMs && now < endMs && lease.op.limit === op.limit) return lease;
    this.#leases.delete(op.key);
    this.#return(lease).catch(() => {});
    return undefined;
  }

  #standing(op: QuotaOp, lease: Lease | undefined, now: number): OpResult {
    const end = op.window.kind === 'calendar' ? op.window.at(now).endMs : now;
    const used = lease === undefined ? 0 : lease.usedElsewhere + lease.spent;
    return { granted: op.cost, used: Math.min(used, op.limit), resetMs: end - now, retryMs: 0 };
  }

  /** The refusal that is known already; undefined when Redis has to be asked. */
  #refused(ops: readonly QuotaOp[]): TakeResult | undefined {
    if (this.#refusals.size === 0) return undefined;
    const monotonic = this.#clock.monotonic();
    const now = this.#clock.now() + this.#aheadMs;
    let refused = false;
    const results = ops.map((op) => {
      const known = this.#refusals.get(op.key);
      if (known === undefined || known.endsMs <= monotonic) {
        if (known !== undefined) this.#refusals.delete(op.key);
      } else if (known.limit === op.limit && unitsNeeded(op) >= known.need) {
        refused = true;
        const { standing, serverNowMs } = known;
        const left = (ms: number): number => Math.max(1, Math.ceil(ms - Math.max(0, now - serverNowMs)));
        const { retryMs, resetMs } = standing;
        return { ...standing, resetMs: left(resetMs), retryMs: retryMs === null ? null : left(retryMs) };
      }
      return { ...this.#standing(op, this.#leases.get(op.key), now), granted: 0 };
    });
    return refused ? { allowed: false, serverNowMs: now, ops: results } : undefined;
  }

  #remember(op: QuotaOp, taken: TakeResult, index: number): void {
    const standing = taken.ops[index] as OpResult;
    const need = op.need as number;
    if (standing.granted >= need) return;
    if (this.#refusals.size >= MAX_LEASES) this.#refusals.delete(this.#refusals.keys().next().value as string);
    const endsMs = this.#clock.monotonic() + Math.min(REFUSAL_MS, standing.resetMs);
    this.#refusals.set(op.key, { limit: op.limit, need, standing, serverNowMs: taken.serverNowMs, endsMs });
  }

  async #refill(slot: string, ops: readonly QuotaOp[], options: TakeOptions): Promise<TakeResult> {
    for (let waited = this.#refills.get(slot); waited !== undefined; waited = this.#refills.get(slot)) {
      await waited.catch(() => {});
      const decided = this.#spend(slot, ops, options) ?? this.#refused(ops);
      if (decided !== undefined) return decided;
    }
    const work = this.#ask(slot, ops, options);
    this.#refills.set(slot, work);
    try {
      return await work;
    } finally {
      this.#refills.delete(slot);
    }
  }

  /** Takes a lease for every counter that lacks units: all of them or none. */
  async #ask(slot: string, ops: readonly QuotaOp[], options: TakeOptions): Promise<TakeResult> {
    const now = this.#clock.now() + this.#aheadMs;
    const sentMs = this.#clock.monotonic();
    const lacking = ops.filter((op) => {
      const need = unitsNeeded(op);
      const lease = need === 0 ? undefined : this.#live(op, now, sentMs);
      return need > 0 && (lease === undefined || lease.granted - lease.spent < need);
    });
    // What is left of a lease that is too small goes back first, so that two leases never lie on one counter.
    for (const { key } of lacking) {
      const lease = this.#leases.get(key);
      if (lease === undefined) continue;
      this.#leases.delete(key);
      await this.#return(lease);
    }
    const asked = lacking.map((op) => {
      const need = unitsNeeded(op);
      return { ...op, need, cost: Math.max(need, Math.ceil(op.limit / PART_OF_LIMIT)), reserved: false };
    });
    const taken = await this.#store.take(slot, asked, { mode: 'upTo', share: this.#replicas * SHARES_PER_REPLICA });
    this.#aheadMs = taken.serverNowMs - this.#clock.now();
    const failed = asked.some((op, index) => (taken.ops[index]?.granted ?? 0) < (op.need as number));
    if (failed) {
      // What was granted for the others goes back: a refused request consumes nothing.
      if (taken.ops.some(({ granted }) => granted > 0))
        await this.#store.settle(
          slot,
          { ops: asked, taken },
          asked.map(() => 0),
        );
      for (const [index, op] of asked.entries()) this.#remember(op, taken, index);
      const results = ops.map((op) => {
        const index = lacking.indexOf(op);
        const found = index === -1 ? this.#standing(op, this.#leases.get(op.key), now) : (taken.ops[index] as OpResult);
        return { ...found, granted: 0 };
      });
      return { allowed: false, serverNowMs: taken.serverNowMs, ops: results };
    }
    for (const [index, op] of asked.entries()) this.#enter(slot, op, taken, index, sentMs);
    const spent = this.#spend(slot, ops, options);
    if (spent === undefined) throw new Error('quota: the window ended while a lease was asked for');
    return spent;
  }

  #enter(slot: string, op: QuotaOp, taken: TakeResult, index: number, sentMs: number): void {
    const { granted, used } = taken.ops[index] as OpResult;
    if (this.#leases.size >= MAX_LEASES) {
      const [key, oldest] = this.#leases.entries().next().value as [string, Lease];
      this.#leases.delete(key);
      this.#return(oldest).catch(() => {});
    }
    if (op.window.kind !== 'calendar') return;
    const window = op.window.at(taken.serverNowMs);
    this.#leases.set(op.key, {
      slot,
      op,
      window,
      granted,
      spent: 0,
      usedElsewhere: used - granted,
      // By the clock that nobody sets: a wall clock that stands still must not carry a lease into the next window.
      endsMs: sentMs + Math.min(LEASE_MS, window.endMs - taken.serverNowMs),
    });
  }

  /** Gives back what is left, if its window is still the same: Redis looks after that. */
  async #return(lease: Lease): Promise<void> {
    const { slot, op, granted, spent, window } = lease;
    if (spent >= granted) return;
    const taken: TakeResult = {
      allowed: true,
      serverNowMs: window.startMs,
      ops: [{ granted, used: 0, resetMs: 0, retryMs: 0 }],
    };
    lease.spent = granted;
    await this.#store.settle(slot, { ops: [op], taken }, [spent]);
  }

  #hold(slot: string, ops: readonly QuotaOp[], { id, holdMs }: TakeOptions, result: TakeResult): TakeResult {
    if (id === undefined) return result;
    const parts = ops.map((op) => ({ op, units: op.cost }));
    const reserved = ops.some((op) => op.reserved === true);
    const key = `${slot} ${id}`;
    const timer = reserved ? setTimeout(() => this.#expire(key), Math.min(holdMs ?? 300_000, 2 ** 31 - 1)) : undefined;
    timer?.unref();
    this.#holds.set(key, { parts, result, timer });
    return result;
  }

  /** Gives reservations back; what is settled later is booked as debt. */
  #expire(key: string): void {
    const hold = this.#holds.get(key);
    if (hold === undefined) return;
    for (const part of hold.parts) {
      if (part.op.reserved !== true || !this.#giveBack(part.op, part.units, hold.result.serverNowMs)) continue;
      part.units = 0;
    }
  }
}

/** What a lease must have: it is never spent beyond what was granted. */
function unitsNeeded({ need = 0, cost }: QuotaOp): number {
  return Math.max(need, cost);
}

function startOf({ window }: QuotaOp, ms: number): number {
  return window.kind === 'calendar' ? window.at(ms).startMs : 0;
}

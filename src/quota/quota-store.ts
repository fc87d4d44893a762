import type { Lifecycle } from '../runtime/lifecycle.js';
import type { TimeWindow } from './calendar-window.js';

/** How a counter forgets. All times in milliseconds. */
export type StoreWindow =
  /** A level that drains at `limit` per `periodMs`; a charge must fit below `burst`. */
  | { readonly kind: 'gcra'; readonly periodMs: number; readonly burst: number }
  /** A sum per window of the calendar; `at` gives the window of an instant of the store's clock. */
  | { readonly kind: 'calendar'; readonly at: (ms: number) => TimeWindow }
  /** What is held at this moment; an entry that is not settled ends by itself after `ttlMs`. */
  | { readonly kind: 'concurrent'; readonly ttlMs: number };

/** One counter of a `take`, and what is wanted of it. */
export interface QuotaOp {
  /** Names the counter: printable ASCII, never anything that a caller chose. A key belongs to one slot. */
  readonly key: string;
  readonly window: StoreWindow;
  /** Units per window: a safe integer of at least 0. */
  readonly limit: number;
  /** Units to charge: a safe integer of at least 0. With 0, nothing is charged and nothing is refused. */
  readonly cost: number;
  /** Units that must be free. Default: `cost`. More than `cost` asks for room that is charged later. */
  readonly need?: number;
  /** The charge is a reservation: it is given back when it is not settled within `holdMs`. Default false. */
  readonly reserved?: boolean;
}

export interface TakeOptions {
  /**
   * - `all`: charges every op, or none when one of them does not fit.
   * - `upTo`: charges each op as much as there is, up to its `cost`, and nothing below its `need`. What is not settled
   *   stays charged: a lease.
   * - `force`: charges every op, whatever is free: debt.
   * - `peek`: charges nothing.
   */
  readonly mode: 'all' | 'upTo' | 'force' | 'peek';
  /**
   * Makes the charge one that `settle` knows by this id: 1 to 200 printable ASCII characters, unique within the slot.
   * Taken twice, it is charged once. Needed for concurrent windows and reservations.
   */
  readonly id?: string;
  /** Milliseconds until an unsettled reservation is given back, at least 1. Default 300000. */
  readonly holdMs?: number;
  /** With `upTo`: no more than this part (1/share) of what remains is granted beyond `need`. Default 1. */
  readonly share?: number;
  readonly signal?: AbortSignal;
}

/** Milliseconds that an unsettled reservation holds, unless said otherwise. */
export const HOLD_MS = 300_000;

/** Where one counter stands after a `take`. */
export interface OpResult {
  /** Units that this call charged (with a known id: those of the first call). */
  readonly granted: number;
  /** Units in use, this call's included. It may exceed the limit after a debt or a downgrade. */
  readonly used: number;
  /** Milliseconds until everything is free again without further charges; 0 when everything is. */
  readonly resetMs: number;
  /** 0: it fits. More: milliseconds until it would. Null: waiting does not help. */
  readonly retryMs: number | null;
}

export interface TakeResult {
  readonly allowed: boolean;
  /** The store's clock, milliseconds since the epoch. */
  readonly serverNowMs: number;
  /** In the order of the ops. */
  readonly ops: readonly OpResult[];
}

/** A charge that was made without an id: the ops, and what `take` answered. */
export interface Charge {
  readonly ops: readonly QuotaOp[];
  readonly taken: TakeResult;
}

/**
 * Where counters live. What must be atomic is one method.
 *
 * A rejection means that something broke and nothing is known; being over a limit is a result.
 */
export interface QuotaStore extends Partial<Lifecycle> {
  /** Only calendar windows: charges are leased to this process in parts. */
  readonly leased?: boolean;
  /**
   * Decides about all ops at once. It may answer with a value instead of a promise, and then takes no further tick.
   *
   * @param slot all counters of one slot live together, and one call is about one slot. Printable ASCII.
   */
  take(slot: string, ops: readonly QuotaOp[], options: TakeOptions): TakeResult | Promise<TakeResult>;
  /**
   * Replaces what was charged by what was used. Idempotent by id; an unknown id changes nothing. A window that has ended
   * stays as it was. What was used beyond a charge is booked even over the limit; where nothing was charged, nothing is
   * settled (`force` books that).
   *
   * @param hold the id, or a charge without an id, which may be settled only once.
   * @param actual units per op, in the order of the ops; 0 gives everything back. Concurrent entries always end.
   */
  settle(slot: string, hold: string | Charge, actual: readonly number[]): void | Promise<void>;
  /** Forgets the present window of every op's counter. */
  reset(slot: string, ops: readonly QuotaOp[]): void | Promise<void>;
}

/**
 * Refuses what a store must never count with: `NaN` would mean unlimited for ever, and a negative cost would mint credit.
 *
 * @throws TypeError, before anything is changed.
 */
export function checkOps(ops: readonly QuotaOp[], { mode, id, holdMs }: TakeOptions): void {
  if (holdMs !== undefined && !(holdMs >= 1)) throw new TypeError('quota: holdMs must be a number of at least 1');
  for (const { cost, need, limit, reserved, window } of ops) {
    if (!isUnits(cost) || !isUnits(limit) || (need !== undefined && !isUnits(need))) {
      throw new TypeError('quota: units must be safe integers of at least 0');
    }
    if (id === undefined && mode !== 'peek' && cost > 0 && (reserved === true || window.kind === 'concurrent')) {
      throw new TypeError('quota: a reservation needs an id');
    }
  }
}

/** Whether a value is a number of units: a safe integer of at least 0. */
export function isUnits(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

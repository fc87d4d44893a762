import { channel } from 'node:diagnostics_channel';
import type { IncomingMessage } from 'node:http';
import type { Dimensions } from '../identity/ambient.cjs';
import { requestState } from './request-state.js';
import type { Basis, UsageRecord } from './usage-record.js';

/** What a handler reports about the request that it serves. */
export interface Usage {
  /** The usage event's id, from admission on; undefined without `meter()`. */
  readonly eventId: string | undefined;
  /**
   * Adds to a quantity, at most 64 different ones in a request. `requests` is the pipeline's own: every event of
   * `meter()` has exactly 1.
   *
   * @param amount a safe integer of at least 0. An unknown amount is not reported at all, never as 0.
   * @throws RangeError for any other amount.
   */
  add(quantity: string, amount: number, options?: { basis?: Basis }): void;
  /**
   * Sets dimensions of the usage event: strings, booleans and finite numbers, 8 KiB of JSON in all. A later value
   * replaces an earlier one.
   *
   * @throws RangeError for anything else.
   */
  set(dimensions: Partial<Dimensions>): void;
  /** Makes what was reported so far durable, in the middle of a long stream. Does nothing without a spool. */
  checkpoint(): void;
}

const STRENGTH: Readonly<Record<Basis, number>> = { reported: 2, measured: 1, estimated: 0 };
/** Names of quantities and dimensions: short, and nothing that could be taken for a prototype. */
const NAME = /^(?!__proto__$)[A-Za-z_][A-Za-z0-9_.-]{0,63}$/;
/** An event has to fit into one record of the log. */
const MAX_QUANTITIES = 64;
const MAX_DIMENSIONS_LENGTH = 8192;
const late = channel('tollkeeper:pipeline');

/** The handle through which a handler reports usage. It works without `meter()` too: quota settles from it. */
export function usageOf(req: IncomingMessage): Usage {
  const record = usageRecord(req);
  return {
    get eventId() {
      return record.admission?.id;
    },
    add(quantity, amount, options) {
      addQuantity(record, quantity, amount, options?.basis ?? 'reported');
    },
    set(dimensions) {
      setDimensions(record, dimensions);
    },
    checkpoint() {
      if (!record.closed) record.admission?.checkpoint();
    },
  };
}

/** The request's usage record, made on first use. */
export function usageRecord(req: IncomingMessage): UsageRecord {
  const state = requestState(req);
  state.usage ??= { quantities: undefined, dimensions: undefined, admission: undefined, closed: state.over };
  return state.usage;
}

/** Adds an amount to a record's quantity. @throws RangeError unless the amount and the sum are safe integers ≥ 0. */
export function addQuantity(record: UsageRecord, name: string, amount: number, basis: Basis): void {
  checkQuantity(name, amount, basis, 0);
  if (record.closed) return ignore(record);
  record.quantities ??= {};
  if (!Object.hasOwn(record.quantities, name)) {
    if (Object.keys(record.quantities).length >= MAX_QUANTITIES) {
      throw new RangeError(`usage: at most ${MAX_QUANTITIES} quantities`);
    }
    record.quantities[name] = { value: amount, basis };
    return;
  }
  const known = record.quantities[name] as { value: number; basis: Basis };
  if (!Number.isSafeInteger(known.value + amount)) throw new RangeError('usage: the sum is no safe integer any more');
  known.value += amount;
  if (STRENGTH[basis] < STRENGTH[known.basis]) known.basis = basis;
}

/** @throws RangeError unless name, amount and basis are usable. */
export function checkQuantity(name: string, amount: unknown, basis: unknown, min: number): void {
  if (!Number.isSafeInteger(amount) || (amount as number) < min) {
    throw new RangeError(`usage: an amount must be a safe integer${min === 0 ? ' of at least 0' : ''}`);
  }
  if (typeof name !== 'string' || !NAME.test(name)) {
    throw new RangeError('usage: a quantity needs a name of 1 to 64 letters, digits, "_", "." or "-"');
  }
  if (typeof basis !== 'string' || !Object.hasOwn(STRENGTH, basis)) {
    throw new RangeError('usage: basis must be reported, measured or estimated');
  }
}

/** Sets dimensions of a record: all of them or, when one is not usable, none. @throws RangeError */
export function setDimensions(record: UsageRecord, dimensions: object): void {
  if (typeof dimensions !== 'object' || dimensions === null)
    throw new RangeError('usage: dimensions must be an object');
  if (record.closed) return ignore(record);
  const merged: Record<string, string | number | boolean> = { ...record.dimensions };
  for (const [name, value] of Object.entries(dimensions)) {
    if (value === undefined) continue;
    const usable = typeof value === 'string' || typeof value === 'boolean' || Number.isFinite(value);
    if (!usable || !NAME.test(name)) {
      throw new RangeError('usage: a dimension needs a plain name and a string, a boolean or a finite number');
    }
    merged[name] = value;
  }
  if (JSON.stringify(merged).length > MAX_DIMENSIONS_LENGTH)
    throw new RangeError('usage: the dimensions are too large');
  record.dimensions = merged;
}

function ignore(record: UsageRecord): void {
  record.admission?.late();
  if (late.hasSubscribers) late.publish({ type: 'late_usage', eventId: record.admission?.id });
}

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
   * Adds to a quantity.
   *
   * @param amount a safe integer of at least 0. An unknown amount is not reported at all, never as 0.
   * @throws RangeError for any other amount.
   */
  add(quantity: string, amount: number, options?: { basis?: Basis }): void;
  /** Sets dimensions of the usage event. A later value replaces an earlier one. */
  set(dimensions: Partial<Dimensions>): void;
  /** Makes what was reported so far durable, in the middle of a long stream. Does nothing without a spool. */
  checkpoint(): void;
}

const STRENGTH: Readonly<Record<Basis, number>> = { reported: 2, measured: 1, estimated: 0 };
/** Names of quantities and dimensions: short, and nothing that could be taken for a prototype. */
const NAME = /^(?!__proto__$)[A-Za-z_][A-Za-z0-9_.-]{0,63}$/;
const late = channel('tollkeeper:pipeline');

/** The handle through which a handler reports usage. It works without `meter()` too: quota settles from it. */
export function usageOf(req: IncomingMessage): Usage {
  const record = usageRecord(req);
  return {
    get eventId() {
      return record.eventId;
    },
    add(quantity, amount, options) {
      addQuantity(record, quantity, amount, options?.basis ?? 'reported');
    },
    set(dimensions) {
      setDimensions(record, dimensions);
    },
    checkpoint() {
      if (!record.closed) record.checkpoint?.(record);
    },
  };
}

/** The request's usage record, made on first use. */
export function usageRecord(req: IncomingMessage): UsageRecord {
  const state = requestState(req);
  state.usage ??= {
    quantities: undefined,
    dimensions: undefined,
    eventId: undefined,
    checkpoint: undefined,
    closed: state.over,
  };
  return state.usage;
}

/** Adds an amount to a record's quantity. @throws RangeError unless the amount and the sum are safe integers ≥ 0. */
export function addQuantity(record: UsageRecord, name: string, amount: number, basis: Basis): void {
  if (!Number.isSafeInteger(amount) || amount < 0) {
    throw new RangeError('usage: an amount must be a safe integer of at least 0');
  }
  if (!NAME.test(name))
    throw new RangeError('usage: a quantity needs a name of 1 to 64 letters, digits, "_", "." or "-"');
  if (!Object.hasOwn(STRENGTH, basis)) throw new RangeError('usage: basis must be reported, measured or estimated');
  if (record.closed) {
    if (late.hasSubscribers) late.publish({ type: 'late_usage', eventId: record.eventId });
    return;
  }
  record.quantities ??= {};
  const known = record.quantities[name];
  if (known === undefined) {
    record.quantities[name] = { value: amount, basis };
    return;
  }
  if (!Number.isSafeInteger(known.value + amount)) throw new RangeError('usage: the sum is no safe integer any more');
  known.value += amount;
  if (STRENGTH[basis] < STRENGTH[known.basis]) known.basis = basis;
}

function setDimensions(record: UsageRecord, dimensions: object): void {
  if (record.closed) {
    if (late.hasSubscribers) late.publish({ type: 'late_usage', eventId: record.eventId });
    return;
  }
  for (const [name, value] of Object.entries(dimensions)) {
    if (value === undefined) continue;
    const usable = typeof value === 'string' || typeof value === 'boolean' || Number.isFinite(value);
    if (!usable || !NAME.test(name)) {
      throw new RangeError('usage: a dimension needs a plain name and a string, a boolean or a finite number');
    }
    record.dimensions ??= {};
    record.dimensions[name] = value;
  }
}

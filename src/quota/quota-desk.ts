import { randomUUID } from 'node:crypto';
import { channel } from 'node:diagnostics_channel';
import { AccessError } from '../errors/access-error.js';
import type { Identity } from '../identity/ambient.cjs';
import type { Clock } from '../runtime/clock.js';
import { isPromise } from '../runtime/is-promise.js';
import type { BoundPlan } from './bound-plan.js';
import { memoryQuotaStore } from './memory-quota-store.js';
import type { PlanBook } from './plan-book.js';
import type { ParsedPolicy } from './quota-policy.js';
import type { QuotaOp, QuotaStore, TakeOptions, TakeResult } from './quota-store.js';

interface DeskOptions {
  readonly store: QuotaStore;
  readonly book: PlanBook;
  readonly replicas: number;
  readonly clock: Clock;
}

/** What was decided about a request, and where it can be settled. */
export interface Ruling {
  readonly result: TakeResult;
  readonly ops: readonly QuotaOp[];
  readonly policies: readonly ParsedPolicy[];
  readonly slot: string;
  /** The store that decided: the shared one, or this process's own while that is down. */
  readonly store: QuotaStore;
}

const failures = channel('tollkeeper:quota');

/** The side of a quota that faces the requests: asks the store, and knows what to do when it fails. */
export class QuotaDesk {
  readonly #store: QuotaStore;
  readonly #book: PlanBook;
  readonly #replicas: number;
  readonly #local: QuotaStore;
  readonly #instance = randomUUID();
  #count = 0;

  constructor({ store, book, replicas, clock }: DeskOptions) {
    this.#store = store;
    this.#book = book;
    this.#replicas = replicas;
    this.#local = memoryQuotaStore({ clock });
  }

  /** @throws AccessError `quota_unavailable` when there is no plan. */
  planFor(identity: Identity): BoundPlan {
    return this.#book.of(identity);
  }

  /** An id for a hold, unique for ever. */
  nextId(): string {
    this.#count += 1;
    return `${this.#instance}-${this.#count.toString(36)}`;
  }

  /**
   * Decides, at once where the store answers at once.
   *
   * @throws AccessError `quota_unavailable` when the store fails and a policy says `deny`; a promise rejects with the same.
   */
  decide(bound: BoundPlan, ops: readonly QuotaOp[], options: TakeOptions): Ruling | Promise<Ruling> {
    const { slot, policies } = bound;
    const rule = (result: TakeResult): Ruling => ({ result, ops, policies, slot, store: this.#store });
    let answer: TakeResult | Promise<TakeResult>;
    try {
      answer = this.#store.take(slot, ops, options);
    } catch (cause) {
      return this.#withoutStore(bound, ops, options, cause);
    }
    if (!('then' in answer)) return rule(answer);
    return answer.then(rule, (cause) => this.#withoutStore(bound, ops, options, cause));
  }

  /** Settles a hold. A failure is published: what was charged stays charged, or expires. */
  settle(ruling: Ruling, id: string | undefined, actual: readonly number[]): void {
    const { store, slot, ops, result } = ruling;
    this.#inBackground(() => store.settle(slot, id ?? { ops, taken: result }, actual));
  }

  /** Books what nobody reserved: debt, over the limit too. */
  book(ruling: Ruling, ops: readonly QuotaOp[]): void {
    this.#inBackground(() => ruling.store.take(ruling.slot, ops, { mode: 'force' }));
  }

  #inBackground(work: () => unknown): void {
    const failed = (cause: unknown): void => {
      if (failures.hasSubscribers) failures.publish({ type: 'settle_error', cause });
    };
    try {
      const done = work();
      if (isPromise(done)) done.then(undefined, failed);
    } catch (cause) {
      failed(cause);
    }
  }

  #withoutStore(bound: BoundPlan, ops: readonly QuotaOp[], options: TakeOptions, cause: unknown): Ruling {
    const { policies, slot } = bound;
    const denying = policies.filter(({ onStoreError }) => onStoreError === 'deny').map(({ name }) => name);
    if (failures.hasSubscribers) failures.publish({ type: 'store_error', cause, denying });
    if (denying.length > 0) {
      throw new AccessError('quota_unavailable', { reason: 'quota: the store failed, and a policy denies without it' });
    }
    const kept = policies.flatMap((policy, index) => (policy.onStoreError === 'local' ? [{ policy, index }] : []));
    const shares = kept.map(({ index }) => shareOf(ops[index] as QuotaOp, this.#replicas));
    const result = this.#local.take(slot, shares, options) as TakeResult;
    return { result, ops: shares, policies: kept.map(({ policy }) => policy), slot, store: this.#local };
  }
}

function shareOf(op: QuotaOp, replicas: number): QuotaOp {
  const { window } = op;
  return {
    ...op,
    limit: Math.ceil(op.limit / replicas),
    window: window.kind === 'gcra' ? { ...window, burst: Math.ceil(window.burst / replicas) } : window,
  };
}

const DESK = Symbol.for('tollkeeper.quota');

/** Attaches the desk to its quota, where `enforceQuota` finds it, also when it comes from another copy of this package. */
export function attachDesk<T extends object>(quota: T, desk: QuotaDesk): T {
  return Object.defineProperty(quota, DESK, { value: desk });
}

/** The desk of a quota; undefined when the value is no quota. */
export function deskOf(quota: unknown): QuotaDesk | undefined {
  if (typeof quota !== 'object' || quota === null) return undefined;
  return (quota as { [DESK]?: QuotaDesk })[DESK];
}

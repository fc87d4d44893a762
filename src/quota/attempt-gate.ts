import { READY_WAIT_MS } from '../runtime/lifecycle.js';
import type { QuotaOp, QuotaStore, TakeResult } from './quota-store.js';

/** A request that was let in, until it is known whether it fails. The first word about it counts. */
export interface Attempt {
  passed(): void;
  failed(): void;
}

/** What becomes of one request at the gate; one of `admit`, `refuse` and `fail` is called, unless it is gone. */
export interface Visitor {
  /** Somebody answered, or the client left. */
  isGone(): boolean;
  admit(attempt: Attempt): void;
  refuse(retryMs: number): void;
  /** The store failed. */
  fail(cause: unknown): void;
}

interface Visit {
  readonly slot: string;
  readonly op: QuotaOp;
  readonly visitor: Visitor;
  readonly counter: Undecided;
  /** Runs from when it first had to wait. */
  timer: NodeJS.Timeout | undefined;
  /** It has waited long enough: the next answer decides. */
  isLate: boolean;
}

/** What this process knows about one counter while requests are under way. */
interface Undecided {
  /** Requests that hold on to this. */
  visits: number;
  /** Let in, and not known yet to pass or fail. */
  attempts: number;
  /** Failures that were counted: what was asked before one of them is out of date. */
  failures: number;
  readonly waiting: Visit[];
}

/** Milliseconds to wait after waiting was in vain. */
const RETRY_MS = 1_000;

/**
 * Bounds failures, though whether a request fails is known only after it was let in: no more are under way than failures
 * are left. What comes beyond that waits until one of them is decided, up to 5 s, so that neither parallel guesses get
 * more tries nor parallel good requests an error. Several processes each let as many in; every failure is booked, over the
 * limit too.
 */
export class AttemptGate {
  readonly #store: QuotaStore;
  readonly #onCountError: (cause: unknown) => void;
  readonly #counters = new Map<string, Undecided>();

  /** @param onCountError told of a failure that could not be counted. */
  constructor(store: QuotaStore, onCountError: (cause: unknown) => void) {
    this.#store = store;
    this.#onCountError = onCountError;
  }

  enter(slot: string, op: QuotaOp, visitor: Visitor): void {
    let counter = this.#counters.get(slot);
    if (counter === undefined) {
      counter = { visits: 0, attempts: 0, failures: 0, waiting: [] };
      this.#counters.set(slot, counter);
    }
    counter.visits += 1;
    this.#ask({ slot, op, visitor, counter, timer: undefined, isLate: false });
  }

  #ask(visit: Visit): void {
    const { slot, op, visitor, counter } = visit;
    const { failures } = counter;
    const rule = ({ allowed, ops }: TakeResult): void => {
      if (visitor.isGone()) return this.#leave(visit);
      if (counter.failures !== failures) return this.#ask(visit);
      const standing = ops[0];
      if (!allowed || standing === undefined) {
        this.#leave(visit);
        return visitor.refuse(standing?.retryMs ?? RETRY_MS);
      }
      if (op.limit - standing.used <= counter.attempts) return this.#wait(visit);
      clearTimeout(visit.timer);
      counter.attempts += 1;
      visitor.admit(this.#attempt(visit));
    };
    const fail = (cause: unknown): void => {
      this.#leave(visit);
      visitor.fail(cause);
    };
    let answer: TakeResult | Promise<TakeResult>;
    try {
      answer = this.#store.take(slot, [{ ...op, cost: 0, need: 1 }], { mode: 'peek' });
    } catch (cause) {
      return fail(cause);
    }
    if ('then' in answer) answer.then(rule, fail);
    else rule(answer);
  }

  #wait(visit: Visit): void {
    const { counter, visitor, timer, isLate } = visit;
    if (isLate) {
      counter.visits -= 1;
      visitor.refuse(RETRY_MS);
    } else if (timer !== undefined) {
      // Asked about in vain: it is the next one again.
      counter.waiting.unshift(visit);
    } else {
      counter.waiting.push(visit);
      visit.timer = setTimeout(() => {
        visit.isLate = true;
        const place = counter.waiting.indexOf(visit);
        // Otherwise the store is being asked.
        if (place !== -1) this.#wait(counter.waiting.splice(place, 1)[0] as Visit);
      }, READY_WAIT_MS);
    }
  }

  #attempt(visit: Visit): Attempt {
    const { slot, op, counter } = visit;
    let isDecided = false;
    const decided = (): void => {
      counter.attempts -= 1;
      this.#leave(visit);
    };
    const counted = (): void => {
      counter.failures += 1;
      decided();
    };
    const first = (word: () => void) => () => {
      if (isDecided) return;
      isDecided = true;
      word();
    };
    return { passed: first(decided), failed: first(() => this.count(slot, op, counted)) };
  }

  /** Books a failure, over the limit too. */
  count(slot: string, op: QuotaOp, counted: () => void = () => {}): void {
    const failed = (cause: unknown): void => {
      this.#onCountError(cause);
      counted();
    };
    try {
      const done = this.#store.take(slot, [op], { mode: 'force' });
      if ('then' in done) done.then(counted, failed);
      else counted();
    } catch (cause) {
      failed(cause);
    }
  }

  /** Makes room for one that waits. In a turn of its own: thousands may. */
  #leave({ slot, counter, timer }: Visit): void {
    clearTimeout(timer);
    counter.visits -= 1;
    const next = counter.waiting.shift();
    if (next !== undefined) setImmediate(() => this.#ask(next));
    if (counter.visits === 0) this.#counters.delete(slot);
  }
}

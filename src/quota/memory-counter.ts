import type { OpResult, QuotaOp } from './quota-store.js';

/** How long the count of an ended window is kept, in milliseconds: a clock that is set back by an hour finds it again. */
const GRACE_MS = 65 * 60_000;

/** The two clocks, read once per call. Windows of the calendar follow the wall, everything else the other one. */
export interface Instant {
  wallMs: number;
  monotonicMs: number;
}

/** What a hold with an id has charged to one counter. */
export interface HeldCharge {
  readonly granted: number;
  /** What of it is still charged: 0 once the reservation has been given back. */
  units: number;
  readonly takenMs: number;
  /** Monotonic; Infinity for what is no reservation. */
  readonly expiresMs: number;
}

/** One counter in memory. A level that drains, a sum per window, or what is held: by the op that asks. */
export class MemoryCounter {
  /** Units; of a gcra window a fraction too. */
  used = 0;
  /** Calendar: the window. */
  startMs = 0;
  endMs = 0;
  /** Gcra: when the level was last drained, monotonic. */
  drainedMs: number;
  /** As the last op had them, so that eviction can tell a counter that denies. */
  capacity = 0;
  drainPerMs = 0;
  deniedNeed = 1;
  /** Reservations that may expire. */
  #holds: Set<HeldCharge> | undefined;
  #nextExpiryMs = Number.POSITIVE_INFINITY;
  /** Used since the last look of the eviction. */
  touched = false;
  /** It was taken out: nothing is settled on it any more. */
  gone = false;
  /** Other windows of the same key. */
  older: MemoryCounter | undefined;

  constructor(
    readonly kind: QuotaOp['window']['kind'],
    monotonicMs: number,
  ) {
    this.drainedMs = monotonicMs;
  }

  /** Brings it to this instant: drains the level, gives expired reservations back. */
  bring(op: QuotaOp, now: Instant): void {
    this.capacity = capacityOf(op);
    if (op.window.kind === 'gcra') this.drainPerMs = op.limit / op.window.periodMs;
    this.#advance(now);
  }

  #advance(now: Instant): void {
    if (this.kind === 'gcra') {
      const elapsed = now.monotonicMs - this.drainedMs;
      if (elapsed > 0) this.used = Math.max(0, this.used - elapsed * this.drainPerMs);
      this.drainedMs = now.monotonicMs;
    }
    if (this.#nextExpiryMs > now.monotonicMs || this.#holds === undefined) return;
    let next = Number.POSITIVE_INFINITY;
    for (const held of this.#holds) {
      if (held.expiresMs > now.monotonicMs) next = Math.min(next, held.expiresMs);
      else {
        this.#holds.delete(held);
        this.#giveBack(held.units, held.units, now.monotonicMs - held.takenMs);
        held.units = 0;
      }
    }
    this.#nextExpiryMs = next;
  }

  /**
   * Gives units back. What has drained since they were charged is free already: giving that back too would admit more
   * than the burst.
   */
  #giveBack(units: number, charged: number, elapsedMs: number): void {
    const left = this.kind === 'gcra' ? charged - Math.max(0, elapsedMs) * this.drainPerMs : units;
    this.used = Math.max(0, this.used - Math.max(0, Math.min(units, left)));
  }

  /** Watches over a reservation: unless it is settled, it is given back when it expires. */
  hold(held: HeldCharge): void {
    this.#holds ??= new Set();
    this.#holds.add(held);
    this.#nextExpiryMs = Math.min(this.#nextExpiryMs, held.expiresMs);
  }

  release(held: HeldCharge): void {
    this.#holds?.delete(held);
  }

  /** Milliseconds until the first reservation expires. */
  expiryMs(now: Instant): number {
    return Math.max(0, Math.ceil(this.#nextExpiryMs - now.monotonicMs));
  }

  /** Books the difference between what was charged and what was used. */
  settle(charged: number, actual: number, elapsedMs: number, now: Instant): void {
    if (this.gone || (this.kind === 'calendar' && now.wallMs >= this.endMs)) return;
    if (this.kind === 'concurrent') this.used = Math.max(0, this.used - charged);
    else if (actual >= charged) this.charge(actual - charged);
    else this.#giveBack(charged - actual, charged, elapsedMs);
  }

  charge(units: number): void {
    this.used = Math.min(Number.MAX_SAFE_INTEGER, this.used + units);
  }

  /** Whether taking it away would let through what it denies, or lose a reservation. */
  isNeeded(now: Instant): boolean {
    this.#advance(now);
    if (this.#isHeld()) return true;
    if (this.kind === 'calendar' && now.wallMs >= this.endMs) return false;
    return this.used + this.deniedNeed > this.capacity + (this.kind === 'gcra' ? tolerance(this.capacity) : 0);
  }

  /** Whether nothing can be asked of it any more. */
  isOver(now: Instant): boolean {
    if (this.kind === 'calendar') return now.wallMs >= this.endMs + GRACE_MS;
    this.#advance(now);
    return this.used === 0 && !this.#isHeld();
  }

  #isHeld(): boolean {
    return this.#holds !== undefined && this.#holds.size > 0;
  }
}

/** What fits into the counter at most. */
export function capacityOf(op: QuotaOp): number {
  return op.window.kind === 'gcra' ? op.window.burst : op.limit;
}

/** Units that are free. */
export function freeOf(op: QuotaOp, used: number): number {
  const capacity = capacityOf(op);
  if (op.window.kind !== 'gcra') return Math.max(0, capacity - used);
  return Math.max(0, Math.floor(capacity - used + tolerance(capacity)));
}

/** Rounding of a drained level must not deny at the very instant that a denial named. Only levels are rounded. */
function tolerance(capacity: number): number {
  return Math.min(1e-3, 1e-9 + capacity * 4e-16);
}

/**
 * Where a counter stands.
 *
 * @param used its level or sum. @param expiryMs until its first entry or reservation expires.
 * @param need what must be free; 0 if it was granted.
 */
export function standing(
  op: QuotaOp,
  used: number,
  expiryMs: number,
  nowMs: number,
  need: number,
  granted: number,
): OpResult {
  const resets = resetMs(op, used, expiryMs, nowMs);
  return {
    granted,
    used: op.window.kind === 'gcra' ? Math.max(0, Math.ceil(used - tolerance(op.window.burst))) : used,
    resetMs: resets,
    retryMs: need === 0 || freeOf(op, used) >= need ? 0 : retryMs(op, used, resets, need),
  };
}

function resetMs({ window, limit }: QuotaOp, used: number, expiryMs: number, nowMs: number): number {
  if (window.kind === 'calendar') return window.at(nowMs).endMs - nowMs;
  if (used === 0) return 0;
  if (window.kind === 'concurrent') return expiryMs;
  return limit === 0 ? window.periodMs : Math.ceil((used * window.periodMs) / limit);
}

function retryMs(op: QuotaOp, used: number, resets: number, need: number): number | null {
  const { window } = op;
  if (need > capacityOf(op)) return null;
  if (window.kind === 'calendar') return resets;
  // What is held may end at any moment: a second is a fair guess.
  if (window.kind === 'concurrent') return Math.max(1, Math.min(1_000, resets));
  if (op.limit === 0) return null;
  return Math.max(1, Math.ceil(((used + need - window.burst) * window.periodMs) / op.limit));
}

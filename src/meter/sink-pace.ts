import type { Random } from '../runtime/random.js';

/** Thrown out of every wait when the pipeline gives up delivering. */
export class Halted extends Error {
  override readonly name: string = 'Halted';
}

export type PaceState = 'running' | 'paused' | 'stopped';

interface Sleeper {
  readonly kind: 'backoff' | 'asked';
  wake(): void;
}

const FIRST_BACKOFF_SECONDS = 0.5;
const MAX_BACKOFF_SECONDS = 30;
/** A sink that asks for more is asked again after this time. */
const MAX_WAIT_SECONDS = 24 * 3600;

/** When one sink may be tried again: backoff, pauses and stops. */
export class SinkPace {
  readonly #random: Random;
  readonly #sleepers = new Set<Sleeper>();
  readonly #controller = new AbortController();
  #state: PaceState = 'running';
  #paused: NodeJS.Timeout | undefined;
  /** Resolves when it runs again. */
  #gate: Promise<void> | undefined;
  #open: (() => void) | undefined;

  constructor(random: Random) {
    this.#random = random;
  }

  get state(): PaceState {
    return this.#state;
  }

  /** Aborts when the pipeline gives up. */
  get halted(): AbortSignal {
    return this.#controller.signal;
  }

  /** Resolves when the sink may be tried. @throws Halted */
  async turn(): Promise<void> {
    while (this.#gate !== undefined && !this.halted.aborted) await this.#gate;
    this.#check();
  }

  /**
   * Waits before the next attempt: for as long as the sink asks, else up to 0.5 s · 2^attempt, at most 30 s, with full
   * jitter. There is no last attempt.
   *
   * @throws Halted
   */
  async wait(attempt: number, afterSeconds: number | undefined): Promise<void> {
    const asked = isSeconds(afterSeconds);
    const seconds = asked
      ? Math.min(afterSeconds, MAX_WAIT_SECONDS)
      : this.#fraction() * Math.min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** attempt);
    await new Promise<void>((resolve) => {
      const sleeper: Sleeper = {
        kind: asked ? 'asked' : 'backoff',
        wake: () => {
          clearTimeout(timer);
          this.#sleepers.delete(sleeper);
          resolve();
        },
      };
      const timer = setTimeout(sleeper.wake, seconds * 1000);
      timer.unref();
      this.#sleepers.add(sleeper);
      if (this.halted.aborted) sleeper.wake();
    });
    this.#check();
  }

  /** Nothing more for a while. */
  pause(seconds: number): void {
    if (this.#state === 'stopped') return;
    this.#shut('paused');
    clearTimeout(this.#paused);
    this.#paused = setTimeout(() => this.resume(), Math.min(seconds, MAX_WAIT_SECONDS) * 1000);
    this.#paused.unref();
  }

  /** Nothing more until `resume`. */
  stop(): void {
    clearTimeout(this.#paused);
    this.#shut('stopped');
  }

  /** Goes on at once, whatever it waited for. */
  resume(): void {
    clearTimeout(this.#paused);
    this.#state = 'running';
    this.#open?.();
    for (const sleeper of this.#sleepers) sleeper.wake();
  }

  /** Cuts a backoff short; what a sink asked for is kept. */
  hurry(): void {
    for (const sleeper of this.#sleepers) if (sleeper.kind === 'backoff') sleeper.wake();
  }

  /** Ends every wait and every write under way. */
  halt(): void {
    this.#controller.abort(new Halted('the pipeline is closing'));
    this.resume();
  }

  #shut(state: PaceState): void {
    this.#state = state;
    this.#gate ??= new Promise((resolve) => {
      this.#open = () => {
        this.#gate = undefined;
        this.#open = undefined;
        resolve();
      };
    });
  }

  #check(): void {
    if (this.halted.aborted) throw new Halted('the pipeline is closing');
  }

  /** From 0 to 1. */
  #fraction(): number {
    const [a = 0, b = 0, c = 0] = this.#random(3);
    return (a * 65536 + b * 256 + c) / 2 ** 24;
  }
}

export function isSeconds(value: unknown): value is number {
  return typeof value === 'number' && value >= 0 && value < Number.POSITIVE_INFINITY;
}

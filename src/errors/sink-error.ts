/** What the pipeline does with a batch whose write failed. */
export type SinkAction = 'retry' | 'pause' | 'split' | 'stop';

export interface SinkErrorOptions {
  /**
   * - `retry` (default): again, with backoff.
   * - `pause`: nothing more to this sink for `afterSeconds` (default 60), and an alert: 401, 403.
   * - `split`: halve the batch: 413.
   * - `stop`: nothing more until `pipeline.resume(name)`: 410.
   */
  readonly action?: SinkAction;
  /** Seconds to wait before the next attempt. */
  readonly afterSeconds?: number;
  /** True when the sink may have taken the batch all the same: a time-out after sending. */
  readonly ambiguous?: boolean;
  readonly cause?: unknown;
}

/** Thrown by a sink's `write` to say how the pipeline should go on. Recognise it by `code`. */
export class SinkError extends Error {
  override readonly name: string = 'SinkError';
  readonly code = 'sink_error';
  readonly action: SinkAction;
  readonly afterSeconds?: number;
  readonly ambiguous: boolean;

  constructor(message: string, options: SinkErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.action = options.action ?? 'retry';
    if (options.afterSeconds !== undefined) this.afterSeconds = options.afterSeconds;
    this.ambiguous = options.ambiguous ?? false;
  }
}

/** Whether a value is a sink's error, of whichever copy of this package. */
export function isSinkError(value: unknown): value is SinkError {
  return value instanceof Error && (value as { code?: unknown }).code === 'sink_error';
}

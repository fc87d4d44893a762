/** Whatever has state or a connection. */
export interface Lifecycle {
  /** Resolves when it can be used; rejects when it cannot, or when the signal aborts first. */
  ready(signal?: AbortSignal): Promise<void>;
  /** Ends timers and connections of its own; what it was given stays open. Idempotent. */
  close(signal?: AbortSignal): Promise<void>;
}

/** Milliseconds that a request waits for a part that is not ready yet, before it is answered with 503. */
export const READY_WAIT_MS = 5_000;

/** One denial or change as a store keeps it. Of two with one key the store keeps the later, with the maxima of both. */
export interface RevocationEntry {
  /** 43 characters, the same for the same target. */
  readonly key: string;
  /** What is meant, as JSON: opaque to stores. */
  readonly target: string;
  /** Epoch seconds, at most 4294967295: for ever. */
  readonly before: number;
  /** Epoch seconds after which the store may forget the entry; 4294967295: never. */
  readonly expiresAt: number;
  /** For the operators' own records. */
  readonly reason?: string;
}

/** What came after a cursor. */
export interface RevocationPage {
  readonly entries: readonly RevocationEntry[];
  /** To be handed back to read what comes after. */
  readonly cursor: string;
  /** More is waiting already. */
  readonly more: boolean;
  /**
   * False when the source cannot continue from the given cursor (it was emptied, restored or replaced): the page then
   * begins a snapshot. Without a cursor it does so anyway.
   */
  readonly continued: boolean;
  /** The source's time, in epoch milliseconds: up to then nothing is missing, once `more` is false. */
  readonly asOf: number;
}

/**
 * Where processes share what is denied: one entry per target, in the order of versions. Every `append` gives its entry a
 * version above all versions that any reader may have seen, so that a reader who continues from a cursor misses nothing,
 * and a reader without one gets everything that still holds.
 */
export interface RevocationStore {
  /** Merges the entry into what is kept under its key and moves it to the end: atomic. Resolves when it is durable. */
  append(entry: RevocationEntry, signal: AbortSignal): Promise<void>;
  /** What came after the cursor, or everything that still holds. */
  read(cursor: string | undefined, signal: AbortSignal): Promise<RevocationPage>;
  /**
   * Calls `hint` when something may have been appended, until the returned function is called. It must not throw, takes
   * care of its own connection, and may lose hints: reading now and then is the guarantee.
   */
  subscribe?(hint: () => void): () => Promise<void>;
}

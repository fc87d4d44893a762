import type { UsageEvent } from '../meter/usage-event.js';
import type { SourceRecord } from './source-book.js';

/** The sources of one batch: what had arrived of them before, and what arrives now. */
export class Arrivals {
  readonly #records: ReadonlyMap<string, SourceRecord>;
  readonly #changed = new Set<SourceRecord>();

  /** @param records one for each source of the batch. */
  constructor(records: readonly SourceRecord[]) {
    this.#records = new Map(records.map((record) => [record.source, record]));
  }

  /** Whether the event was entered before, though its row may be gone. */
  had({ source, seq }: UsageEvent): boolean {
    return this.#of(source).arrived.has(seq);
  }

  /** An event was entered. */
  note({ source, seq }: UsageEvent): void {
    const record = this.#of(source);
    record.arrived.add(seq);
    record.count += 1;
    record.last = Math.max(record.last, seq);
    this.#changed.add(record);
  }

  /** The records that are to be saved. */
  changed(): Iterable<SourceRecord> {
    return this.#changed;
  }

  #of(source: string): SourceRecord {
    return this.#records.get(source) as SourceRecord;
  }
}

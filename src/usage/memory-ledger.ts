import type { SourceNote } from '../meter/sink.js';
import type { UsageEvent } from '../meter/usage-event.js';
import { isBookable, verdictsOn } from './bookable.js';
import { addEvent } from './event-totals.js';
import type { Ledger } from './ledger.js';
import { auditOf, completeness, createSourceRecord, enterNote, type SourceRecord } from './source-book.js';
import { matches, parseEventFilter, parseUsageQuery } from './usage-query.js';
import { UsageTotals } from './usage-totals.js';

/**
 * A ledger in memory, for tests and demonstrations: every answer is computed from the events themselves, and all is lost
 * with the process.
 *
 * @param options.name the sink's name. Default `ledger`.
 */
export function memoryLedger({ name = 'ledger' }: { name?: string } = {}): Ledger {
  const events = new Map<string, UsageEvent>();
  /** By id alone, since a correction names nothing else. */
  const originals = new Map<string, UsageEvent>();
  const sources = new Map<string, SourceRecord>();

  function recordOf(source: string): SourceRecord {
    let record = sources.get(source);
    if (record === undefined) {
      record = createSourceRecord(source);
      sources.set(source, record);
    }
    return record;
  }

  function enter(event: UsageEvent): void {
    const key = JSON.stringify([event.source, event.id, Date.parse(event.time)]);
    if (events.has(key)) return;
    events.set(key, event);
    if (event.corrects === undefined) originals.set(event.id, event);
    const record = recordOf(event.source);
    record.arrived.add(event.seq);
    record.count += 1;
    record.last = Math.max(record.last, event.seq);
  }

  return {
    name,
    limits: { maxEvents: 2_000, maxBytes: 4 * 1024 * 1024 },
    async write(batch) {
      const taken = batch.filter(isBookable);
      for (const event of taken) enter(event);
      return verdictsOn(batch, taken);
    },
    async sourceNotes(notes: readonly SourceNote[]) {
      for (const note of notes) enterNote(recordOf(note.source), note);
    },
    async usage(query) {
      const parsed = parseUsageQuery(query);
      const totals = new UsageTotals();
      for (const event of events.values()) {
        const at = Date.parse(event.time);
        if (at < parsed.fromMs || at >= parsed.toMs) continue;
        // A correction has no attribution of its own: it waits for the event that it corrects.
        addEvent(totals, parsed, event, event.corrects === undefined ? event : originals.get(event.corrects));
      }
      return { rows: totals.rows(), ...completeness(sources.values(), parsed.toMs) };
    },
    async audit() {
      return [...sources.values()].map(auditOf).sort((a, b) => (a.source < b.source ? -1 : 1));
    },
    async *events(given) {
      const { fromMs, toMs, ...filter } = parseEventFilter(given);
      const found = [...events.values()]
        .map((event) => ({ event, at: Date.parse(event.time) }))
        .filter(({ event, at }) => at >= fromMs && at < toMs && matches(event, filter))
        .sort((a, b) => a.at - b.at || (a.event.source < b.event.source ? -1 : 1) || a.event.seq - b.event.seq);
      for (const { event } of found) yield event;
    },
    async verify() {
      return [];
    },
    async migrate() {},
    async ready() {},
    async close() {},
  };
}

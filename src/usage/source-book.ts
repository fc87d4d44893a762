import type { SourceNote } from '../meter/sink.js';
import type { SourceAudit, UsageReport } from './ledger.js';
import { SequenceRanges } from './sequence-ranges.js';

/** What the books say about one source. */
export interface SourceRecord {
  readonly source: string;
  /** Sequence numbers of the events that arrived. */
  readonly arrived: SequenceRanges;
  /** Sequence numbers that never come: dead letters, and what preceded the ledger's attachment. */
  readonly excused: SequenceRanges;
  count: number;
  /** The highest number that is known of, from an event or a note. */
  last: number;
  closed: boolean;
  /** Milliseconds: everything admitted before has been delivered, as far as the source said. */
  throughMs: number | undefined;
}

export function createSourceRecord(source: string): SourceRecord {
  return {
    source,
    arrived: new SequenceRanges(),
    excused: new SequenceRanges(),
    count: 0,
    last: 0,
    closed: false,
    throughMs: undefined,
  };
}

/** Enters what a pipeline says about a source. Entering it twice changes nothing. */
export function enterNote(record: SourceRecord, note: SourceNote): void {
  switch (note.kind) {
    case 'closed':
      record.closed = true;
      record.last = Math.max(record.last, note.lastSeq);
      break;
    case 'attached':
      if (note.firstSeq > 1) record.excused.add(1, note.firstSeq - 1);
      break;
    case 'dead_letter':
      record.excused.add(note.seq);
      record.last = Math.max(record.last, note.seq);
      break;
    case 'through':
      record.last = Math.max(record.last, note.lastSeq);
      record.throughMs = Math.max(record.throughMs ?? Number.NEGATIVE_INFINITY, Date.parse(note.time));
      break;
  }
}

/** The audit of one source. */
export function auditOf({ source, arrived, excused, count, last, closed }: SourceRecord): SourceAudit {
  const known = new SequenceRanges(arrived.runs());
  for (const [from, to] of excused.runs()) known.add(from, to);
  return { source, state: closed ? 'closed' : 'open', last, count, missing: known.missing(last) };
}

/** What may be said about the totals until `toMs`, given all sources. */
export function completeness(
  records: Iterable<SourceRecord>,
  toMs: number,
): Pick<UsageReport, 'completeThrough' | 'openSources'> {
  let through: number | undefined = toMs;
  const openSources: string[] = [];
  for (const record of records) {
    const { missing, state } = auditOf(record);
    if (state === 'closed' && missing.length === 0) continue;
    openSources.push(record.source);
    // With a gap, nothing that the source said about itself can be trusted to be here.
    const known: number | undefined = missing.length === 0 ? record.throughMs : undefined;
    through = known === undefined || through === undefined ? undefined : Math.min(through, known);
  }
  return { completeThrough: through === undefined ? undefined : new Date(through), openSources: openSources.sort() };
}

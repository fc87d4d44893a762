import type { Verdict } from '../meter/sink.js';
import type { UsageEvent } from '../meter/usage-event.js';

/** Events before the year 0 or after 9999 have no place in a database's calendar. */
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;

/** Whether a ledger can book an event: its time can be read, and it has an id, a source and a sequence number. */
export function isBookable({ id, source, seq, time }: UsageEvent): boolean {
  return (
    typeof id === 'string' &&
    id !== '' &&
    typeof source === 'string' &&
    source !== '' &&
    Number.isSafeInteger(seq) &&
    seq > 0 &&
    typeof time === 'string' &&
    TIME.test(time) &&
    !Number.isNaN(Date.parse(time))
  );
}

/** The verdicts on a batch whose bookable events were entered. */
export function verdictsOn(events: readonly UsageEvent[], accepts = isBookable): Verdict[] {
  return events.map((event) =>
    accepts(event)
      ? { outcome: 'delivered' }
      : { outcome: 'reject', reason: 'the event has no usable id, source, seq or time' },
  );
}

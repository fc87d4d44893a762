import type { Verdict } from '../meter/sink.js';
import { END_MS } from '../meter/usage-entry.js';
import type { UsageEvent } from '../meter/usage-event.js';

const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;
/** A name that no quantity can have would be taken for one of the roll-ups' own. */
const QUANTITY = /^[A-Za-z_][A-Za-z0-9_.-]{0,63}$/;
/** No control characters and no halves of characters, and short enough for an index. */
const NAME = /^[^\p{Cc}\p{Cs}]{1,200}$/u;

const DELIVERED: Verdict = { outcome: 'delivered' };
const REJECTED: Verdict = {
  outcome: 'reject',
  reason: 'the event has no usable id, source, seq, time, type, billable, quantities or dimensions',
};

/** Whether a ledger can book an event: a pipeline's events all can be. */
export function isBookable(event: UsageEvent): boolean {
  if (typeof event !== 'object' || event === null) return false;
  const { id, source, seq, time, type, billable, corrects, quantities, dimensions } = event;
  return (
    isName(id) &&
    isName(source) &&
    (corrects === undefined || isName(corrects)) &&
    Number.isSafeInteger(seq) &&
    seq > 0 &&
    isTime(time) &&
    typeof type === 'string' &&
    typeof billable === 'boolean' &&
    areQuantities(quantities) &&
    typeof dimensions === 'object' &&
    dimensions !== null
  );
}

/** The verdicts on a batch of which `taken` were entered. */
export function verdictsOn(events: readonly UsageEvent[], taken: readonly UsageEvent[]): Verdict[] {
  if (taken.length === events.length) return events.map(() => DELIVERED);
  const entered = new Set(taken);
  return events.map((event) => (entered.has(event) ? DELIVERED : REJECTED));
}

function isName(value: unknown): boolean {
  return typeof value === 'string' && NAME.test(value);
}

function isTime(value: unknown): boolean {
  if (typeof value !== 'string' || !TIME.test(value)) return false;
  const ms = Date.parse(value);
  return ms >= 0 && ms < END_MS;
}

/** Fractions could not be added exactly. */
function areQuantities(quantities: unknown): boolean {
  return (
    typeof quantities === 'object' &&
    quantities !== null &&
    Object.entries(quantities).every(([name, quantity]) => QUANTITY.test(name) && Number.isSafeInteger(quantity?.value))
  );
}

import { OptionsParser } from '../errors/options-parser.js';
import type { Dimensions, Identity, Resource, Subject } from '../identity/ambient.cjs';
import { isSubjectKind } from '../identity/create-identity.js';
import { OUTCOMES, type Outcome } from '../request/request-state.js';
import { checkQuantity, setDimensions } from '../request/usage-of.js';
import type { Basis, Quantity, UsageRecord } from '../request/usage-record.js';
import type { Intake } from './intake.js';
import { attributionOf, billableByDefault, END_MS, fitsIntoRecord, type UsageEntry } from './usage-entry.js';

/** Amounts by name, with their basis or as `reported`. */
export type StatedQuantities = Readonly<Record<string, number | { readonly value: number; readonly basis?: Basis }>>;

/** A usage event outside a request. Whoever it is attributed to is given as an identity, or field by field. */
export interface UsageDraft {
  readonly type: string;
  /** Attributes the event to this caller. Fields that stand beside it win. */
  readonly identity?: Identity;
  /** Needed, here or in `identity`. */
  readonly authId?: string;
  readonly subject?: Subject;
  readonly issuer?: string;
  readonly verifier?: string;
  readonly tenant?: string;
  readonly clientId?: string;
  readonly tokenId?: string;
  readonly plan?: string;
  readonly resource?: Resource;
  /** When it was used. Default: now. */
  readonly time?: Date;
  readonly requestId?: string;
  readonly status?: number;
  /** Default `complete`. */
  readonly outcome?: Outcome;
  /** Default: status below 500 or absent, and outcome not `unknown`. */
  readonly billable?: boolean;
  readonly durationMs?: number;
  /** Safe integers of at least 0. */
  readonly quantities?: StatedQuantities;
  readonly dimensions?: Partial<Dimensions>;
}

const WHO = ['authId', 'issuer', 'verifier', 'tenant', 'clientId', 'tokenId', 'plan'] as const;
const KEYS: readonly (keyof UsageDraft)[] = [
  'type',
  'identity',
  ...WHO,
  'subject',
  'resource',
  'time',
  'requestId',
  'status',
  'outcome',
  'billable',
  'durationMs',
  'quantities',
  'dimensions',
];
const TYPE = /^[\x20-\x7E]{1,128}$/;
const REQUEST_ID = /^[\x20-\x7E]{1,200}$/;
const EVENT_ID = /^[A-Za-z0-9._-]{1,64}$/;
const MAX_REASON_LENGTH = 500;
const MAX_QUANTITIES = 64;

const NOTHING = {
  head: undefined,
  claims: undefined,
  method: undefined,
  route: undefined,
  counted: false,
} as const;

/** The entry of a draft. @throws TypeError, RangeError that say what is wrong with it. */
export function draftEntry(intake: Intake, given: UsageDraft): UsageEntry {
  const parser = new OptionsParser('record');
  const draft = parser.known(given, KEYS);
  const { identity, resource, time, requestId, status, durationMs } = draft;
  const subject = draft.subject ?? identity?.subject;
  const who: { [K in (typeof WHO)[number]]?: string } & Pick<UsageDraft, 'subject'> = { subject };
  for (const name of WHO) who[name] = draft[name] ?? identity?.[name];
  if (who.authId === undefined) parser.problem('authId is missing: usage that nobody owes cannot be recorded');
  for (const name of WHO) if (who[name] !== undefined) parser.string(name, who[name]);
  if (subject !== undefined && !(isSubjectKind(subject?.kind) && isText(subject.id))) {
    parser.problem('subject must be { kind, id }');
  }
  parser.check(typeof draft.type === 'string' && TYPE.test(draft.type), 'type must be 1 to 128 printable characters');
  if (resource !== undefined && !(isText(resource?.type) && isText(resource.id))) {
    parser.problem('resource must be { type, id }');
  }
  const timeMs = time === undefined ? intake.clock.now() : time instanceof Date ? time.getTime() : Number.NaN;
  parser.check(timeMs >= 0 && timeMs < END_MS, 'time must be a Date from 1970 to 9998');
  if (requestId !== undefined && !(isText(requestId) && REQUEST_ID.test(requestId))) {
    parser.problem('requestId must be 1 to 200 printable ASCII characters');
  }
  if (status !== undefined) parser.number('status', status, 200, { min: 100, max: 999, integer: true });
  if (durationMs !== undefined) parser.number('durationMs', durationMs, 0);
  const outcome = parser.oneOf('outcome', draft.outcome, OUTCOMES, 'complete');
  const billable = parser.oneOf('billable', draft.billable, [true, false], billableByDefault(status, outcome));
  const attribution = attributionOf(who);
  parser.check(fitsIntoRecord(attribution, undefined, resource), 'the attribution is too large for an event');
  parser.done();
  const usage: UsageRecord = { quantities: undefined, dimensions: undefined, admission: undefined, closed: false };
  if (draft.dimensions !== undefined) setDimensions(usage, draft.dimensions);
  return {
    ...NOTHING,
    id: intake.nextId(),
    type: JSON.stringify(draft.type),
    timeMs,
    who: attribution,
    resource: resource === undefined ? undefined : { type: resource.type, id: resource.id },
    requestId,
    status,
    outcome,
    billable,
    durationMs,
    quantities: readQuantities(draft.quantities ?? {}, 0),
    dimensions: usage.dimensions,
    corrects: undefined,
    reason: undefined,
  };
}

/** The entry of a correction. @throws TypeError, RangeError that say what is wrong with it. */
export function correctionEntry(
  intake: Intake,
  eventId: string,
  quantities: StatedQuantities,
  given: { readonly reason: string },
): UsageEntry {
  const parser = new OptionsParser('correct');
  const { reason } = parser.known(given, ['reason']);
  parser.check(typeof eventId === 'string' && EVENT_ID.test(eventId), 'the first argument must be the id of an event');
  if (parser.string('reason', reason).length > MAX_REASON_LENGTH) {
    parser.problem(`reason must have at most ${MAX_REASON_LENGTH} characters`);
  }
  parser.done();
  return {
    ...NOTHING,
    id: intake.nextId(),
    type: '"correction"',
    timeMs: intake.clock.now(),
    who: '',
    resource: undefined,
    requestId: undefined,
    status: undefined,
    outcome: 'complete',
    billable: true,
    durationMs: undefined,
    quantities: readQuantities(quantities, Number.MIN_SAFE_INTEGER),
    dimensions: undefined,
    corrects: eventId,
    reason,
  };
}

/** A copy: the caller may change its own afterwards. */
function readQuantities(given: StatedQuantities, min: number): Record<string, Quantity> {
  if (typeof given !== 'object' || given === null) throw new TypeError('usage: quantities must be an object');
  const quantities: Record<string, Quantity> = {};
  for (const [name, stated] of Object.entries(given)) {
    if (stated === undefined) continue;
    const { value, basis = 'reported' } = typeof stated === 'object' && stated !== null ? stated : { value: stated };
    checkQuantity(name, value, basis, min);
    quantities[name] = { value, basis };
  }
  if (Object.keys(quantities).length > MAX_QUANTITIES) {
    throw new RangeError(`usage: at most ${MAX_QUANTITIES} quantities`);
  }
  return quantities;
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

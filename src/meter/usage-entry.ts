import type { Identity, Resource } from '../identity/ambient.cjs';
import type { Outcome } from '../request/request-state.js';
import type { Quantity } from '../request/usage-record.js';

/** An event on its way to the log: what is known about it, with all formatting left for later. */
export interface UsageEntry {
  readonly id: string;
  /** The type, as JSON. */
  readonly type: string;
  /** The instant of the admission, in milliseconds since the epoch. */
  readonly timeMs: number;
  /** The attribution as JSON members, each with a comma before it. Empty on a correction. */
  readonly who: string;
  readonly resource: Partial<Resource> | undefined;
  /** The edge's headers, as JSON. */
  readonly claims: string | undefined;
  readonly requestId: string | undefined;
  readonly method: string | undefined;
  /** Everything up to the end of the admission as JSON members, made when first needed. */
  head: string | undefined;
  readonly route: string | undefined;
  readonly status: number | undefined;
  readonly outcome: Outcome;
  readonly billable: boolean;
  readonly durationMs: number | undefined;
  /** An event of `meter()`, which counts one request. */
  readonly counted: boolean;
  readonly quantities: Readonly<Record<string, Readonly<Quantity>>> | undefined;
  readonly dimensions: Readonly<Record<string, string | number | boolean>> | undefined;
  readonly corrects: string | undefined;
  readonly reason: string | undefined;
}

/** Events are of before this instant: what every database's calendar has, with a month to spare. */
export const END_MS = Date.UTC(9999, 0, 1);

type Who = Partial<
  Pick<Identity, 'authId' | 'subject' | 'issuer' | 'verifier' | 'tenant' | 'clientId' | 'tokenId' | 'plan'>
>;

/** The attribution of an event as JSON members, each with a comma before it. */
export function attributionOf(who: Who): string {
  const { authId, subject, issuer, verifier, tenant, clientId, tokenId, plan } = who;
  const stated = subject === undefined ? undefined : { kind: subject.kind, id: subject.id };
  const members = JSON.stringify({ authId, subject: stated, issuer, verifier, tenant, clientId, tokenId, plan });
  return members === '{}' ? '' : `,${members.slice(1, -1)}`;
}

/**
 * Whether an event is billed unless the app says otherwise: by its status, where an absent one counts as below 500, and not
 * where nobody knows its end. A response that was cut off counts: else a client that stops reading until a time-out ends
 * the connection would have what it read for nothing.
 */
export function billableByDefault(status: number | undefined, outcome: Outcome): boolean {
  return outcome !== 'unknown' && (status === undefined || status < 500);
}

/** Characters of JSON that fit into a record of the log (64 KiB) whatever they are, beside the usage. */
const FITS_LENGTH = 15_000;
const FITS_BYTES = 46_000;

/** Whether the attribution of an event leaves room for the usage in a record of the log. */
export function fitsIntoRecord(who: string, claims: string | undefined, resource: Partial<Resource> | undefined) {
  const length = who.length + (claims?.length ?? 0) + (resource?.type?.length ?? 0) + (resource?.id?.length ?? 0);
  // Worst cases: three bytes for a character, and six for one that JSON escapes, which counts in the resource alone.
  if (length <= FITS_LENGTH / 2) return true;
  return (
    Buffer.byteLength(who) + Buffer.byteLength(claims ?? '') + Buffer.byteLength(JSON.stringify(resource ?? {})) <=
    FITS_BYTES
  );
}

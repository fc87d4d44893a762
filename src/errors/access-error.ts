import type { BillingField, MissingField } from './missing-field.js';

/** Why a request was refused. Codes are public API: one line of docs each, never reused. */
export type AccessErrorCode =
  | 'missing_credentials'
  | 'invalid_request'
  | 'invalid_token'
  | 'insufficient_scope'
  | 'subject_not_allowed'
  | 'tenant_mismatch'
  | 'resource_mismatch'
  | 'network_not_allowed'
  | 'missing_billing_fields'
  | 'quota_exceeded'
  | 'verifier_unavailable'
  | 'revocation_stale'
  | 'quota_unavailable'
  | 'metering_unavailable'
  | 'middleware_order';

interface Refusal {
  readonly status: 400 | 401 | 403 | 429 | 500 | 503;
  readonly detail: string;
}

/** Fixed text per code: nothing that a caller sent ever reaches a message. */
const REFUSALS: Readonly<Record<AccessErrorCode, Refusal>> = {
  missing_credentials: { status: 401, detail: 'This resource needs a credential, and none was shown.' },
  invalid_request: { status: 400, detail: 'The request is malformed, repeats a credential or shows more than one.' },
  invalid_token: {
    status: 401,
    detail: 'The credential is malformed, unknown, expired, revoked or not meant for this API.',
  },
  insufficient_scope: { status: 403, detail: 'The credential lacks a scope that this resource needs.' },
  subject_not_allowed: { status: 403, detail: 'This kind of subject may not use this resource.' },
  tenant_mismatch: { status: 403, detail: 'The credential belongs to another tenant.' },
  resource_mismatch: { status: 403, detail: 'The credential is not valid for this resource.' },
  network_not_allowed: { status: 403, detail: 'This resource may not be used from this network.' },
  missing_billing_fields: {
    status: 400,
    detail: 'The request cannot be attributed: fields that billing needs are missing.',
  },
  quota_exceeded: { status: 429, detail: 'A quota of this caller is used up.' },
  verifier_unavailable: { status: 503, detail: 'The credential cannot be verified at the moment.' },
  revocation_stale: { status: 503, detail: 'It cannot be told at the moment whether the credential is revoked.' },
  quota_unavailable: { status: 503, detail: 'The quota cannot be decided at the moment.' },
  metering_unavailable: { status: 503, detail: 'The request cannot be accounted for at the moment.' },
  middleware_order: { status: 500, detail: 'The middlewares of this route are mounted in the wrong order.' },
};

/** Seconds that a client is told to wait when an outage has no better figure. */
const DEFAULT_RETRY_AFTER_SECONDS = 5;

export interface AccessErrorOptions {
  /** The precise reason, for operators (`onReject`). It must hold nothing out of a credential. */
  readonly reason?: string;
  /** What caused it, for operators. It must hold nothing out of a credential. */
  readonly cause?: unknown;
  /** Seconds until it is worth trying again, at least 1. Default: 5 for the 503 codes, none for the others. */
  readonly retryAfterSeconds?: number;
  /** With `insufficient_scope`: every scope that the route needs. */
  readonly scopes?: readonly string[];
  /** With `missing_billing_fields`: every field that is missing. */
  readonly missing?: readonly MissingField[];
  /** With `quota_exceeded`: the names of the policies that refused. */
  readonly violatedPolicies?: readonly string[];
}

/**
 * A refused request. Recognise it by `code`, never by `instanceof`: an ESM and a CJS copy of this package may live in
 * one process.
 *
 * `message` and `detail` are fixed text per code; `reason` is the precise cause and is not enumerable, so that it is
 * never serialised by accident.
 */
export class AccessError extends Error {
  override readonly name: string = 'AccessError';
  readonly code: AccessErrorCode;
  /** The HTTP status, by the code. */
  readonly status: number;
  /** The same as `status`, under the name that Express's and Koa's error handlers also read. */
  readonly statusCode: number;
  /** Response headers that belong to this refusal, by lower-case name. */
  readonly headers: Readonly<Record<string, string>>;
  /** Whether `message` may be shown to the caller: true below 500. */
  readonly expose: boolean;
  readonly detail: string;
  /** The precise reason, for operators. Not enumerable. */
  declare readonly reason: string | undefined;
  /** With `missing_billing_fields`: every field that is missing. */
  readonly missing?: readonly MissingField[];
  /** With `quota_exceeded`: the names of the policies that refused. */
  readonly violatedPolicies?: readonly string[];
  /** With `insufficient_scope`: every scope that the route needs. */
  readonly scopes?: readonly string[];

  /** @throws TypeError for a code that does not exist, so that a typo never turns into an answer. */
  constructor(code: AccessErrorCode, options: AccessErrorOptions = {}) {
    const refusal = Object.hasOwn(REFUSALS, code) ? REFUSALS[code] : undefined;
    if (refusal === undefined) throw new TypeError('AccessError: unknown code');
    super(refusal.detail, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.status = refusal.status;
    this.statusCode = refusal.status;
    this.detail = refusal.detail;
    this.expose = refusal.status < 500;
    const headers: Record<string, string> = { 'cache-control': 'no-store' };
    const retryAfter = options.retryAfterSeconds ?? (refusal.status === 503 ? DEFAULT_RETRY_AFTER_SECONDS : undefined);
    if (retryAfter !== undefined && Number.isFinite(retryAfter)) {
      headers['retry-after'] = String(Math.max(1, Math.ceil(retryAfter)));
    }
    this.headers = headers;
    if (options.missing !== undefined) this.missing = options.missing;
    if (options.violatedPolicies !== undefined) this.violatedPolicies = options.violatedPolicies;
    if (options.scopes !== undefined) this.scopes = options.scopes;
    Object.defineProperty(this, 'reason', { value: options.reason, enumerable: false });
  }
}

/** Whether a value is a refusal of this package, of whichever copy of it. */
export function isAccessError(value: unknown): value is AccessError {
  if (!(value instanceof Error) || value.name !== 'AccessError') return false;
  const code = (value as { code?: unknown }).code;
  return typeof code === 'string' && Object.hasOwn(REFUSALS, code);
}

export type { BillingField, MissingField };

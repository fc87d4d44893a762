import { type ServerResponse, STATUS_CODES } from 'node:http';
import type { AccessError } from '../errors/access-error.js';

/** Registered problem type of an exhausted quota (draft-ietf-httpapi-ratelimit-headers). */
const QUOTA_EXCEEDED = 'https://iana.org/assignments/http-problem-types#quota-exceeded';

/** A refusal as problem details (RFC 9457), with `code` as an extension member. */
export function problemDetails(error: AccessError): Record<string, unknown> {
  return {
    ...(error.code === 'quota_exceeded' ? { type: QUOTA_EXCEEDED } : {}),
    title: STATUS_CODES[error.status],
    status: error.status,
    detail: error.detail,
    code: error.code,
    ...(error.missing === undefined ? {} : { missing: error.missing }),
    ...(error.violatedPolicies === undefined ? {} : { 'violated-policies': error.violatedPolicies }),
  };
}

/** Answers with JSON. Does nothing when the response is already over; ends it when its headers are out. */
export function answerJson(
  res: ServerResponse,
  status: number,
  headers: Readonly<Record<string, string>>,
  body: unknown,
  contentType = 'application/json',
): void {
  if (res.writableEnded || res.destroyed) return;
  if (res.headersSent) {
    res.destroy();
    return;
  }
  const text = Buffer.from(JSON.stringify(body));
  res.statusCode = status;
  for (const [name, value] of Object.entries(headers)) res.setHeader(name, value);
  res.setHeader('content-type', contentType);
  res.setHeader('content-length', text.length);
  res.end(text);
}

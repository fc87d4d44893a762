import { type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http';
import { isRegistryError } from '../errors/registry-error.js';
import { answerJson } from '../http/problem.js';

/** A request to the admin API that is refused before it reaches the registry. */
export class AdminProblem extends Error {
  readonly status: number;
  readonly code: string;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, code: string, message: string, headers: Readonly<Record<string, string>> = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.headers = headers;
  }
}

/** Seconds that a client is told to wait while the store or the revocations are out of reach. */
const RETRY_AFTER_SECONDS = 5;

/**
 * Answers with problem details (RFC 9457), whose `problems` lists everything that is wrong with the input. What is neither
 * a refusal of the registry nor of this API is an outage: 503, without its message, which may be a driver's.
 *
 * @returns whether it was an outage.
 */
export function answerProblem(req: IncomingMessage, res: ServerResponse, error: unknown): boolean {
  if (isRegistryError(error)) {
    const { status, code, problems } = error;
    answer(req, res, { status, code, detail: problems.join('; '), problems });
    return false;
  }
  if (error instanceof AdminProblem) {
    const { status, code, message, headers } = error;
    answer(req, res, { status, code, detail: message, problems: [message] }, headers);
    return false;
  }
  const detail = 'The registry cannot be reached, or cannot tell others of the change: repeat the request.';
  const headers = { 'retry-after': String(RETRY_AFTER_SECONDS) };
  answer(req, res, { status: 503, code: 'registry_unavailable', detail }, headers);
  return true;
}

function answer(
  req: IncomingMessage,
  res: ServerResponse,
  problem: { readonly status: number; readonly [member: string]: unknown },
  headers: Readonly<Record<string, string>> = {},
): void {
  // What was not read of a body would be taken for the next request.
  const unread: Record<string, string> = req.complete ? {} : { connection: 'close' };
  const body = { title: STATUS_CODES[problem.status], ...problem };
  answerJson(
    res,
    problem.status,
    { 'cache-control': 'no-store', ...unread, ...headers },
    body,
    'application/problem+json',
  );
}

import type { IncomingMessage, ServerResponse } from 'node:http';

/** What Express, Connect and a hand-written chain over `node:http` call to go on. */
export type Next = (error?: unknown) => void;

/**
 * A Connect middleware: it uses nothing but Node's own request and response.
 *
 * @typeParam Req what the callbacks of the middleware were written for, e.g. Express's `Request`.
 */
export type Middleware<Req extends IncomingMessage = IncomingMessage> = (
  req: Req,
  res: ServerResponse,
  next: Next,
) => void;

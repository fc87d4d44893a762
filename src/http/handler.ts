import type { IncomingMessage, ServerResponse } from 'node:http';

/** What Express, Connect and a hand-written chain over `node:http` call to go on. */
export type Next = (error?: unknown) => void;

/** A Connect middleware: it uses nothing but Node's own request and response. */
export type Middleware = (req: IncomingMessage, res: ServerResponse, next: Next) => void;

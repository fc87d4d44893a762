import type { IncomingMessage, ServerResponse } from 'node:http';
import { isAccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import { RegistryError } from '../errors/registry-error.js';
import type { Next } from '../http/middleware.js';
import { answerJson, problemDetails } from '../http/problem.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import type { TokenRegistry } from '../tokens/token-registry.js';
import type { Ledger, UsageKey, UsageQuery } from '../usage/ledger.js';
import { AdminProblem, answerProblem } from './admin-problem.js';
import { readJsonBody } from './json-body.js';
import { type Guard, runGuards } from './run-guard.js';

export interface AdminRouterOptions {
  readonly registry: TokenRegistry;
  /**
   * Who may administer: a middleware of the app, or several in order, e.g. `[authenticate(…), requireScope('clients:admin')]`.
   * Nothing is served to whom it does not call `next()` for.
   */
  readonly guard: Guard | readonly Guard[];
  /** With one, `GET /clients/:id/usage` is served. */
  readonly ledger?: Pick<Ledger, 'usage'>;
  /** Longest body, in bytes. Default 262144. */
  readonly maxBodyBytes?: number;
  /** Told of what was answered with 503: a store or revocations that are out of reach. */
  readonly onError?: (error: unknown, req: IncomingMessage) => void;
  readonly clock?: Clock;
}

/** A handler of Express, Connect and `node:http`; without a `next` it answers 404 for paths that are not its own. */
export type AdminHandler = (req: IncomingMessage, res: ServerResponse, next?: Next) => void;

interface Answer {
  readonly status: number;
  readonly body?: unknown;
  readonly location?: string;
}

interface Call {
  readonly id: string;
  readonly query: Readonly<Record<string, unknown>>;
  body(): Promise<Record<string, unknown>>;
}

type Route = readonly [path: RegExp, methods: Readonly<Partial<Record<string, (call: Call) => Promise<Answer>>>>];

/**
 * The registry over HTTP, as JSON, behind the app's own guard. Mount it: `app.use('/admin', adminRouter({ registry, guard }))`.
 *
 * - `GET, POST /clients`, `GET, PATCH, DELETE /clients/:id`
 * - `GET, POST /clients/:id/tokens`, `GET /clients/:id/usage?from=&to=&interval=&groupBy=` (with a ledger; by default this
 *   month in UTC, as one row)
 * - `GET /tokens`, `GET, PATCH, DELETE /tokens/:id` (revokes), `POST /tokens/:id/rotate`
 *
 * Lists take `?limit=&cursor=` and are `{ items, nextCursor? }`. A list in a `PATCH` replaces the whole list, `[]` clears it,
 * what is absent stays, `null` takes a field away. 201 for what was created (tokens: `{ token, record }`, the raw token this
 * once), 204 for what was deleted or revoked. Refusals are problem details whose `problems` names everything that is wrong:
 * 400, 404, 405, 409 (name taken, concurrent change), 413, 415; 503 when the registry is out of reach.
 *
 * @throws TypeError that lists every problem of the options: a missing guard above all.
 */
export function adminRouter(given: AdminRouterOptions): AdminHandler {
  const { registry, guards, ledger, maxBodyBytes, onError, clock } = parseOptions(given);
  const routes = routesOf(registry, ledger, clock);

  return function serveAdmin(req, res, next = (error) => answerUnserved(req, res, error)) {
    const [path = '', search = ''] = splitOnce(req.url ?? '', '?');
    for (const [pattern, methods] of routes) {
      const match = pattern.exec(path);
      if (match === null) continue;
      const [, id = ''] = match;
      return runGuards(guards, req, res, next, () => void serve(methods, id, search, req, res));
    }
    next();
  };

  async function serve(
    methods: Route[1],
    id: string,
    search: string,
    req: IncomingMessage,
    res: ServerResponse,
  ): Promise<void> {
    try {
      const method = req.method === 'HEAD' ? 'GET' : (req.method ?? '');
      const handler = Object.hasOwn(methods, method) ? methods[method] : undefined;
      if (handler === undefined) {
        const allow = Object.keys(methods).join(', ');
        throw new AdminProblem(405, 'method_not_allowed', `the methods here are ${allow}`, { allow });
      }
      const call = { id, query: queryOf(search), body: () => readJsonBody(req, maxBodyBytes) };
      const { status, body, location } = await handler(call);
      const headers: Record<string, string> = { 'cache-control': 'no-store' };
      if (location !== undefined) headers.location = `${baseOf(req)}${location}`;
      if (res.writableEnded || res.destroyed) return;
      if (body !== undefined) return answerJson(res, status, headers, plain(body));
      res.writeHead(status, headers).end();
    } catch (error) {
      if (!answerProblem(req, res, error)) return;
      try {
        onError?.(error, req);
      } catch {
        // Whoever listens must not change the answer.
      }
    }
  }
}

function routesOf(registry: TokenRegistry, ledger: AdminRouterOptions['ledger'], clock: Clock): Route[] {
  const routes: Route[] = [
    [
      /^\/clients\/?$/,
      {
        GET: async ({ query }) => ({ status: 200, body: await registry.listClients(query) }),
        POST: async ({ body }) => {
          const client = await registry.createClient((await body()) as never);
          return { status: 201, body: client, location: `/clients/${client.id}` };
        },
      },
    ],
    [
      /^\/clients\/([^/]+)\/?$/,
      {
        GET: async ({ id }) => ({ status: 200, body: await found(registry.getClient(id)) }),
        PATCH: async ({ id, body }) => ({ status: 200, body: await registry.updateClient(id, await body()) }),
        DELETE: async ({ id }) => {
          await registry.deleteClient(id);
          return { status: 204 };
        },
      },
    ],
    [
      /^\/clients\/([^/]+)\/tokens\/?$/,
      {
        GET: async ({ id, query }) => {
          await found(registry.getClient(id));
          return { status: 200, body: await registry.listTokens({ ...query, clientId: id }) };
        },
        POST: async ({ id, body }) => {
          const input = await body();
          if (input.clientId !== undefined && input.clientId !== id) {
            throw new AdminProblem(400, 'invalid_input', 'clientId is not the client of the path');
          }
          const issued = await registry.issueToken({ ...input, clientId: id } as never);
          return { status: 201, body: issued, location: `/tokens/${issued.record.id}` };
        },
      },
    ],
    [/^\/tokens\/?$/, { GET: async ({ query }) => ({ status: 200, body: await registry.listTokens(query) }) }],
    [
      /^\/tokens\/([^/]+)\/?$/,
      {
        GET: async ({ id }) => ({ status: 200, body: await found(registry.getToken(id)) }),
        PATCH: async ({ id, body }) => ({ status: 200, body: await registry.updateToken(id, await body()) }),
        DELETE: async ({ id }) => {
          await registry.revokeToken(id);
          return { status: 204 };
        },
      },
    ],
    [
      /^\/tokens\/([^/]+)\/rotate\/?$/,
      {
        POST: async ({ id, body }) => {
          const issued = await registry.rotateToken(id, await body());
          return { status: 201, body: issued, location: `/tokens/${issued.record.id}` };
        },
      },
    ],
  ];
  if (ledger !== undefined) {
    routes.push([/^\/clients\/([^/]+)\/usage\/?$/, { GET: (call) => usage(registry, ledger, clock, call) }]);
  }
  return routes;
}

/** A deleted client's usage is still known: it is asked about before it is called unknown. */
async function usage(
  registry: TokenRegistry,
  ledger: Pick<Ledger, 'usage'>,
  clock: Clock,
  { id, query }: Call,
): Promise<Answer> {
  const now = new Date(clock.now());
  const { groupBy = 'clientId', ...rest } = query;
  const asked = {
    from: new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth())),
    to: now,
    ...rest,
    groupBy: String(groupBy).split(',') as UsageKey[],
    filter: { clientId: id },
  } as UsageQuery;
  let report: Awaited<ReturnType<Ledger['usage']>>;
  try {
    report = await ledger.usage(asked);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    throw new AdminProblem(400, 'invalid_input', error.message);
  }
  if (report.rows.length === 0) await found(registry.getClient(id));
  return { status: 200, body: report };
}

async function found<T>(record: Promise<T | undefined>): Promise<T> {
  const result = await record;
  if (result === undefined) throw new RegistryError('not_found', ['there is no such record']);
  return result;
}

/** The parameters of a query; `limit` as a number. */
function queryOf(search: string): Record<string, unknown> {
  const query: Record<string, unknown> = Object.fromEntries(new URLSearchParams(search));
  if (typeof query.limit === 'string' && /^\d{1,6}$/.test(query.limit)) query.limit = Number(query.limit);
  return query;
}

/** What the app mounted this under, where the framework says so. */
function baseOf(req: IncomingMessage): string {
  const { baseUrl } = req as { baseUrl?: unknown };
  return typeof baseUrl === 'string' ? baseUrl : '';
}

/** Big integers as numbers where these are exact, else as text. */
function plain(body: unknown): unknown {
  return JSON.parse(
    JSON.stringify(body, (_, value: unknown) => {
      if (typeof value !== 'bigint') return value;
      const number = Number(value);
      return Number.isSafeInteger(number) ? number : String(value);
    }),
  );
}

function splitOnce(text: string, separator: string): [string, string] {
  const at = text.indexOf(separator);
  return at === -1 ? [text, ''] : [text.slice(0, at), text.slice(at + 1)];
}

/** Without a framework behind it. */
function answerUnserved(req: IncomingMessage, res: ServerResponse, error: unknown): void {
  if (isAccessError(error)) {
    return answerJson(res, error.status, error.headers, problemDetails(error), 'application/problem+json');
  }
  answerProblem(req, res, error ?? new AdminProblem(404, 'not_found', 'there is nothing here'));
}

function parseOptions(given: AdminRouterOptions) {
  const parser = new OptionsParser('adminRouter');
  const options = parser.known(given, ['registry', 'guard', 'ledger', 'maxBodyBytes', 'onError', 'clock']);
  const { registry, guard, ledger, onError, clock = systemClock } = options;
  parser.check(typeof registry?.rotateToken === 'function', 'registry must come from createTokenRegistry');
  const guards = (Array.isArray(guard) ? [...guard] : [guard]) as Guard[];
  const guarded = guards.length > 0 && guards.every((each) => typeof each === 'function');
  parser.check(guarded, 'guard must be a middleware that lets administrators through, and nobody else');
  if (ledger !== undefined) parser.check(typeof ledger?.usage === 'function', 'ledger must be a ledger');
  const maxBodyBytes = parser.number('maxBodyBytes', options.maxBodyBytes, 262_144, { min: 1, integer: true });
  parser.optionalFunction('onError', onError);
  parser.done();
  return { registry, guards, ledger, maxBodyBytes, onError, clock };
}

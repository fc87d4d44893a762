// A proxy in front of model servers, behind an edge that authenticates and says in X-Saturn-* headers who is calling. It does
// not authenticate: it trusts the named edge, refuses what cannot be billed before any upstream work, and writes one event for
// each request that it serves, with the tokens that the stream was made of.
import { createServer, type ServerResponse, request as upstreamRequest } from 'node:http';
import type { AddressInfo } from 'node:net';
import express from 'express';
import pg from 'pg';
import { authenticate, createPipeline, edgeVerifier, meter, shutdown, stripEdgeHeaders, usageOf } from 'tollkeeper';
import { postgresLedger } from 'tollkeeper/postgres';

export interface PhoebeSettings {
  readonly databaseUrl: string;
  readonly upstream: string;
  /** The addresses of the edge. */
  readonly edge: readonly string[];
  readonly spoolDirectory: string;
}

export async function startPhoebe({ databaseUrl, upstream, edge, spoolDirectory }: PhoebeSettings) {
  const pool = new pg.Pool({ connectionString: databaseUrl, max: 4, connectionTimeoutMillis: 1_000 });
  pool.on('error', () => {});
  const ledger = postgresLedger(pool);
  // The spool is durable before a model server hears of a request.
  const pipeline = createPipeline({ sinks: [ledger], spool: { directory: spoolDirectory }, source: 'phoebe' });
  await pipeline.ready();

  const prefix = 'x-saturn-';
  const trust = { peers: edge };
  const app = express();
  app.use(
    stripEdgeHeaders({ prefix, trust }),
    authenticate({
      verifiers: [
        edgeVerifier({
          prefix,
          trust,
          map: {
            authId: 'x-saturn-auth-id',
            subject: 'x-saturn-user-id',
            tenant: 'x-saturn-org-id',
            'resource.id': 'x-saturn-resource-id',
            'resource.type': 'x-saturn-resource-type',
          },
        }),
      ],
    }),
  );
  const metered = meter({ pipeline, type: 'completion', require: ['authId', 'resource.id'] });
  app.post('/v1/completions', metered, (req, res) => {
    const forward = upstreamRequest(`${upstream}${req.url}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
    });
    forward.on('error', () => fault(res));
    forward.on('response', (answer) => {
      if ((answer.statusCode ?? 502) >= 500) {
        answer.resume();
        return fault(res);
      }
      res.writeHead(answer.statusCode ?? 200, {
        'content-type': answer.headers['content-type'] ?? 'application/octet-stream',
      });
      // Every data line is one token: what was streamed is billed, also when the client leaves in the middle. A chunk may end
      // anywhere in a line: `tail` is one character shorter than what is looked for, so that nothing is found twice.
      let tail = '\n';
      answer.setEncoding('utf8').on('data', (chunk: string) => {
        const text = tail + chunk;
        tail = text.slice(-6);
        const tokens = text.split('\ndata: ').length - 1;
        if (tokens > 0 && !res.destroyed) usageOf(req).add('output_tokens', tokens);
      });
      answer.pipe(res);
      answer.on('error', () => res.destroy());
    });
    res.on('close', () => forward.destroy());
    req.pipe(forward);
  });

  const server = createServer(app);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return { port, stop: () => shutdown({ server, parts: [pipeline], drainSeconds: 2 }).finally(() => pool.end()) };
}

/** An upstream fault bills nothing. */
function fault(res: ServerResponse): void {
  if (res.headersSent) res.destroy();
  else res.writeHead(502, { 'content-type': 'application/json' }).end('{"error":"the model server failed"}');
}

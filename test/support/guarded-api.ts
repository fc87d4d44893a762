import { Agent, createServer, type IncomingHttpHeaders, request } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type AccessError, type AuthenticateOptions, authenticate, type Identity, identityOf } from 'tollkeeper';

export interface ApiAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  /** The code of a refusal. */
  readonly code: string | undefined;
  /** The identity that the handler saw. */
  readonly identity: (Omit<Identity, 'scopes'> & { readonly scopes: readonly string[] }) | undefined;
}

/** An API behind `authenticate()` over real HTTP. */
export interface GuardedApi {
  readonly url: string;
  /** A request with a bearer token, or with the headers as given. */
  get(credential: string | Record<string, string>): Promise<ApiAnswer>;
  /** Why requests were refused, in order. */
  readonly reasons: (string | undefined)[];
  /** How often the handler ran. */
  readonly handled: number;
  close(): Promise<void>;
}

/** The handler answers with the identity as JSON. */
export async function guardedApi(options: AuthenticateOptions): Promise<GuardedApi> {
  const reasons: (string | undefined)[] = [];
  let handled = 0;
  const guard = authenticate({ onReject: (error: AccessError) => reasons.push(error.reason), ...options });
  const agent = new Agent({ keepAlive: true });
  // Above what Node takes by default, so that it is the middleware that answers.
  const server = createServer({ maxHeaderSize: 1_048_576 }, (req, res) => {
    guard(req, res, () => {
      handled += 1;
      res.end(JSON.stringify({ identity: identityOf(req) }));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    url,
    reasons,
    get handled() {
      return handled;
    },
    get(credential) {
      const headers = typeof credential === 'string' ? { authorization: `Bearer ${credential}` } : credential;
      return new Promise((resolve, reject) => {
        const sent = request(url, { agent, headers }, (res) => {
          let text = '';
          res.setEncoding('utf8');
          res.on('data', (chunk) => {
            text += chunk;
          });
          res.on('error', reject);
          res.on('end', () => {
            const { code, identity } = text.startsWith('{') ? JSON.parse(text) : {};
            resolve({ status: res.statusCode ?? 0, headers: res.headers, text, code, identity });
          });
        });
        sent.on('error', reject);
        sent.end();
      });
    },
    async close() {
      agent.destroy();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

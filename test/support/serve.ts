import { createServer, type RequestListener, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Served {
  /** Without a slash at the end. */
  readonly url: string;
  readonly port: number;
  readonly server: Server;
  /** Ends open connections too. */
  close(): Promise<void>;
}

/** Listens with a handler, or an Express or Connect app, on a port of 127.0.0.1 that the system chooses. */
export async function serve(handler: RequestListener): Promise<Served> {
  // `createServer` takes an object for its options, and would then answer nobody.
  if (typeof handler !== 'function') throw new TypeError('serve: a handler is needed');
  const server = createServer(handler);
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    port,
    server,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

import { randomInt } from 'node:crypto';
import { createServer } from 'node:net';

/** Below the ephemeral range: no outgoing connection can take the port of a server that is down for a moment. */
const FIRST = 12_000;
const LAST = 21_999;

/**
 * A port of 127.0.0.1 that nobody listens on at this moment. Another process may take it before the caller does: start the
 * server with it, and choose again when the port turns out to be busy.
 */
export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < 100; attempt += 1) {
    const port = randomInt(FIRST, LAST + 1);
    if (await isFree(port)) return port;
  }
  throw new Error(`no free port between ${FIRST} and ${LAST}`);
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = createServer();
    probe.once('error', () => resolve(false));
    probe.listen({ host: '127.0.0.1', port, exclusive: true }, () => probe.close(() => resolve(true)));
  });
}

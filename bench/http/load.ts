import { connect, type Socket } from 'node:net';

/**
 * The load, in a process of its own: keep-alive connections that each send the next request when the answer is there.
 * It speaks to its parent by messages: `{ port, requests, connections, seconds }` in, a `LoadResult` out.
 */
export interface LoadOrder {
  readonly port: number;
  /** Whole requests, as they go over the wire; each connection takes the next one in turn. */
  readonly requests: readonly string[];
  readonly connections: number;
  readonly seconds: number;
}

export interface LoadResult {
  readonly requests: number;
  readonly errors: number;
  readonly seconds: number;
  /** Milliseconds. */
  readonly p50: number;
  readonly p99: number;
}

function run({ port, requests, connections, seconds }: LoadOrder): Promise<LoadResult> {
  const wire = requests.map((request) => Buffer.from(request, 'latin1'));
  const latencies: number[] = [];
  let done = 0;
  let errors = 0;
  let turn = 0;
  const started = performance.now();
  const until = started + seconds * 1_000;
  // It never sleeps: to wake a core that does, which takes long on a virtual machine, would be paid by the server.
  const stayAwake = (): void => {
    if (performance.now() < until) setImmediate(stayAwake);
  };
  stayAwake();
  const work = Array.from(
    { length: connections },
    () =>
      new Promise<void>((resolve) => {
        const socket: Socket = connect(port, '127.0.0.1');
        socket.setNoDelay(true);
        let sentAt = 0;
        let expected = -1;
        let seen = 0;
        let head = '';
        const send = (): void => {
          if (performance.now() >= until) {
            socket.end();
            resolve();
            return;
          }
          sentAt = performance.now();
          socket.write(wire[turn++ % wire.length] as Buffer);
        };
        socket.on('connect', send);
        socket.on('error', () => {
          errors += 1;
          resolve();
        });
        socket.on('data', (chunk) => {
          if (expected === -1) {
            head += chunk.toString('latin1');
            const end = head.indexOf('\r\n\r\n');
            if (end === -1) return;
            const length = /content-length: (\d+)/i.exec(head);
            expected = end + 4 + Number(length?.[1] ?? 0);
            if (!head.startsWith('HTTP/1.1 200')) errors += 1;
            seen = head.length;
          } else seen += chunk.length;
          if (seen < expected) return;
          done += 1;
          latencies.push(performance.now() - sentAt);
          expected = -1;
          head = '';
          send();
        });
      }),
  );
  return Promise.all(work).then(() => {
    latencies.sort((a, b) => a - b);
    const at = (share: number): number =>
      latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * share))] ?? 0;
    return { requests: done, errors, seconds: (performance.now() - started) / 1_000, p50: at(0.5), p99: at(0.99) };
  });
}

process.on('message', (order: LoadOrder) => {
  run(order).then((result) => process.send?.(result));
});
process.on('disconnect', () => process.exit(0));

import { findBinary } from './availability.js';
import { type RunningServer, runServer } from './running-server.js';
import { tempFolder } from './temp-folder.js';

/** A real NATS server with JetStream; `url` is `nats://127.0.0.1:<port>`. */
export function startNats(): Promise<RunningServer> {
  const folder = tempFolder('nats');
  return runServer({
    name: 'nats-server',
    file: findBinary('nats-server') ?? 'nats-server',
    args: (port) => ['-a', '127.0.0.1', '-p', String(port), '-js', '-sd', folder.path],
    readyLine: /Server is ready/,
    stopSignal: 'SIGTERM',
    url: (port) => `nats://127.0.0.1:${port}`,
    cwd: folder.path,
    cleanup: folder.remove,
  });
}

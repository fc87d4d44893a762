import { findBinary } from './availability.js';
import { type RunningServer, runServer } from './running-server.js';
import { tempFolder } from './temp-folder.js';

export interface RedisOptions {
  /** Keep the data through `kill()` and `restart()`: an append-only file, synced on every write. Default false. */
  readonly persist?: boolean;
  /** Further arguments of redis-server, e.g. `['--maxmemory', '10mb']`. */
  readonly args?: readonly string[];
}

/** A real Redis; `url` is `redis://127.0.0.1:<port>`. */
export function startRedis({ persist = false, args = [] }: RedisOptions = {}): Promise<RunningServer> {
  const folder = tempFolder('redis');
  const persistence = persist ? ['--appendonly', 'yes', '--appendfsync', 'always'] : ['--appendonly', 'no'];
  return runServer({
    name: 'redis-server',
    file: findBinary('redis-server') ?? 'redis-server',
    args: (port) => [
      ...['--port', String(port), '--bind', '127.0.0.1', '--dir', folder.path, '--save', ''],
      ...persistence,
      ...args,
    ],
    readyLine: /Ready to accept connections/,
    stopSignal: 'SIGTERM',
    url: (port) => `redis://127.0.0.1:${port}`,
    cwd: folder.path,
    cleanup: folder.remove,
  });
}

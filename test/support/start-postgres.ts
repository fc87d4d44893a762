import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { chown, mkdir, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { findBinary } from './availability.js';
import { type RunningServer, runServer } from './running-server.js';
import { tempFolder } from './temp-folder.js';

const run = promisify(execFile);

export interface PostgresOptions {
  /** Sync the log on every commit, for tests that cut the power of nothing less than the server. Default false. */
  readonly durable?: boolean;
  /** Further settings, e.g. `{ max_connections: '20' }`. */
  readonly settings?: Readonly<Record<string, string>>;
}

/**
 * A real PostgreSQL with the superuser `postgres`, no password, and the empty database `postgres`;
 * `url` is `postgres://postgres@127.0.0.1:<port>/postgres`.
 */
export async function startPostgres({ durable = false, settings = {} }: PostgresOptions = {}): Promise<RunningServer> {
  const user = unprivilegedUser();
  const source = await template(user);
  const folder = tempFolder('postgres');
  await run('cp', ['-a', source, join(folder.path, 'data')]);
  if (user) await chown(folder.path, user.uid, user.gid);
  return serve(folder, user, durable, settings);
}

/**
 * A streaming replica of a running PostgreSQL, with a replication slot of its own. `SELECT pg_promote()` makes it a primary.
 *
 * @param options.synchronous from now on the primary confirms a commit when the replica has it too. Default true.
 */
export async function startStandby(
  primary: RunningServer,
  { synchronous = true }: { readonly synchronous?: boolean } = {},
): Promise<RunningServer> {
  const user = unprivilegedUser();
  const folder = tempFolder('postgres');
  if (user) await chown(folder.path, user.uid, user.gid);
  const from = `host=127.0.0.1 port=${primary.port} user=postgres`;
  await run(
    findBinary('pg_basebackup') ?? 'pg_basebackup',
    [
      '-D',
      join(folder.path, 'data'),
      '-d',
      from,
      '-X',
      'stream',
      '-c',
      'fast',
      '-R',
      '-C',
      '-S',
      'standby',
      '--no-sync',
    ],
    { ...user, cwd: folder.path },
  );
  const standby = await serve(folder, user, true, {});
  if (!synchronous) return standby;
  await run(
    findBinary('psql') ?? 'psql',
    ['-X', '-q', '-d', from, '-c', "ALTER SYSTEM SET synchronous_standby_names = '*'", '-c', 'SELECT pg_reload_conf()'],
    { ...user, cwd: folder.path },
  );
  return standby;
}

function serve(
  folder: ReturnType<typeof tempFolder>,
  user: User | undefined,
  durable: boolean,
  settings: Readonly<Record<string, string>>,
): Promise<RunningServer> {
  const sync = durable ? 'on' : 'off';
  const all: Record<string, string> = {
    listen_addresses: '127.0.0.1',
    unix_socket_directories: folder.path,
    fsync: sync,
    synchronous_commit: sync,
    full_page_writes: sync,
    shared_buffers: '16MB',
    max_connections: '100',
    log_min_messages: 'warning',
    ...settings,
  };
  return runServer({
    name: 'postgres',
    file: findBinary('postgres') ?? 'postgres',
    args: (port) => [
      ...['-D', join(folder.path, 'data'), '-p', String(port)],
      ...Object.entries(all).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
    ],
    readyLine: /database system is ready to accept (read[- ]only )?connections/,
    // Fast shutdown: open connections are ended.
    stopSignal: 'SIGINT',
    url: (port) => `postgres://postgres@127.0.0.1:${port}/postgres`,
    user,
    cwd: folder.path,
    cleanup: folder.remove,
  });
}

interface User {
  readonly uid: number;
  readonly gid: number;
}

/** PostgreSQL refuses to run as root: then it runs as its own system user, which its package creates, else as nobody. */
function unprivilegedUser(): User | undefined {
  if (process.getuid?.() !== 0) return undefined;
  const users = readFileSync('/etc/passwd', 'utf8').split('\n');
  for (const name of ['postgres', 'nobody']) {
    const [, , uid, gid] = users.find((line) => line.startsWith(`${name}:`))?.split(':') ?? [];
    if (uid && gid) return { uid: Number(uid), gid: Number(gid) };
  }
  throw new Error('PostgreSQL cannot run as root, and there is neither a user postgres nor nobody');
}

/** A data folder made once per version and user, which every start copies. Made aside and renamed: whoever is first wins. */
async function template(user: User | undefined): Promise<string> {
  const initdb = findBinary('initdb') ?? 'initdb';
  const { stdout } = await run(initdb, ['--version']);
  const version = /\d+(\.\d+)*/.exec(stdout)?.[0] ?? 'unknown';
  const parent = join(tmpdir(), `tollkeeper-postgres-${version}-${user?.uid ?? process.getuid?.() ?? 0}`);
  const final = join(parent, 'template');
  if (existsSync(join(final, 'PG_VERSION'))) return final;
  await mkdir(parent, { recursive: true });
  if (user) await chown(parent, user.uid, user.gid);
  const made = join(parent, randomUUID());
  const args = ['-D', made, '-U', 'postgres', '-A', 'trust', '--no-sync', '--encoding=UTF8', '--locale=C'];
  await run(initdb, [...args, '--wal-segsize=1'], { ...user, cwd: dirname(parent) });
  try {
    await rename(made, final);
  } catch (error) {
    await rm(made, { recursive: true, force: true });
    if (!existsSync(join(final, 'PG_VERSION'))) throw error;
  }
  return final;
}

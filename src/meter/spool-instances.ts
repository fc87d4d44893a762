import { mkdir, mkdtemp, readdir, rename, rm, rmdir, stat, symlink, unlink, writeFile } from 'node:fs/promises';
import { connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ADOPTED, codeOf, DIRECTORY_MODE, FILE_MODE, syncDirectory } from './spool-files.js';
import { INSTANCE_FILE } from './spool-recovery.js';

const INSTANCE = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const UNFINISHED = /^\.new-/;
const SOCKET = 'alive';
/** A unix socket's path has room for 103 bytes on macOS and 107 on Linux. */
const MAX_SOCKET_PATH_BYTES = 100;
/** A directory that was never finished is garbage after that. */
const UNFINISHED_MS = 60_000;
const CONNECT_MS = 1_000;

/**
 * The directories of one spool, one per process start. A unix socket bound in a directory shows that its process lives:
 * the kernel closes it with the process, and unlike a process id it means the same in every container of the host. A
 * dead instance never comes back to life, so that whoever renames its directory first has it.
 */
export class SpoolInstances {
  readonly #directory: string;
  readonly #instance: string;
  #server: Server | undefined;
  /** Instances that had no socket the last time: one that lives would have bound it again by now. */
  #silent = new Set<string>();

  constructor(directory: string, instance: string) {
    this.#directory = directory;
    this.#instance = instance;
  }

  /** This instance's own directory. */
  get own(): string {
    return join(this.#directory, this.#instance);
  }

  get quarantine(): string {
    return join(this.#directory, 'quarantine');
  }

  /** Makes the instance's directory. It gets its name when the socket is bound: nobody ever sees it without. */
  async register(source: string): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: DIRECTORY_MODE });
    const unfinished = join(this.#directory, `.new-${this.#instance}`);
    await mkdir(unfinished, { recursive: true, mode: DIRECTORY_MODE });
    await writeFile(join(unfinished, INSTANCE_FILE), JSON.stringify({ source }), { mode: FILE_MODE, flush: true });
    await mkdir(join(unfinished, ADOPTED), { recursive: true, mode: DIRECTORY_MODE });
    await rm(join(unfinished, SOCKET), { force: true });
    this.#server?.close();
    this.#server = await withSocketPath(unfinished, listen);
    await rename(unfinished, this.own);
    await syncDirectory(this.#directory);
  }

  /**
   * Binds the socket again where somebody has deleted it: a cleaner of temporary files, say.
   *
   * @returns false when the directory itself is gone.
   */
  async keepAlive(): Promise<boolean> {
    if (await exists(join(this.own, SOCKET))) return true;
    if (!(await exists(this.own))) return false;
    this.#server?.close();
    this.#server = await withSocketPath(this.own, listen);
    return true;
  }

  /** The names of dead instances. Removes what a start that died has left. */
  async dead(): Promise<string[]> {
    const names: string[] = [];
    const silent = new Set<string>();
    for (const name of await readdir(this.#directory)) {
      if (name === this.#instance) continue;
      const path = join(this.#directory, name);
      if (INSTANCE.test(name)) {
        const sign = await signOfLife(path);
        if (sign === 'none') silent.add(name);
        if (sign === 'refused' || (sign === 'none' && this.#silent.has(name))) names.push(name);
      } else if (UNFINISHED.test(name) && (await isOld(path)) && (await signOfLife(path)) !== 'alive') {
        await rm(path, { recursive: true, force: true });
      }
    }
    this.#silent = silent;
    return names;
  }

  /** Takes a dead instance over, by one rename: a peer that comes second finds nothing, and that is no error. */
  async claim(name: string): Promise<void> {
    try {
      await rename(join(this.#directory, name), join(this.#adopted, name));
      await syncDirectory(this.#adopted);
      await syncDirectory(this.#directory);
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') throw error;
    }
  }

  /**
   * The directories of everything that was claimed. A dead instance brings along those that it had adopted itself, and
   * they theirs, if it died in the middle of this.
   */
  async claimed(): Promise<string[]> {
    const paths: string[] = [];
    for (const name of await readdir(this.#adopted)) {
      const path = join(this.#adopted, name);
      await this.#inherit(path);
      paths.push(path);
    }
    return paths;
  }

  async #inherit(path: string): Promise<void> {
    const adopted = join(path, ADOPTED);
    for (const name of await namesIn(adopted)) {
      await this.#inherit(join(adopted, name));
      await rename(join(adopted, name), join(this.#adopted, name));
    }
  }

  get #adopted(): string {
    return join(this.own, ADOPTED);
  }

  /** From here on peers may adopt what is left. */
  close(): void {
    this.#server?.close();
    this.#server = undefined;
  }
}

function listen(path: string): Promise<Server> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.once('error', reject);
    // Exclusive: in a worker of `node:cluster` the primary would hold the socket for it, and it has to be the worker's own.
    server.listen({ path, exclusive: true }, () => {
      server.removeListener('error', reject);
      server.on('error', () => undefined);
      server.unref();
      resolve(server);
    });
  });
}

type Sign = 'alive' | 'refused' | 'none';

/** In doubt it lives: only a refused connection shows that nobody listens. Without a socket there is no sign at all. */
async function signOfLife(directory: string): Promise<Sign> {
  try {
    return await withSocketPath(directory, knock);
  } catch {
    return 'alive';
  }
}

function knock(path: string): Promise<Sign> {
  return new Promise((resolve) => {
    const socket = connect(path);
    const settle = (sign: Sign): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(sign);
    };
    const timer = setTimeout(settle, CONNECT_MS, 'alive').unref();
    socket.once('connect', () => settle('alive'));
    socket.once('error', (error) => {
      const code = codeOf(error);
      if (code === 'ENOENT') settle('none');
      else settle(code === 'ECONNREFUSED' || code === 'ENOTSOCK' ? 'refused' : 'alive');
    });
  });
}

/** Where the path is too long for a socket, a symbolic link in the system's temporary folder makes it short. */
async function withSocketPath<T>(directory: string, use: (path: string) => Promise<T>): Promise<T> {
  const path = join(directory, SOCKET);
  if (Buffer.byteLength(path) <= MAX_SOCKET_PATH_BYTES) return use(path);
  const folder = await mkdtemp(join(tmpdir(), 'tk-'));
  const link = join(folder, 'd');
  try {
    await symlink(directory, link);
    return await use(join(link, SOCKET));
  } finally {
    await unlink(link).catch(() => undefined);
    await rmdir(folder).catch(() => undefined);
  }
}

async function namesIn(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return [];
    throw error;
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    return codeOf(error) !== 'ENOENT';
  }
}

async function isOld(path: string): Promise<boolean> {
  const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: Number.POSITIVE_INFINITY }));
  return Date.now() - mtimeMs > UNFINISHED_MS;
}

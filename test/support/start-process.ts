import { fileURLToPath, pathToFileURL } from 'node:url';
import { hasExited, spawnBound } from './bound-child.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const START_MS = 60_000;

export interface ProcessOptions {
  /** Added to this process's environment. */
  readonly env?: Readonly<Record<string, string>>;
  readonly args?: readonly string[];
}

export interface RunningProcess<T = unknown> {
  readonly pid: number;
  /** The JSON of the line `ready <json>`. */
  readonly ready: T;
  /** What the process printed so far, on stdout and stderr. */
  output(): string;
  /** A message for the child's `process.on('message')`. */
  send(message: unknown): void;
  /** Every message that the child sends with `process.send`. */
  onMessage(listener: (message: unknown) => void): void;
  /** Default SIGKILL. Resolves when the process has ended. */
  kill(signal?: NodeJS.Signals): Promise<void>;
  pause(): boolean;
  resume(): boolean;
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
}

/**
 * Runs a TypeScript file in a process of its own (with tsx, in the project's folder, with the package's public names) and
 * resolves once it prints a line `ready <json>` or `ready`.
 */
export function startProcess<T = unknown>(
  file: string | URL,
  { env = {}, args = [] }: ProcessOptions = {},
): Promise<RunningProcess<T>> {
  const path = file instanceof URL || file.startsWith('file:') ? fileURLToPath(file) : file;
  const tsx = pathToFileURL(`${ROOT}/node_modules/tsx/dist/loader.mjs`).href;
  const child = spawnBound(process.execPath, ['--import', tsx, path, ...args], {
    cwd: ROOT,
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    env: { ...process.env, TSX_TSCONFIG_PATH: process.env.TSX_TSCONFIG_PATH ?? `${ROOT}/tsconfig.json`, ...env },
  });
  const exited = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }));
  });
  const kill = async (signal: NodeJS.Signals = 'SIGKILL'): Promise<void> => {
    if (!hasExited(child)) child.kill(signal);
    await exited;
  };
  return new Promise((resolve, reject) => {
    let output = '';
    let isReady = false;
    const failed = (why: string) => reject(new Error(`${path} ${why}:\n${output.slice(-4000)}`));
    const timer = setTimeout(() => {
      failed(`was not ready within ${START_MS / 1000} s`);
      child.kill('SIGKILL');
    }, START_MS);
    const read = (chunk: Buffer) => {
      output += chunk;
      const line = isReady ? null : /^ready(?: (.*))?\n/m.exec(output);
      if (!line) return;
      isReady = true;
      clearTimeout(timer);
      resolve({
        pid: child.pid as number,
        ready: (line[1] ? JSON.parse(line[1]) : undefined) as T,
        output: () => output,
        send: (message) => child.send(message as object),
        onMessage: (listener) => child.on('message', listener),
        kill,
        pause: () => child.kill('SIGSTOP'),
        resume: () => child.kill('SIGCONT'),
        exited,
      });
    };
    child.stdout?.on('data', read);
    child.stderr?.on('data', read);
    child.once('error', reject);
    child.once('close', () => {
      clearTimeout(timer);
      if (!isReady) failed('ended before it was ready');
    });
  });
}

import type { ChildProcess } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { hasExited, signalTree, spawnBound } from './bound-child.js';
import { freePort } from './free-port.js';

/** A real server process on a port of 127.0.0.1, with its data in a temporary folder. */
export interface RunningServer {
  readonly host: '127.0.0.1';
  readonly port: number;
  readonly url: string;
  /** Of the present process: another one after `restart()`. */
  readonly pid: number;
  /** Ends the process (and PostgreSQL's backends) and waits for its end; the data stays. Default SIGKILL: a crash. */
  kill(signal?: NodeJS.Signals): Promise<void>;
  /** Starts it again on the same port and data; a running one is ended in good order first. */
  restart(): Promise<void>;
  /** SIGSTOP: connections stay open and nothing answers. */
  pause(): void;
  /** SIGCONT. */
  resume(): void;
  /** Ends the process and removes its folder. */
  stop(): Promise<void>;
}

export interface ServerPlan {
  readonly name: string;
  readonly file: string;
  args(port: number): string[];
  /** What the server prints once it accepts connections. */
  readonly readyLine: RegExp;
  readonly stopSignal: NodeJS.Signals;
  url(port: number): string;
  readonly user?: { uid: number; gid: number } | undefined;
  readonly cwd: string;
  cleanup(): void;
}

const START_MS = 30_000;
const BUSY = /address already in use|could not create any TCP\/IP sockets/i;
/** PostgreSQL after a crash: its last backend still ends. */
const NOT_YET = /pre-existing shared memory block|lock file ".*" already exists/i;

export async function runServer(plan: ServerPlan): Promise<RunningServer> {
  let port = 0;
  let child: ChildProcess;
  for (let attempt = 1; ; attempt += 1) {
    port = await freePort();
    const started = await launch(plan, port);
    if (typeof started !== 'string') {
      child = started;
      break;
    }
    if (!BUSY.test(started) || attempt === 20) throw failed(plan, started);
  }

  const kill = async (signal: NodeJS.Signals = 'SIGKILL'): Promise<void> => {
    if (hasExited(child)) return;
    const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    signalTree(child, signal);
    await exited;
  };

  return {
    host: '127.0.0.1',
    port,
    url: plan.url(port),
    get pid() {
      return child.pid as number;
    },
    kill,
    restart: async () => {
      await kill(plan.stopSignal);
      const deadline = Date.now() + START_MS;
      for (;;) {
        const started = await launch(plan, port);
        if (typeof started !== 'string') {
          child = started;
          return;
        }
        if (Date.now() > deadline || !(BUSY.test(started) || NOT_YET.test(started))) throw failed(plan, started);
        await sleep(50);
      }
    },
    pause: () => signalTree(child, 'SIGSTOP'),
    resume: () => signalTree(child, 'SIGCONT'),
    stop: async () => {
      await kill();
      plan.cleanup();
    },
  };
}

/** The process once it is ready, or what it printed when it ended instead. */
function launch(plan: ServerPlan, port: number): Promise<ChildProcess | string> {
  return new Promise((resolve, reject) => {
    const child = spawnBound(plan.file, plan.args(port), {
      cwd: plan.cwd,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH: process.env.PATH, LC_ALL: 'C' },
      ...plan.user,
    });
    let output = '';
    const timer = setTimeout(() => {
      signalTree(child, 'SIGKILL');
      reject(failed(plan, `not ready within ${START_MS / 1000} s\n${output}`));
    }, START_MS);
    const settle = (result: ChildProcess | string) => {
      clearTimeout(timer);
      resolve(result);
    };
    const read = (chunk: Buffer) => {
      // The last part is enough, for the ready line and for a report.
      output = (output + chunk).slice(-16_384);
      // Its own words, not a connection attempt: somebody else's server could answer on a port that was lost.
      if (plan.readyLine.test(output)) settle(child);
    };
    child.stdout?.on('data', read);
    child.stderr?.on('data', read);
    child.once('error', (error) => settle(String(error)));
    child.once('close', () => settle(output));
  });
}

function failed(plan: ServerPlan, output: string): Error {
  return new Error(`${plan.name} did not start: ${output.trim()}`);
}

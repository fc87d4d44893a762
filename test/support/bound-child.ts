import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { findBinary } from './availability.js';

const children = new Set<ChildProcess>();

process.once('exit', () => {
  for (const child of children) signalTree(child, 'SIGKILL');
});

/** Only on Linux: the kernel ends the child when this process dies, however it dies. The pid is the program's own. */
const setpriv = process.platform === 'linux' ? findBinary('setpriv') : undefined;

/** `spawn` of a child that never outlives this process. */
export function spawnBound(file: string, args: readonly string[], options: SpawnOptions): ChildProcess {
  const child = setpriv ? spawn(setpriv, ['--pdeathsig', 'KILL', file, ...args], options) : spawn(file, args, options);
  children.add(child);
  child.once('exit', () => children.delete(child));
  return child;
}

export function hasExited(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

/**
 * Sends SIGKILL, SIGSTOP or SIGCONT to a process and its direct children (PostgreSQL's backends are processes of their
 * own), every other signal to the process alone.
 */
export function signalTree(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined || hasExited(child)) return;
  const withChildren = signal === 'SIGKILL' || signal === 'SIGSTOP' || signal === 'SIGCONT';
  // First the parent, so that it starts no further child in between.
  if (withChildren && signal !== 'SIGCONT') child.kill('SIGSTOP');
  for (const pid of withChildren ? childrenOf(child.pid) : []) sendTo(pid, signal);
  child.kill(signal);
}

function childrenOf(parent: number): number[] {
  if (process.platform !== 'linux') return [];
  const found: number[] = [];
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      // pid (name) state ppid …; the name may hold spaces and parentheses.
      const stat = readFileSync(`/proc/${entry}/stat`, 'utf8');
      const ppid = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1];
      if (Number(ppid) === parent) found.push(Number(entry));
    } catch {
      // It ended in between.
    }
  }
  return found;
}

function sendTo(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It ended in between.
  }
}

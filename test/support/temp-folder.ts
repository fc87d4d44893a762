import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const PREFIX = 'tollkeeper-test';

const folders = new Set<string>();

process.once('exit', () => {
  for (const folder of folders) remove(folder);
});

// A test process that was killed could not clean up: the next one does.
for (const entry of readdirSync(tmpdir())) {
  const owner = new RegExp(`^${PREFIX}-(\\d+)-`).exec(entry)?.[1];
  if (owner && !isAlive(Number(owner))) remove(join(tmpdir(), entry));
}

/** A new empty folder under the system's temporary folder; it is removed at the latest when this process exits. */
export function tempFolder(name: string): { path: string; remove(): void } {
  const path = mkdtempSync(join(tmpdir(), `${PREFIX}-${process.pid}-${name}-`));
  folders.add(path);
  return {
    path,
    remove: () => {
      folders.delete(path);
      remove(path);
    },
  };
}

function remove(path: string): void {
  try {
    rmSync(path, { recursive: true, force: true, maxRetries: 5, retryDelay: 20 });
  } catch {
    // It belongs to somebody else, or a server that is just ending still writes there: the next run removes it.
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

import { execFileSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe } from 'vitest';
import { tempFolder } from '../support/index.js';

export interface SmallDisk {
  readonly path: string;
  /** Takes everything that is left, but for so many bytes. */
  fill(leaveBytes?: number): void;
  /** Gives it back. */
  free(): void;
  remove(): void;
}

/** A file system of its own (tmpfs), which can really be full. Needs root on Linux. */
export function smallDisk(mebibytes: number): SmallDisk {
  const folder = tempFolder('disk');
  const path = join(folder.path, 'mnt');
  mkdirSync(path);
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${mebibytes}m`, 'tmpfs', path]);
  const ballast = join(path, 'ballast');
  return {
    path,
    fill(leaveBytes = 0) {
      const file = openSync(ballast, 'a');
      try {
        const block = Buffer.alloc(4096, 1);
        for (;;) writeSync(file, block);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
      } finally {
        closeSync(file);
      }
      if (leaveBytes > 0) execFileSync('truncate', ['-s', `-${leaveBytes}`, ballast]);
    },
    free: () => rmSync(ballast, { force: true }),
    remove() {
      execFileSync('umount', ['-l', path]);
      folder.remove();
    },
  };
}

function canMount(): string | undefined {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return 'it needs root on Linux to mount a tmpfs';
  try {
    smallDisk(1).remove();
    return undefined;
  } catch (error) {
    return `no tmpfs can be mounted: ${(error as Error).message.trim()}`;
  }
}

/** Runs the suite where a disk can be made; elsewhere it skips, and says so, except in CI as root, where it fails. */
export function describeWithSmallDisk(name: string, suite: () => void): void {
  const why = canMount();
  if (why === undefined) describe(name, suite);
  else if (process.env.CI === 'true' && process.getuid?.() === 0) {
    describe(name, () => {
      throw new Error(why);
    });
  } else {
    console.warn(`SKIPPED: ${name}: ${why}`);
    describe.skip(name, suite);
  }
}

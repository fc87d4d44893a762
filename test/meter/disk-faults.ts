import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { tempFolder } from '../support/index.js';

export type FileOperation = 'write' | 'datasync' | 'sync' | 'read';

/** Puts something around an operation of every file handle of this process, until it is undone. */
export async function interceptFiles(
  operation: FileOperation,
  before: (handle: FileHandle) => Promise<void> | void,
  after?: () => Promise<void> | void,
): Promise<() => void> {
  const folder = tempFolder('handle');
  const file = await open(join(folder.path, 'any'), 'w');
  const prototype = Object.getPrototypeOf(file) as Record<FileOperation, (...args: unknown[]) => Promise<unknown>>;
  await file.close();
  folder.remove();
  const original = prototype[operation];
  prototype[operation] = async function intercepted(this: FileHandle, ...args: unknown[]) {
    await before(this);
    const result = await original.apply(this, args);
    await after?.();
    return result;
  };
  return () => {
    prototype[operation] = original;
  };
}

/** Fails so many times, with an error of the operating system. */
export function failing(code: string, times = 1): () => void {
  let left = times;
  return () => {
    if (left-- > 0) throw Object.assign(new Error(`${code}: injected`), { code });
  };
}

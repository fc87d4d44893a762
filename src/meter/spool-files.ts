import { type FileHandle, open, rename, rm, rmdir, unlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';

/** Usage is nobody else's business. */
export const FILE_MODE = 0o600;
export const DIRECTORY_MODE = 0o700;

/** Writes all of it at an offset: one `write` may take only a part, on a disk that is nearly full. */
export async function writeAll(file: FileHandle, bytes: Uint8Array, offset: number): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, offset + done);
    done += bytesWritten;
  }
}

/** Makes a file of these parts, which appears in one step, and leaves it open for more. */
export async function createFile(path: string, parts: readonly Uint8Array[], durable: boolean): Promise<FileHandle> {
  const temporary = `${path}.tmp`;
  const file = await open(temporary, 'w', FILE_MODE);
  try {
    let at = 0;
    for (const part of parts) {
      await writeAll(file, part, at);
      at += part.length;
    }
    if (durable) await file.datasync();
    await rename(temporary, path);
    if (durable) await syncDirectory(dirname(path));
    return file;
  } catch (error) {
    await file.close().catch(() => undefined);
    await unlink(temporary).catch(() => undefined);
    throw error;
  }
}

/** Makes creations, renames and deletions in a directory durable. */
export async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Replaces a small file in one step: temporary file, fsync, rename, fsync of the directory. */
export async function replaceFile(path: string, text: string): Promise<void> {
  const temporary = `${path}.tmp`;
  await writeFile(temporary, text, { mode: FILE_MODE, flush: true });
  await rename(temporary, path);
  await syncDirectory(dirname(path));
}

/** In an instance's directory: the directories of those that it adopted. */
export const ADOPTED = 'adopted';
/** In an instance's directory: what it keeps aside for a full disk. */
export const RESERVE = 'reserve';

/**
 * Removes an instance's directory.
 *
 * @throws ENOTEMPTY when it has adopted others, which nobody has read yet: nothing is removed then.
 */
export async function removeInstance(directory: string): Promise<void> {
  try {
    await rmdir(join(directory, ADOPTED));
  } catch (error) {
    if (codeOf(error) !== 'ENOENT') throw error;
  }
  await rm(directory, { recursive: true, force: true });
}

/** An error's code (`ENOSPC`), or its name: no path gets into a message. */
export function codeOf(error: unknown): string {
  const { code, name } = error as { code?: unknown; name?: unknown };
  return typeof code === 'string' ? code : String(name);
}

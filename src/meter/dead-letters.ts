import { randomUUID } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';

/** `rejected`: the sink will not have it. `parked`: the sink may have it, and a duplicate would count twice. */
export type LetterKind = 'rejected' | 'parked';

export interface DeadLetter {
  readonly reason: string;
  /** The event, byte for byte. */
  readonly json: string;
}

/** Events that did not reach a sink, kept for an operator. */
export interface DeadLetters {
  /** Resolves when they are durable (in memory: kept). */
  add(sink: string, kind: LetterKind, letters: readonly DeadLetter[]): Promise<void>;
  /**
   * Takes the rejected events of a sink out, all of them. What is not settled comes back: by `add`, or when the process
   * dies before `done`.
   */
  take(sink: string): Promise<{ readonly letters: readonly DeadLetter[]; done(): Promise<void> }>;
}

/** Events that are kept in memory for each sink and kind; older ones are given up. */
const MAX_IN_MEMORY = 10_000;

export function memoryDeadLetters(): DeadLetters {
  const kept = new Map<string, DeadLetter[]>();
  return {
    add(sink, kind, letters) {
      const key = `${kind} ${sink}`;
      kept.set(key, [...(kept.get(key) ?? []), ...letters].slice(-MAX_IN_MEMORY));
      return Promise.resolve();
    },
    take(sink) {
      const letters = kept.get(`rejected ${sink}`) ?? [];
      kept.delete(`rejected ${sink}`);
      return Promise.resolve({ letters, done: () => Promise.resolve() });
    },
  };
}

const FOLDERS: Readonly<Record<LetterKind, string>> = { rejected: 'dead-letters', parked: 'parked' };
const TAKEN = '.taken-';

/**
 * `<directory>/dead-letters/<sink>.jsonl` and `<directory>/parked/<sink>.jsonl`, one JSON object `{ at, reason, event }` a
 * line. Several processes may append to one file.
 */
export function fileDeadLetters(directory: string, now: () => number): DeadLetters {
  return {
    async add(sink, kind, letters) {
      const folder = join(directory, FOLDERS[kind]);
      await mkdir(folder, { recursive: true });
      const at = new Date(now()).toISOString();
      const lines = letters.map(
        ({ reason, json }) => `{"at":"${at}","reason":${JSON.stringify(reason)},"event":${json}}\n`,
      );
      const file = await open(join(folder, `${sink}.jsonl`), 'a', 0o600);
      try {
        // A crash may have cut off the last line: whatever comes now begins a line of its own.
        await file.appendFile(`\n${lines.join('')}`);
        await file.sync();
      } finally {
        await file.close();
      }
    },
    async take(sink) {
      const folder = join(directory, FOLDERS.rejected);
      const name = `${sink}.jsonl`;
      // Moved aside first: what other processes append meanwhile goes into a new file.
      await rename(join(folder, name), join(folder, `${name}${TAKEN}${randomUUID()}`)).catch(ignoreAbsent);
      const files = (await readdir(folder).catch(ignoreAbsent)) ?? [];
      const taken = files.filter((file) => file.startsWith(`${name}${TAKEN}`)).map((file) => join(folder, file));
      const texts = await Promise.all(taken.map((file) => readFile(file, 'utf8')));
      return {
        letters: texts.flatMap((text) => text.split('\n')).flatMap(readLine),
        done: async () => {
          await Promise.all(taken.map((file) => rm(file, { force: true })));
        },
      };
    },
  };
}

/** A line that a crash cut off holds an event that is still in the spool. */
function readLine(line: string): DeadLetter[] {
  try {
    const { reason, event } = JSON.parse(line) as { reason: string; event: unknown };
    return [{ reason, json: JSON.stringify(event) }];
  } catch {
    return [];
  }
}

function ignoreAbsent(error: unknown): undefined {
  if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  return undefined;
}

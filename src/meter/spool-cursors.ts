import { readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { replaceFile } from './spool-files.js';

type Role = 'billing' | 'observational';

interface Cursor {
  seq: number;
  role: Role;
  /** The first event that the sink was ever offered. */
  readonly attached: number;
  /** What the file says. */
  durable: number;
}

const PREFIX = 'cursor-';
/** A cursor that moves all the time is written so often; a crash repeats at most this much to a sink. */
const SAVE_EVERY_MS = 100;

/** How far each sink has come in one source: a small file per sink, replaced in one step. */
export class SpoolCursors {
  readonly #directory: string;
  readonly #cursors = new Map<string, Cursor>();
  #timer: NodeJS.Timeout | undefined;
  #saving: Promise<void> = Promise.resolve();

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** Reads the files. One that is damaged counts as absent: its sink gets again what is kept. */
  async load(): Promise<void> {
    for (const file of await readdir(this.#directory)) {
      if (!file.startsWith(PREFIX) || file.endsWith('.tmp')) continue;
      const stored = parse(await readFile(join(this.#directory, file), 'utf8').catch(() => ''));
      if (stored !== undefined) this.#cursors.set(stored.sink, { ...stored, durable: stored.seq });
    }
  }

  get(sink: string): number | undefined {
    return this.#cursors.get(sink)?.seq;
  }

  attachedAt(sink: string): number | undefined {
    return this.#cursors.get(sink)?.attached;
  }

  /** Every sink that ever had a cursor here, configured now or not. */
  entries(): Iterable<[string, Readonly<Cursor>]> {
    return this.#cursors;
  }

  /**
   * Moves a cursor forward, never back; written soon, or by `save`.
   *
   * @param attached for a sink that has no cursor yet: the first event that it is offered.
   */
  set(sink: string, seq: number, role: Role, attached: number): void {
    const cursor = this.#cursors.get(sink);
    if (cursor === undefined) this.#cursors.set(sink, { seq, role, attached, durable: -1 });
    else {
      if (cursor.role === role && seq <= cursor.seq) return;
      if (cursor.role !== role) cursor.durable = -1;
      cursor.role = role;
      cursor.seq = Math.max(seq, cursor.seq);
    }
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      // A failure is met again by the next `save`, before anything is deleted.
      this.save().catch(() => undefined);
    }, SAVE_EVERY_MS).unref();
  }

  /** Resolves when every cursor is durable. One after another: two writers would share a temporary file. */
  save(): Promise<void> {
    const saved = this.#saving.catch(() => undefined).then(() => this.#saveAll());
    this.#saving = saved;
    return saved;
  }

  async forget(sink: string): Promise<void> {
    await this.#saving.catch(() => undefined);
    this.#cursors.delete(sink);
    await rm(this.#path(sink), { force: true });
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  async #saveAll(): Promise<void> {
    for (const [sink, cursor] of this.#cursors) {
      const { seq, role, attached } = cursor;
      if (cursor.durable === seq) continue;
      const crc = checksum(sink, role, seq, attached);
      await replaceFile(this.#path(sink), `${JSON.stringify({ sink, role, seq, attached, crc })}\n`);
      cursor.durable = seq;
    }
  }

  #path(sink: string): string {
    return join(this.#directory, PREFIX + encodeURIComponent(sink));
  }
}

type Stored = { sink: string; role: Role; seq: number; attached: number };

function parse(text: string): Stored | undefined {
  try {
    const { crc, ...stored } = JSON.parse(text) as Stored & { crc: number };
    const { sink, role, seq, attached } = stored;
    return crc === checksum(sink, role, seq, attached) ? stored : undefined;
  } catch {
    return undefined;
  }
}

function checksum(...parts: (string | number)[]): number {
  return crc32(parts.join('\n'));
}

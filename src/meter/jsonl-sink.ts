import { type FileHandle, open } from 'node:fs/promises';
import { parseSinkOptions, type SinkOptions } from './memory-sink.js';
import type { Sink } from './sink.js';

/**
 * Appends the events to a file, one JSON object a line, and syncs it before the pipeline goes on. At least once: a crash
 * between the two repeats lines, which are recognised by `source` and `id`.
 *
 * @param path the file; its folder must be there. It is opened with the first events.
 */
export function jsonlSink(path: string, options: SinkOptions = {}): Sink {
  if (typeof path !== 'string' || path === '') throw new TypeError('jsonlSink: the path must be a string');
  const { name, role, limits } = parseSinkOptions('jsonlSink', 'jsonl', options);
  let file: FileHandle | undefined;
  /** The end of the last batch that was written whole. */
  let end = 0;
  return {
    name,
    role,
    limits: { maxEvents: 1000, maxBytes: 1024 * 1024, ...limits },
    async write(events) {
      if (file === undefined) {
        file = await open(path, 'a', 0o600);
        end = (await file.stat()).size;
      }
      const text = Buffer.from(events.map((event) => `${JSON.stringify(event)}\n`).join(''));
      try {
        await file.appendFile(text);
        await file.sync();
        end += text.length;
      } catch (error) {
        // Half a line would spoil the next one. What cannot even be cut off is opened anew.
        await file.truncate(end).catch(() => undefined);
        const broken = file;
        file = undefined;
        await broken.close().catch(() => undefined);
        throw error;
      }
    },
    async close() {
      await file?.close();
      file = undefined;
    },
  };
}

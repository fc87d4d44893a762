import { resolve } from 'node:path';
import type { OptionsParser } from '../errors/options-parser.js';
import type { FsyncPolicy } from './spool-writer.js';

const MIB = 1024 * 1024;
const DEFAULT_MAX_BYTES = 1024 * MIB;

/** The durable log between the requests and the sinks. */
export interface SpoolOptions {
  /**
   * A directory on a local disk, for one application: every process of it on this host uses the same one, and adopts what
   * a dead one has left there. It is made with mode 0700 if it does not exist.
   */
  readonly directory: string;
  /**
   * Bytes on disk for each process, from 1 MiB; default 1 GiB. At fifteen sixteenths of it new requests are refused
   * with 503; the rest is for the final events of requests that were admitted before.
   */
  readonly maxBytes?: number;
  /**
   * When a record counts as durable. Each of them survives `kill -9`; it matters when the power fails.
   *
   * - `always`: after an fsync of its own tick's records.
   * - `group` (default): after an fsync that it shares with the records of up to 5 ms.
   * - `interval`: after the write; fsync every 500 ms.
   * - `os`: after the write; the operating system decides when it reaches the disk.
   */
  readonly fsync?: FsyncPolicy;
}

export interface SpoolSettings {
  readonly directory: string;
  readonly maxBytes: number;
  readonly fsync: FsyncPolicy;
}

/** Checks the options of a spool and fills in the defaults. */
export function parseSpoolOptions(parser: OptionsParser, given: SpoolOptions): SpoolSettings {
  const isObject = typeof given === 'object' && given !== null;
  if (!isObject) parser.problem("spool must be { directory } or 'memory'");
  const options = isObject ? given : { directory: '.' };
  const { directory, maxBytes, fsync } = parser.known(options, ['directory', 'maxBytes', 'fsync'], 'spool');
  return {
    directory: resolve(parser.string('spool.directory', directory)),
    maxBytes: parser.number('spool.maxBytes', maxBytes, DEFAULT_MAX_BYTES, { min: MIB, integer: true }),
    fsync: parser.oneOf('spool.fsync', fsync, ['always', 'group', 'interval', 'os'], 'group'),
  };
}

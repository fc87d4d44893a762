import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';

/** The number of `--name=value` on the command line, or the default. */
export function argument(name: string, fallback: number): number {
  const found = process.argv.find((text) => text.startsWith(`--${name}=`));
  const value = found === undefined ? fallback : Number(found.slice(name.length + 3));
  if (!(value > 0)) throw new TypeError(`--${name} must be a positive number`);
  return value;
}

/** What the figures were taken on, in one line. */
export function environment(): string {
  const [cpu] = cpus();
  return `Node ${process.version}, ${process.platform} ${process.arch}, ${cpus().length} × ${cpu?.model.trim() ?? 'unknown'}, a random read of memory ${memoryLatency().toFixed(0)} ns`;
}

/**
 * How quiet the machine is: nanoseconds for a read that no cache has. Neighbours do not show in the load of a virtual machine, and
 * slow down most what touches much memory.
 */
function memoryLatency(): number {
  const size = 1 << 23;
  const reads = 1_000_000;
  // One cycle through all places, each far from the last: the step shares no divisor with the size.
  const next = Uint32Array.from({ length: size }, (_, at) => (at + 5_000_011) % size);
  let at = 0;
  const started = process.hrtime.bigint();
  for (let read = 0; read < reads; read++) at = next[at] as number;
  const nanoseconds = Number(process.hrtime.bigint() - started) / reads;
  if (at === size) throw new Error('unreachable: it keeps the loop from being left out');
  return nanoseconds;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] ?? Number.NaN) + (sorted[middle] ?? Number.NaN)) / 2;
}

export function printTable(rows: readonly Record<string, unknown>[]): void {
  const columns = Object.keys(rows[0] ?? {});
  const lines = [columns, ...rows.map((row) => columns.map((column) => String(row[column])))];
  const widths = columns.map((_, index) => Math.max(...lines.map((line) => (line[index] as string).length)));
  const format = (line: readonly string[]): string =>
    `| ${line.map((cell, index) => cell.padEnd(widths[index] as number)).join(' | ')} |`;
  const [head, ...body] = lines as [string[], ...string[][]];
  console.log(
    [format(head), `|${widths.map((width) => '-'.repeat(width + 2)).join('|')}|`, ...body.map(format)].join('\n'),
  );
}

/** Keeps the figures as `bench/results/<name>.json`. */
export function writeResults(name: string, rows: unknown): void {
  const folder = new URL('./results/', import.meta.url);
  mkdirSync(folder, { recursive: true });
  writeFileSync(new URL(`${name}.json`, folder), `${JSON.stringify({ environment: environment(), rows }, null, 2)}\n`);
}

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
  return `Node ${process.version}, ${process.platform} ${process.arch}, ${cpus().length} × ${cpu?.model.trim() ?? 'unknown'}`;
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

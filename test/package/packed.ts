import { execFile } from 'node:child_process';
import { copyFileSync, mkdirSync, readdirSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { tempFolder } from '../support/index.js';

const run = promisify(execFile);

export const ROOT = fileURLToPath(new URL('../..', import.meta.url));

/** The package as a user gets it: built from the sources, packed, and unpacked into `consumers/node_modules/tollkeeper`. */
export interface Packed {
  readonly tarball: string;
  /** A folder whose `node_modules` has the package and what it depends on. */
  readonly consumers: string;
  /** The unpacked package. */
  readonly folder: string;
  /** esbuild's metafile of a format: which source lies in which output. */
  readonly metafile: Record<'esm' | 'cjs', string>;
  remove(): void;
}

/** Builds and packs without touching the working tree, and installs without a registry. */
export async function pack(): Promise<Packed> {
  const temp = tempFolder('package');
  const stage = join(temp.path, 'stage');
  mkdirSync(stage);
  for (const entry of readdirSync(ROOT)) {
    if (/\.(md|json)$|^LICENSE$/.test(entry)) copyFileSync(join(ROOT, entry), join(stage, entry));
  }
  const tsup = join(ROOT, 'node_modules/tsup/dist/cli-default.js');
  await run(process.execPath, [tsup, '--out-dir', join(stage, 'dist'), '--metafile', '--silent'], { cwd: ROOT });
  const metafile = { esm: join(temp.path, 'esm.json'), cjs: join(temp.path, 'cjs.json') };
  for (const format of ['esm', 'cjs'] as const) {
    renameSync(join(stage, `dist/metafile-${format}.json`), metafile[format]);
  }
  // Nothing that should stay at home may be swept along by the list of files.
  for (const stray of ['src', 'test', 'node_modules']) {
    mkdirSync(join(stage, stray));
    writeFileSync(join(stage, stray, 'stray.js'), '');
  }
  await run('npm', ['pack', '--ignore-scripts', '--offline', '--pack-destination', temp.path], { cwd: stage });
  const tarball = join(temp.path, readdirSync(temp.path).find((entry) => entry.endsWith('.tgz')) ?? '');

  const consumers = join(temp.path, 'consumers');
  const folder = join(consumers, 'node_modules/tollkeeper');
  mkdirSync(folder, { recursive: true });
  await run('tar', ['-xzf', tarball, '-C', folder, '--strip-components', '1']);
  for (const name of ['lru-cache', '@types/node']) link(consumers, name);
  return { tarball, consumers, folder, metafile, remove: temp.remove };
}

/** Makes a package of this project's `node_modules` available to a consumer, under another name if given. */
export function link(consumer: string, name: string, as = name): void {
  const path = join(consumer, 'node_modules', as);
  mkdirSync(dirname(path), { recursive: true });
  symlinkSync(join(ROOT, 'node_modules', name), path, 'dir');
}

/** Runs a program and returns what it printed. */
export async function runProgram(file: string): Promise<string> {
  const { stdout } = await run(process.execPath, [file], { cwd: dirname(file), env: { PATH: process.env.PATH } });
  if (stdout === '') throw new Error(`${basename(file)} printed nothing`);
  return stdout;
}

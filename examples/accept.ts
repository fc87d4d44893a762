/**
 * `npm run accept [name]`: the acceptance runs of the five systems, each in a process of its own.
 * `npm run accept -- --self-test`: breaks three behaviours of the library on purpose, and wants to see the runs turn red.
 */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const folder = fileURLToPath(new URL('.', import.meta.url));
const systems = readdirSync(folder).filter((name) => existsSync(join(folder, name, 'accept.ts')));

/** What is broken, in which run it must be noticed, and by a check of which requirement. */
const BREAKS = [
  { what: 'a revocation is ignored', file: 'ignored-revocation', system: 'lore', requirement: 'S1.10' },
  { what: 'a scope check is removed', file: 'removed-scope-check', system: 'lore', requirement: 'S1.4' },
  { what: 'an event is dropped', file: 'dropped-event', system: 'phoebe', requirement: 'S2.12' },
].filter(({ system }) => systems.includes(system));

/** Runs one acceptance run; with `tsconfig`, against the library that it names. */
function run(system: string, tsconfig?: string): Promise<{ code: number | null; output: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ['--import', 'tsx', join(folder, system, 'accept.ts')], {
      env: { ...process.env, ...(tsconfig === undefined ? {} : { TSX_TSCONFIG_PATH: tsconfig }) },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      if (tsconfig === undefined) process.stdout.write(text);
    });
    child.on('close', (code) => resolve({ code, output }));
  });
}

async function accept(names: readonly string[]): Promise<boolean> {
  const failed: string[] = [];
  for (const name of names) {
    console.log(`\n## ${name}`);
    if ((await run(name)).code !== 0) failed.push(name);
  }
  console.log(failed.length === 0 ? `\naccepted: ${names.join(', ')}` : `\nNOT accepted: ${failed.join(', ')}`);
  return failed.length === 0;
}

async function selfTest(): Promise<boolean> {
  let noticed = 0;
  for (const { what, file, system, requirement } of BREAKS) {
    const tsconfig = fileURLToPath(new URL(`../test/support/broken/${file}.json`, import.meta.url));
    const { code, output } = await run(system, tsconfig);
    const failures = output.split('\n').filter((line) => line.startsWith('FAIL'));
    const red = code !== 0 && failures.some((line) => line.split(':')[0]?.includes(requirement));
    if (red) noticed += 1;
    console.log(
      `${red ? 'noticed' : 'NOT NOTICED'}: ${what} (${system}): ${failures.join(' | ') || 'nothing turned red'}`,
    );
  }
  return noticed === BREAKS.length && noticed > 0;
}

const [first] = process.argv.slice(2);
const wanted = first === undefined ? systems : [first];
const unknown = first !== undefined && first !== '--self-test' && !systems.includes(first);
if (unknown) console.error(`there is no system "${first}"; there are ${systems.join(', ')}`);
const ok = !unknown && (await (first === '--self-test' ? selfTest() : accept(wanted)));
process.exitCode = ok ? 0 : 1;

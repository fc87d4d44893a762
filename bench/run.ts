import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/**
 * `npm run bench`: all benchmarks; `npm run bench -- http`: one, with its own arguments after it; `npm run bench -- --smoke`:
 * all of them with counts so small that only their running is shown.
 */
const SMOKE: Readonly<Record<string, readonly string[]>> = {
  http: ['--rounds=1', '--seconds=0.3', '--warm-up=100', '--callers=20'],
  'in-process': ['--rounds=1', '--calls=2000', '--callers=20'],
  scale: ['--largest=1000', '--calls=2000', '--burst=50'],
  tokens: ['--tokens=500', '--lookups=100'],
  revocation: ['--entries=5000', '--rounds=1', '--checks=5000'],
  quota: ['--rounds=1', '--calls=500'],
  metering: [
    ...['--rounds=1', '--seconds=0.3', '--warm-up=100', '--callers=5', '--events=500', '--max-mebibytes=2'],
    ...['--requests=1000', '--request-rounds=1', '--memory-events=20000'],
  ],
  ledger: ['--events=500', '--stored-sqlite=2000', '--stored-postgres=2000', '--clients=20'],
  issuer: ['--rounds=1', '--seconds=0.3'],
};

const folder = fileURLToPath(new URL('.', import.meta.url));
const [first, ...rest] = process.argv.slice(2);
const smoke = first === '--smoke';
const names = first === undefined || smoke ? Object.keys(SMOKE) : [first];

if (!existsSync(`${folder}node_modules`)) {
  console.log('installing what the benchmarks compare with');
  const { status } = spawnSync('npm', ['ci', '--no-audit', '--no-fund'], { cwd: folder, stdio: 'inherit' });
  if (status !== 0) process.exit(1);
}
// What is measured is the built package, as users run it: sources that are transpiled on the fly are slower.
const root = fileURLToPath(new URL('..', import.meta.url));
if (spawnSync('npm', ['run', '--silent', 'build', '--', '--silent'], { cwd: root, stdio: 'inherit' }).status !== 0)
  process.exit(1);
const failed: string[] = [];
for (const name of names) {
  const file = `${folder}${name}.ts`;
  if (!existsSync(file)) {
    console.error(`there is no benchmark "${name}"; there are ${Object.keys(SMOKE).join(', ')}`);
    failed.push(name);
    continue;
  }
  console.log(`\n## ${name}\n`);
  const { status } = spawnSync(
    process.execPath,
    ['--expose-gc', '--import', 'tsx', file, ...(smoke ? (SMOKE[name] ?? []) : rest)],
    {
      cwd: root,
      stdio: 'inherit',
      env: { ...process.env, NODE_ENV: 'production', TSX_TSCONFIG_PATH: `${folder}tsconfig.json` },
    },
  );
  if (status !== 0) failed.push(name);
}
if (failed.length > 0) {
  console.error(`failed: ${failed.join(', ')}`);
  process.exitCode = 1;
}

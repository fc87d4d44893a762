import { spawnSync } from 'node:child_process';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';
import {
  authenticate,
  createRevocations,
  jwtVerifier,
  memoryRevocationStore,
  requireScope,
  type Verifier,
} from 'tollkeeper';
import { AUDIENCE, ISSUER, makeCallers } from './http/callers.js';
import { argument, environment, median, printTable, writeResults } from './report.js';

/**
 * The same figures with few and with very many callers and revocations, the delay of the event loop while many unknown JWTs
 * come at once, and what an import costs. `--largest=1000000` for the published figures.
 */
const largest = argument('largest', 100_000);
const calls = argument('calls', 100_000);
const burst = argument('burst', 1_000);
const rows: Record<string, unknown>[] = [];
const res = { writableEnded: false, destroyed: false } as never;

function request(token: Buffer): never {
  const authorization = token.latin1Slice();
  return { headers: { authorization }, rawHeaders: ['Host', 'x', 'Authorization', authorization] } as never;
}

/** The end of a token of 900 bytes tells callers apart. */
const padding = 'x'.repeat(850);
const tokenOf = (index: number): Buffer =>
  Buffer.from(`Bearer ${padding}.${String(index).padStart(43, '0')}`, 'latin1');
const verifier: Verifier = {
  name: 'bench',
  accepts: () => true,
  verify: ({ token = '' }) => ({
    subject: { kind: 'user', id: token.slice(-43) },
    authId: token.slice(-43),
    scopes: ['a:read'],
    issuedAt: 2e9,
  }),
};

for (const callers of [1_000, 100_000, 1_000_000].filter((count) => count <= largest)) {
  globalThis.gc?.();
  const before = process.memoryUsage().heapUsed;
  const revocations = createRevocations({ store: memoryRevocationStore() });
  for (let index = 0; index < callers; index++) await revocations.revoke({ tokenId: `revoked-${index}` });
  const middleware = authenticate({
    verifiers: [verifier],
    revocations,
    cache: { maxEntries: callers, maxBytes: 8 * 1024 ** 3, ttlSeconds: 3_600 },
  });
  const scope = requireScope('a:read');
  for (let index = 0; index < callers; index++) middleware(request(tokenOf(index)), res, () => {});
  globalThis.gc?.();
  const bytes = process.memoryUsage().heapUsed - before;
  const tokens = Array.from({ length: 5_000 }, (_, index) => tokenOf(Math.floor((index / 5_000) * callers)));
  const times: number[] = [];
  for (let round = 0; round < 5; round++) {
    const started = process.cpuUsage();
    for (let index = 0; index < calls; index++) {
      const req = request(tokens[index % tokens.length] as Buffer);
      middleware(req, res, () => scope(req, res, () => {}));
    }
    const { user, system } = process.cpuUsage(started);
    times.push(((user + system) * 1_000) / calls);
  }
  rows.push({
    what: `authenticate + requireScope, ${callers.toLocaleString('en')} callers and as many revocations`,
    result: `${Math.round(median(times))} ns of CPU a call, ${Math.round(bytes / 1_048_576)} MiB`,
  });
}

const { tokens, jwks } = await makeCallers('ES256', burst);
const middleware = authenticate({
  verifiers: [jwtVerifier({ issuer: ISSUER, audience: AUDIENCE, algorithms: ['ES256'], keys: { jwks } })],
});
const delay = monitorEventLoopDelay({ resolution: 1 });
await new Promise((resolve) => setTimeout(resolve, 100));
delay.enable();
const started = performance.now();
await Promise.all(
  tokens.map(
    (token) =>
      new Promise<void>((resolve) => middleware(request(Buffer.from(`Bearer ${token}`)), res, () => resolve())),
  ),
);
delay.disable();
rows.push({
  what: `${burst.toLocaleString('en')} unknown ES256 tokens at once`,
  result: `${Math.round(performance.now() - started)} ms; event loop p99 ${(delay.percentile(99) / 1e6).toFixed(1)} ms, max ${(delay.max / 1e6).toFixed(1)} ms`,
});

const importTime = (what: string): number => {
  const script = `const t = performance.now(); await import(${JSON.stringify(what)}); console.log(performance.now() - t)`;
  const times = Array.from({ length: 7 }, () => {
    const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
      encoding: 'utf8',
      cwd: new URL('..', import.meta.url),
    });
    return Number(stdout);
  });
  return median(times);
};
const dist = new URL('../dist/index.js', import.meta.url);
rows.push({ what: 'import of jose, for comparison', result: `${importTime('jose').toFixed(0)} ms` });
rows.push({ what: 'import of tollkeeper', result: `${importTime(dist.href).toFixed(0)} ms` });

/** Kilobytes, minified and gzipped, of what an app that imports these names bundles, without lru-cache. */
async function bundleOf(names: string): Promise<string> {
  const { outputFiles } = await build({
    stdin: { contents: `export ${names} from ${JSON.stringify(fileURLToPath(dist))}`, resolveDir: '.' },
    bundle: true,
    minify: true,
    format: 'esm',
    platform: 'node',
    external: ['lru-cache'],
    write: false,
    logLevel: 'error',
  });
  return `${(gzipSync(outputFiles[0]?.contents ?? '').length / 1_000).toFixed(1)} KB`;
}
const gate = 'authenticate, jwtVerifier, requireScope';
rows.push({ what: 'bundle: the whole root entry', result: await bundleOf('*') });
rows.push({ what: `bundle: ${gate}`, result: await bundleOf(`{ ${gate} }`) });
rows.push({
  what: `bundle: ${gate}, createPipeline, meter`,
  result: await bundleOf(`{ ${gate}, createPipeline, meter }`),
});

console.log(environment());
printTable(rows);
writeResults('scale', rows);

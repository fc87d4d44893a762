import { makeCallers } from './http/callers.js';
import type { LoadOrder, LoadResult } from './http/load.js';
import { scenarios } from './http/scenarios.js';
import type { ServerOrder } from './http/server.js';
import { ask, pinned, start } from './processes.js';
import { argument, environment, median, printTable, writeResults } from './report.js';

/**
 * What the stack costs a request, beside what people use today: servers on one core, the load on another, each with the bare
 * app in turn, A B A B and then A C A C, medians, and the ratio to the bare app that ran right before.
 */
const rounds = argument('rounds', 9);
const seconds = argument('seconds', 0.7);
/** Requests to each server before anything is measured: until then its code is not compiled for good. */
const warmUp = argument('warm-up', 20_000);
const callerCount = argument('callers', 500);
const connections = argument('connections', 32);
const only = process.argv.find((text) => text.startsWith('--only='))?.slice(7);
const framework = process.argv.includes('--framework=http') ? 'http' : 'express';

const callers = { RS256: await makeCallers('RS256', callerCount), ES256: await makeCallers('ES256', callerCount) };
const wanted = process.argv.includes('--group=metering') ? 'metering' : undefined;
const chosen = [...scenarios]
  .sort((a, b) => Number(b.name === 'bare') - Number(a.name === 'bare'))
  .filter(
    ({ name, group, frameworks }) =>
      frameworks.includes(framework) &&
      (name === 'bare' || (group === wanted && (only === undefined || name.includes(only)))),
  );
const load = start('./http/load.ts', 1);
const servers = await Promise.all(
  chosen.map(async (scenario) => {
    const child = start('./http/server.ts', 0);
    const order: ServerOrder = {
      scenario: scenario.name,
      framework,
      callers: scenario.credential === 'RS256' ? callers.RS256 : callers.ES256,
    };
    const { port, tokens } = await ask<{ port: number; tokens: readonly string[] }>(child, order);
    const requests = tokens.map(
      (token) =>
        `GET /v1/reports HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\nAccept: */*\r\nUser-Agent: bench\r\n\r\n`,
    );
    return {
      scenario,
      child,
      port,
      requests,
      rates: [] as number[],
      cpus: [] as number[],
      added: [] as number[],
      ratios: [] as number[],
      p50s: [] as number[],
      p99s: [] as number[],
    };
  }),
);

const order = ({ port, requests }: (typeof servers)[number], time: number): LoadOrder => ({
  port,
  requests,
  connections,
  seconds: time,
});
const [bare] = servers as [(typeof servers)[number]];
let errors = 0;

/** One run of the load against a server; its figures are kept there. */
async function measure(server: (typeof servers)[number]): Promise<number> {
  const before = await ask<{ cpu: number }>(server.child, 'cpu');
  const result = await ask<LoadResult>(load, order(server, seconds));
  const after = await ask<{ cpu: number }>(server.child, 'cpu');
  const rate = result.requests / result.seconds;
  errors += result.errors;
  if (result.errors > 0) console.error(`${server.scenario.name}: ${result.errors} answers that are not 200`);
  server.rates.push(rate);
  server.cpus.push((after.cpu - before.cpu) / result.requests);
  server.p50s.push(result.p50);
  server.p99s.push(result.p99);
  return rate;
}

async function warm(server: (typeof servers)[number]): Promise<void> {
  for (let asked = 0; asked < warmUp; ) asked += (await ask<LoadResult>(load, order(server, seconds))).requests;
}

await warm(bare);
for (const server of servers.slice(1)) {
  // In one piece, so that neither of the two has been idle for longer: what is, is cold again.
  await warm(server);
  for (let round = 0; round < rounds; round++) {
    // The bare app runs right before each: what the machine's neighbours do changes within seconds.
    const bareRate = await measure(bare);
    const bareCpu = bare.cpus.at(-1) as number;
    server.ratios.push((await measure(server)) / bareRate);
    server.added.push((server.cpus.at(-1) as number) - bareCpu);
  }
}
const rows = servers.map(({ scenario, rates, ratios, cpus, added, p50s, p99s }) => ({
  scenario: scenario.name,
  'requests/s': Math.round(median(rates)),
  'of bare': ratios.length === 0 ? 1 : Number(median(ratios).toFixed(3)),
  spread: ratios.length === 0 ? '' : `${Math.min(...ratios).toFixed(2)}–${Math.max(...ratios).toFixed(2)}`,
  'CPU µs/request': Number(median(cpus).toFixed(1)),
  'added µs': added.length === 0 ? 0 : Number(median(added).toFixed(1)),
  'p50 ms': Number(median(p50s).toFixed(2)),
  'p99 ms': Number(median(p99s).toFixed(2)),
}));
console.log(
  `${environment()}\n${framework}, ${callerCount} callers, ${connections} connections, ${rounds} rounds of ${seconds} s, ${pinned ? 'pinned' : 'not pinned'}`,
);
printTable(rows);
writeResults(`${wanted ?? 'http'}-${framework}`, rows);
for (const { child } of servers) child.disconnect();
load.disconnect();
if (errors > 0) process.exitCode = 1;

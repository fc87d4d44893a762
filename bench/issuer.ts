import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { createKeyRing, type SigningAlgorithm } from 'tollkeeper';
import { createIssuer } from 'tollkeeper/issuer';
import type { LoadOrder, LoadResult } from './http/load.js';
import type { IssuerOrder } from './issuer/server.js';
import { ask, pinned, start } from './processes.js';
import { argument, environment, median, printTable, writeResults } from './report.js';

// The library's own: what stands beside this file may have brought an older one.
const { SignJWT } = createRequire(new URL('../package.json', import.meta.url))('jose') as typeof import('jose');

/**
 * What a signed token costs. In process: `issueServiceToken` beside jose's `SignJWT` with the same claims, in turn. Over HTTP:
 * our token endpoint on bare `node:http` beside that of `oidc-provider` and ten lines around jose, each in a process on one
 * core, the load on another. Ratios are to these ten lines, in the same round.
 */
const rounds = argument('rounds', 5);
const seconds = argument('seconds', 3);
const connections = argument('connections', 32);
const CLIENT = { id: 'service', secret: 'a-secret-of-the-benchmark_0123456789' };
const SIGNATURES: Readonly<Record<SigningAlgorithm, number>> = { ES256: 5_000, Ed25519: 5_000, RS256: 600 };

/** Microseconds of CPU, of all threads, for one call. */
async function cpuOf(times: number, call: () => Promise<unknown>): Promise<number> {
  const before = process.cpuUsage();
  for (let index = 0; index < times; index++) await call();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / times;
}

async function inProcess(algorithm: SigningAlgorithm) {
  const issuer = createIssuer({
    issuer: 'https://issuer.example',
    audience: 'https://api.example',
    keyRing: await createKeyRing({ algorithm }),
    maxTtlSeconds: 600,
    clients: [{ id: CLIENT.id, scopes: ['a:read', 'a:write'], tenant: 'tenant-1', unconstrainedResources: true }],
  });
  const request = { tenantId: 'tenant-1', clientId: CLIENT.id, scopes: ['a:read', 'a:write'], ttlSeconds: 600 };
  const { privateKey } =
    algorithm === 'ES256'
      ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
      : algorithm === 'Ed25519'
        ? generateKeyPairSync('ed25519')
        : generateKeyPairSync('rsa', { modulusLength: 2048 });
  const kid = 'NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs';
  const ours = () => issuer.issueServiceToken(request);
  const jose = () => {
    const now = Math.floor(Date.now() / 1_000);
    const claims = {
      iss: 'https://issuer.example',
      sub: CLIENT.id,
      aud: 'https://api.example',
      client_id: CLIENT.id,
      iat: now,
      exp: now + 600,
      jti: randomUUID(),
      scope: 'a:read a:write',
      tenant_id: 'tenant-1',
      is_service_account: true,
    };
    return new SignJWT(claims).setProtectedHeader({ alg: algorithm, kid, typ: 'at+jwt' }).sign(privateKey);
  };
  const times = SIGNATURES[algorithm];
  await cpuOf(times / 5, ours);
  await cpuOf(times / 5, jose);
  const cpus: { ours: number; jose: number }[] = [];
  for (let round = 0; round < rounds; round++) {
    cpus.push({ ours: await cpuOf(times, ours), jose: await cpuOf(times, jose) });
  }
  await issuer.close();
  const mine = median(cpus.map(({ ours: cpu }) => cpu));
  return {
    algorithm,
    'issueServiceToken, µs CPU': mine.toFixed(1),
    'jose SignJWT alone, µs CPU': median(cpus.map(({ jose: cpu }) => cpu)).toFixed(1),
    ratio: median(cpus.map((round) => round.ours / round.jose)).toFixed(2),
    'tokens/s': Math.round(1_000_000 / mine),
  };
}

function requestOf(kind: IssuerOrder['kind']): string {
  const resource = encodeURIComponent('https://api.example');
  const body = `grant_type=client_credentials&scope=a%3Aread%20a%3Awrite&resource=${resource}`;
  const basic = Buffer.from(`${CLIENT.id}:${CLIENT.secret}`).toString('base64');
  return [
    `POST ${kind === 'oidc-provider' ? '/token' : '/oauth/token'} HTTP/1.1`,
    'Host: localhost',
    `Authorization: Basic ${basic}`,
    'Content-Type: application/x-www-form-urlencoded',
    `Content-Length: ${body.length}`,
    '',
    body,
  ].join('\r\n');
}

async function overHttp(): Promise<Record<string, unknown>[]> {
  const orders: IssuerOrder[] = [
    { kind: 'jose', algorithm: 'ES256' },
    { kind: 'tollkeeper', algorithm: 'ES256' },
    { kind: 'oidc-provider', algorithm: 'ES256' },
    { kind: 'jose', algorithm: 'Ed25519' },
    { kind: 'tollkeeper', algorithm: 'Ed25519' },
    { kind: 'jose', algorithm: 'RS256' },
    { kind: 'tollkeeper', algorithm: 'RS256' },
    { kind: 'oidc-provider', algorithm: 'RS256' },
  ];
  const load = start('./http/load.ts', 1);
  const servers = await Promise.all(
    orders.map(async (order) => {
      const child = start('./issuer/server.ts', 0);
      const { port } = await ask<{ port: number }>(child, order);
      return { ...order, child, port, rates: [] as number[], cpus: [] as number[], p99s: [] as number[] };
    }),
  );
  const orderOf = ({ kind, port }: (typeof servers)[number], time: number): LoadOrder => ({
    port,
    requests: [requestOf(kind)],
    connections,
    seconds: time,
  });
  for (const server of servers) await ask<LoadResult>(load, orderOf(server, seconds));
  for (let round = 0; round < rounds; round++) {
    for (const server of servers) {
      const before = await ask<{ cpu: number }>(server.child, 'cpu');
      const result = await ask<LoadResult>(load, orderOf(server, seconds));
      const after = await ask<{ cpu: number }>(server.child, 'cpu');
      if (result.errors > 0) throw new Error(`${server.kind}: ${result.errors} requests failed`);
      server.rates.push(result.requests / result.seconds);
      server.cpus.push((after.cpu - before.cpu) / result.requests);
      server.p99s.push(result.p99);
    }
  }
  for (const { child } of [...servers, { child: load }]) child.disconnect();
  return servers.map(({ kind, algorithm, rates, cpus, p99s }) => {
    const plain = servers.find((server) => server.kind === 'jose' && server.algorithm === algorithm);
    const ratio = (own: readonly number[], other: readonly number[] = []) =>
      median(own.map((value, round) => value / (other[round] ?? Number.NaN))).toFixed(2);
    return {
      algorithm,
      server: kind,
      'tokens/s': Math.round(median(rates)),
      'to jose': ratio(rates, plain?.rates),
      'µs CPU': median(cpus).toFixed(1),
      'CPU to jose': ratio(cpus, plain?.cpus),
      'p99 ms': median(p99s).toFixed(1),
    };
  });
}

console.log(`${environment()}${pinned ? ', server pinned to one core, load to another' : ''}; medians of ${rounds}\n`);
const signing: Awaited<ReturnType<typeof inProcess>>[] = [];
for (const algorithm of ['ES256', 'Ed25519', 'RS256'] as const) signing.push(await inProcess(algorithm));
printTable(signing);
console.log();
const endpoints = await overHttp();
printTable(endpoints);
writeResults('issuer', { signing, endpoints });

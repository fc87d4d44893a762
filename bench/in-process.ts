import { createPublicKey, type KeyObject, verify as verifyRaw } from 'node:crypto';
import { createLocalJWKSet, jwtVerify } from 'jose';
import { authenticate, jwtVerifier, type Middleware, requireScope } from 'tollkeeper';
import { AUDIENCE, ISSUER, makeCallers } from './http/callers.js';
import { argument, environment, median, printTable, writeResults } from './report.js';

/**
 * Nanoseconds of CPU per call for a known caller, and microseconds for an unknown one, in this process. Every request
 * carries a fresh copy of its header, as it comes from a socket: a string that was hashed before would flatter a cache.
 */
const rounds = argument('rounds', 7);
const calls = argument('calls', 200_000);
const callerCount = argument('callers', 500);

const callers = await makeCallers('ES256', callerCount);
const headers = callers.tokens.map((token) => Buffer.from(`Bearer ${token}`, 'latin1'));
const res = { writableEnded: false, destroyed: false } as never;

function request(index: number): never {
  const authorization = (headers[index % headers.length] as Buffer).latin1Slice();
  return {
    headers: { authorization },
    rawHeaders: ['Host', 'localhost', 'Authorization', authorization, 'Accept', '*/*'],
  } as never;
}

const verifier = () =>
  jwtVerifier({ issuer: ISSUER, audience: AUDIENCE, algorithms: ['ES256'], keys: { jwks: callers.jwks } });
const known = authenticate({ verifiers: [verifier()] });
const scope = requireScope('reports:read');

async function warm(middleware: Middleware): Promise<void> {
  for (let index = 0; index < headers.length; index++) {
    await new Promise<void>((resolve, reject) =>
      middleware(request(index), res, (error) => (error ? reject(error) : resolve())),
    );
  }
}
await warm(known);

function cpuOf(work: () => void): number {
  const before = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(before);
  return (user + system) * 1_000;
}

const cases: { name: string; run(index: number): void }[] = [
  { name: 'making the request alone', run: (index) => void request(index) },
  { name: 'authenticate, known caller', run: (index) => known(request(index), res, () => {}) },
  {
    name: 'authenticate + requireScope, known caller',
    run(index) {
      const req = request(index);
      known(req, res, () => scope(req, res, () => {}));
    },
  },
];
const rows: Record<string, unknown>[] = [];
const samples = new Map<string, number[]>(cases.map(({ name }) => [name, []]));
for (let round = 0; round < rounds; round++) {
  for (const { name, run } of cases) {
    const nanoseconds = cpuOf(() => {
      for (let index = 0; index < calls; index++) run(index);
    });
    samples.get(name)?.push(nanoseconds / calls);
  }
}
const floor = median(samples.get('making the request alone') ?? []);
for (const [name, values] of samples) {
  rows.push({
    what: name,
    'ns/call': Math.round(median(values)),
    'net of the request': Math.round(median(values) - floor),
  });
}

/** Not cached: CPU microseconds per verification, thread pool included. */
const unknown = authenticate({ verifiers: [verifier()], cache: false });
const keys = createLocalJWKSet(callers.jwks as never);
const publicKey: KeyObject = createPublicKey(callers.publicPem);
const uncached: { name: string; run(token: string): Promise<unknown> | undefined }[] = [
  {
    name: 'crypto.verify alone (synchronous)',
    run(token) {
      const at = token.lastIndexOf('.');
      const key = { key: publicKey, dsaEncoding: 'ieee-p1363' as const };
      verifyRaw('sha256', Buffer.from(token.slice(0, at)), key, Buffer.from(token.slice(at + 1), 'base64url'));
      return undefined;
    },
  },
  {
    name: 'jose jwtVerify',
    run: (token) => jwtVerify(token, keys, { issuer: ISSUER, audience: AUDIENCE, algorithms: ['ES256'] }),
  },
  {
    name: 'authenticate, not cached',
    run: (token) =>
      new Promise<void>((resolve, reject) => {
        const authorization = `Bearer ${token}`;
        unknown({ headers: { authorization }, rawHeaders: ['Authorization', authorization] } as never, res, (error) =>
          error ? reject(error) : resolve(),
        );
      }),
  },
];
const few = Math.max(200, Math.floor(calls / 100));
const slow = new Map<string, number[]>(uncached.map(({ name }) => [name, []]));
for (let round = 0; round < rounds; round++) {
  for (const { name, run } of uncached) {
    const before = process.cpuUsage();
    for (let index = 0; index < few; index += 50) {
      await Promise.all(
        Array.from({ length: 50 }, (_, more) => run(callers.tokens[(index + more) % callers.tokens.length] as string)),
      );
    }
    const { user, system } = process.cpuUsage(before);
    slow.get(name)?.push((user + system) / few);
  }
}
for (const [name, values] of slow)
  rows.push({ what: name, 'ns/call': Math.round(median(values) * 1_000), 'net of the request': '' });
console.log(`${environment()}\n${callerCount} callers, ${rounds} rounds of ${calls} calls`);
printTable(rows);
writeResults('in-process', rows);

import { createPublicKey, type KeyObject, verify as verifyRaw } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { IncomingMessage, ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createVerifier } from 'fast-jwt';
import { createLocalJWKSet, jwtVerify } from 'jose';
import {
  authenticate,
  createPipeline,
  createQuota,
  createTokenRegistry,
  enforceQuota,
  jwtVerifier,
  type Middleware,
  memoryQuotaStore,
  memoryTokenStore,
  meter,
  opaqueTokenVerifier,
  requireScope,
} from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';
import { AUDIENCE, type Callers, ISSUER, makeCallers } from './http/callers.js';
import { argument, environment, median, printTable, writeResults } from './report.js';

/**
 * Nanoseconds of CPU and bytes of heap per call for a known caller, and microseconds for an unknown one, in this process.
 * Every request carries a fresh copy of its header, as it comes from a socket: a string that was hashed before would flatter
 * a cache. Responses are real ones that nobody reads; they are over at once.
 */
const rounds = argument('rounds', 7);
const calls = argument('calls', 100_000);
const callerCount = argument('callers', 500);
const SCOPE = 'reports:read';
/** So few that no collection of garbage falls into them. */
const ALLOCATING_CALLS = Math.min(calls, 1_000);

const callers = { ES256: await makeCallers('ES256', callerCount), RS256: await makeCallers('RS256', callerCount) };
const folder = mkdtempSync(join(tmpdir(), 'tollkeeper-bench-'));
const sink = { name: 'null', limits: { maxEvents: 2_000 }, async write() {} };
const socket = new Socket();

const bearers = (tokens: readonly string[]): Buffer[] =>
  tokens.map((token) => Buffer.from(`Bearer ${token}`, 'latin1'));
const jwtHeaders = bearers(callers.ES256.tokens);

function request(headers: readonly Buffer[], index: number): IncomingMessage {
  const req = new IncomingMessage(socket);
  const authorization = (headers[index % headers.length] as Buffer).latin1Slice();
  req.headers = { authorization };
  req.rawHeaders = ['Host', 'localhost', 'Authorization', authorization, 'Accept', '*/*'];
  req.method = 'GET';
  req.url = '/v1/reports';
  return req;
}

const verifier = (algorithm: 'ES256' | 'RS256') =>
  jwtVerifier({ issuer: ISSUER, audience: AUDIENCE, algorithms: [algorithm], keys: { jwks: callers[algorithm].jwks } });
const known = authenticate({ verifiers: [verifier('ES256')] });
const scope = requireScope(SCOPE);

const registry = createTokenRegistry({
  store: memoryTokenStore(),
  peppers: { current: { id: 'p1', secret: crypto.getRandomValues(new Uint8Array(32)) } },
  prefix: 'bench',
});
const client = await registry.createClient({ name: 'bench', plan: 'pro' });
const opaqueTokens: string[] = [];
for (let index = 0; index < callerCount; index++) {
  opaqueTokens.push((await registry.issueToken({ clientId: client.id, scopes: [SCOPE] })).token);
}
const opaqueHeaders = bearers(opaqueTokens);
const knownOpaque = authenticate({ verifiers: [opaqueTokenVerifier({ registry })] });

const signedIn = asIdentity({ subject: { kind: 'user', id: 'bench' }, authId: 'key-1', tenant: 'acme', plan: 'pro' });
const window = { kind: 'gcra', periodSeconds: 60 } as const;
const quota = enforceQuota({
  quota: createQuota({
    store: memoryQuotaStore(),
    plans: { pro: [{ name: 'burst', per: 'authId', limit: 1_000_000_000, window }] },
  }),
});
const pipelines = [
  createPipeline({ sinks: [sink], source: 'bench', spool: 'memory' }),
  createPipeline({ sinks: [sink], source: 'bench', spool: { directory: folder } }),
] as const;
await Promise.all(pipelines.map((pipeline) => pipeline.ready()));
const [inMemory, durable] = pipelines.map((pipeline) => meter({ pipeline, type: 'report', durability: 'completion' }));

const fastJwt = createVerifier({
  key: callers.ES256.publicPem,
  cache: 10_000,
  allowedAud: AUDIENCE,
  allowedIss: ISSUER,
});

/** Passes the steps one after the other, and ends the response. */
function pass(steps: readonly Middleware[], headers: readonly Buffer[]) {
  return (index: number): void => {
    const req = request(headers, index);
    const res = new ServerResponse(req);
    let at = 0;
    let last = false;
    const next = (error?: unknown): void => {
      if (error !== undefined) throw error;
      const step = steps[at++];
      if (step === undefined) last = true;
      else step(req, res, next);
    };
    next();
    if (!last) throw new Error('a step did not answer in the same turn');
    res.emit('close');
  };
}

interface Case {
  readonly name: string;
  /** What the figure is net of. */
  readonly base: string;
  run(index: number): void;
}

const NOTHING = 'a request and its response alone';
const SIGNED_IN = `${NOTHING}, signed in`;
const cases: readonly Case[] = [
  { name: NOTHING, base: '', run: pass([], jwtHeaders) },
  { name: 'authenticate, JWT', base: NOTHING, run: pass([known], jwtHeaders) },
  { name: 'authenticate + requireScope, JWT', base: NOTHING, run: pass([known, scope], jwtHeaders) },
  { name: 'authenticate + requireScope, opaque token', base: NOTHING, run: pass([knownOpaque, scope], opaqueHeaders) },
  {
    name: 'peer: fast-jwt, hit of its cache',
    base: NOTHING,
    run(index) {
      const req = request(jwtHeaders, index);
      new ServerResponse(req).emit('close');
      fastJwt((req.headers.authorization as string).slice(7));
    },
  },
  { name: SIGNED_IN, base: NOTHING, run: pass([signedIn], jwtHeaders) },
  { name: 'enforceQuota, one policy, in memory', base: SIGNED_IN, run: pass([signedIn, quota], jwtHeaders) },
  { name: 'meter, in memory', base: SIGNED_IN, run: pass([signedIn, inMemory as Middleware], jwtHeaders) },
  { name: 'meter, durable, completion', base: SIGNED_IN, run: pass([signedIn, durable as Middleware], jwtHeaders) },
  {
    name: 'whole stack, JWT',
    base: NOTHING,
    run: pass([known, scope, quota, durable as Middleware], jwtHeaders),
  },
];

/** Until every caller is known. */
async function warm(middleware: Middleware, headers: readonly Buffer[]): Promise<void> {
  for (let index = 0; index < headers.length; index++) {
    const req = request(headers, index);
    await new Promise<void>((resolve, reject) =>
      middleware(req, new ServerResponse(req), (error) => (error ? reject(error) : resolve())),
    );
  }
}
await warm(known, jwtHeaders);
await warm(knownOpaque, opaqueHeaders);

/** What is in the spool and on its way to the sink belongs to the calls before it. */
const settled = () => Promise.all(pipelines.map((pipeline) => pipeline.flush()));

const nanoseconds = new Map<string, number[]>(cases.map(({ name }) => [name, []]));
const bytes = new Map<string, number[]>(cases.map(({ name }) => [name, []]));
/** In turns, as requests come: what is deferred to the end of a turn then happens in the measured time. */
async function run(one: Case, count: number): Promise<void> {
  for (let index = 0; index < count; index++) {
    one.run(index);
    if (index % 50 === 49) await new Promise((resolve) => setImmediate(resolve));
  }
}
for (let round = 0; round < rounds; round++) {
  for (const one of cases) {
    const before = process.cpuUsage();
    await run(one, calls);
    await settled();
    const { user, system } = process.cpuUsage(before);
    nanoseconds.get(one.name)?.push(((user + system) * 1_000) / calls);
    globalThis.gc?.();
    const { heapUsed } = process.memoryUsage();
    for (let index = 0; index < ALLOCATING_CALLS; index++) one.run(index);
    bytes.get(one.name)?.push((process.memoryUsage().heapUsed - heapUsed) / ALLOCATING_CALLS);
    await settled();
  }
}
const rows = cases.map(({ name, base }) => {
  const of = (figures: Map<string, number[]>, what: string): number => median(figures.get(what) ?? []);
  const net = (figures: Map<string, number[]>): number => of(figures, name) - (base === '' ? 0 : of(figures, base));
  return {
    what: name,
    'ns of CPU a call': Math.round(of(nanoseconds, name)),
    'net, ns': base === '' ? '' : Math.round(net(nanoseconds)),
    'net, bytes of heap': base === '' ? '' : Math.round(net(bytes)),
  };
});

/** Not cached: microseconds of CPU a verification, thread pool included. */
interface Unknown {
  readonly name: string;
  readonly base: string;
  readonly tokens: readonly string[];
  run(token: string): Promise<unknown> | undefined;
}

function through(middleware: Middleware): (token: string) => Promise<void> {
  return (token) =>
    new Promise((resolve, reject) => {
      const req = request([Buffer.from(`Bearer ${token}`)], 0);
      middleware(req, new ServerResponse(req), (error) => (error ? reject(error) : resolve()));
    });
}

function unknownJwts(algorithm: 'ES256' | 'RS256', { tokens, jwks, publicPem }: Callers): Unknown[] {
  const publicKey: KeyObject = createPublicKey(publicPem);
  const key = algorithm === 'ES256' ? { key: publicKey, dsaEncoding: 'ieee-p1363' as const } : publicKey;
  const keys = createLocalJWKSet(jwks as never);
  const base = `jose, ${algorithm}`;
  const peer = createVerifier({ key: publicPem, allowedAud: AUDIENCE, allowedIss: ISSUER });
  return [
    {
      name: `crypto.verify alone, ${algorithm}`,
      base,
      tokens,
      run(token) {
        const at = token.lastIndexOf('.');
        verifyRaw('sha256', Buffer.from(token.slice(0, at)), key, Buffer.from(token.slice(at + 1), 'base64url'));
        return undefined;
      },
    },
    {
      name: base,
      base,
      tokens,
      run: (token) => jwtVerify(token, keys, { issuer: ISSUER, audience: AUDIENCE, algorithms: [algorithm] }),
    },
    { name: `fast-jwt, ${algorithm}`, base, tokens, run: (token) => void peer(token) },
    {
      name: `authenticate, ${algorithm}`,
      base,
      tokens,
      run: through(authenticate({ verifiers: [verifier(algorithm)], cache: false })),
    },
  ];
}

const uncached: readonly Unknown[] = [
  ...unknownJwts('ES256', callers.ES256),
  ...unknownJwts('RS256', callers.RS256),
  {
    name: 'authenticate, opaque token, memory store',
    base: '',
    tokens: opaqueTokens,
    run: through(authenticate({ verifiers: [opaqueTokenVerifier({ registry })], cache: false })),
  },
];
const few = Math.max(100, Math.floor(calls / 50));
/** So many come in one turn of the event loop. Bursts are in `scale`. */
const AT_ONCE = 5;
const slow = new Map<string, number[]>(uncached.map(({ name }) => [name, []]));
// The first round warms up.
for (let round = 0; round <= rounds; round++) {
  for (const { name, tokens, run: verify } of uncached) {
    const before = process.cpuUsage();
    for (let index = 0; index < few; index += AT_ONCE) {
      await Promise.all(
        Array.from({ length: AT_ONCE }, (_, more) => verify(tokens[(index + more) % tokens.length] as string)),
      );
      await new Promise((resolve) => setImmediate(resolve));
    }
    const { user, system } = process.cpuUsage(before);
    if (round > 0) slow.get(name)?.push((user + system) / few);
  }
}
const slowRows = uncached.map(({ name, base }) => {
  const values = slow.get(name) ?? [];
  const ratios = values.map((value, round) => value / (slow.get(base)?.[round] ?? Number.NaN));
  return {
    'not cached': name,
    'µs of CPU': Number(median(values).toFixed(1)),
    'of jose': base === '' ? '' : Number(median(ratios).toFixed(2)),
  };
});
console.log(`${environment()}\n${callerCount} callers, ${rounds} rounds of ${calls} calls`);
printTable(rows);
console.log('');
printTable(slowRows);
writeResults('in-process', [...rows, ...slowRows]);
await Promise.all(pipelines.map((pipeline) => pipeline.close()));
rmSync(folder, { recursive: true });

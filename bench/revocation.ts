import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { createRevocations, type Identity, memoryRevocationStore, type Revocations } from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';
import { argument, environment, median, printTable, writeResults } from './report.js';

/**
 * A million revocations: memory, nanoseconds of CPU per check, and bytes that a check allocates, beside a plain `Set` of
 * the ids. Every identity is another one, as a denylist is asked about callers and not about one caller.
 */
const entries = argument('entries', 1_000_000);
const rounds = argument('rounds', 7);
const checks = argument('checks', 500_000);

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

function held(): number {
  collect();
  collect();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

/** The same text as one flat string: `randomUUID` joins pieces, which take eight times the memory. */
function flat(text: string): string {
  return Buffer.from(text, 'latin1').toString('latin1');
}

function caller(tokenId: string, number: number): Identity {
  const req = {} as IncomingMessage;
  const facts = { subject: { kind: 'user', id: `user-${number}` }, authId: `key-${number}`, tokenId } as const;
  const more = { issuer: 'https://idp.example', clientId: `client-${number % 997}`, tenant: `tenant-${number % 89}` };
  asIdentity({ ...facts, ...more, keyId: 'key-2026', issuedAt: 1_800_000_000 })(req, {} as never, () => {});
  return req.identity as Identity;
}

const SAMPLE = 10_000;
const ids: string[] = [];
const before = held();
const revocations: Revocations = createRevocations({ store: memoryRevocationStore() });
let longest = 0;
const started = performance.now();
for (let index = 0; index < entries; index++) {
  const tokenId = flat(randomUUID());
  const at = performance.now();
  void revocations.revoke({ tokenId }, { expiresAt: 2_000_000_000 });
  longest = Math.max(longest, performance.now() - at);
  if (index % Math.max(1, Math.floor(entries / SAMPLE)) === 0) ids.push(tokenId);
  // Lets the promises go.
  if (index % 1_000 === 0) await undefined;
}
const inserted = (performance.now() - started) / entries;
const ours = held() - before;

const strangers = Array.from({ length: SAMPLE }, (_, index) => caller(flat(randomUUID()), index));
const denied = ids.map((tokenId, index) => caller(tokenId, index));

function plainSet(): { set: Set<string>; bytes: number } {
  const start = held();
  const set = new Set<string>();
  for (let index = 0; index < entries; index++) set.add(flat(randomUUID()));
  return { set, bytes: held() - start };
}
const plain = plainSet();

interface Case {
  readonly name: string;
  readonly bytes?: number;
  run(index: number): unknown;
}
const at = (list: readonly Identity[], index: number): Identity => list[index % list.length] as Identity;

async function measure(cases: readonly Case[]): Promise<Record<string, unknown>[]> {
  const nanoseconds = new Map<string, number[]>(cases.map(({ name }) => [name, []]));
  const allocated = new Map<string, number[]>(cases.map(({ name }) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const { name, run } of cases) {
      collect();
      const heap = process.memoryUsage().heapUsed;
      const cpu = process.cpuUsage();
      for (let index = 0; index < checks; index++) run(index);
      const { user, system } = process.cpuUsage(cpu);
      nanoseconds.get(name)?.push(((user + system) * 1_000) / checks);
      allocated.get(name)?.push((process.memoryUsage().heapUsed - heap) / checks);
    }
  }
  return cases.map(({ name, bytes }) => ({
    what: name,
    'ns/check': Math.round(median(nanoseconds.get(name) ?? [])),
    'bytes/check': Math.max(0, Math.round(median(allocated.get(name) ?? []))),
    'MB held': bytes === undefined ? '' : (bytes / 1e6).toFixed(1),
  }));
}

const rows = await measure([
  {
    name: 'Set.has of a plain Set (flat strings)',
    bytes: plain.bytes,
    run: (index) => plain.set.has(at(strangers, index).tokenId as string),
  },
  { name: 'check: not revoked', bytes: ours, run: (index) => revocations.check(at(strangers, index), 1e9) },
  { name: 'check: revoked', run: (index) => revocations.check(at(denied, index), 1e9) },
]);
// One entry of every other kind, so that nothing is skipped.
for (const target of [
  { clientId: 'x' },
  { tenant: 'x' },
  { keyId: 'x' },
  { issuer: 'x' },
  { subject: 'x', issuer: 'https://idp.example' },
  { all: true },
] as const) {
  await revocations.revoke(target, { before: 1 });
}
await revocations.changed({ tokenId: 'x' });
rows.push(
  ...(await measure([
    {
      name: 'check: not revoked, every kind of watermark set',
      run: (index) => revocations.check(at(strangers, index), 1e9),
    },
  ])),
);

console.log(`${environment()}\n${entries} entries, ${rounds} rounds of ${checks} checks of ${SAMPLE} identities`);
printTable(rows);
console.log(`adding one: ${(inserted * 1_000).toFixed(1)} µs on average, ${longest.toFixed(1)} ms at worst`);
console.log(JSON.stringify({ entries, rows }));
writeResults('revocation', rows);

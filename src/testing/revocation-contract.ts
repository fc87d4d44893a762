import assert from 'node:assert/strict';
import { createIdentity, type IdentityInput } from '../identity/create-identity.js';
import { createRevocations } from '../revocation/create-revocations.js';
import type { LocalRevocationStore } from '../revocation/memory-revocation-store.js';
import type { RevocationEntry, RevocationPage, RevocationStore } from '../revocation/revocation-store.js';
import type { Revocations } from '../revocation/revocations.js';
import type { ContractCase } from './contract-case.js';

/** Two stores on one empty, migrated source, as two processes would have them, and what ends them. */
export interface RevocationStoresUnderTest {
  readonly stores: readonly [RevocationStore | LocalRevocationStore, RevocationStore | LocalRevocationStore];
  end?(): Promise<void>;
}

const NEVER = 4_294_967_295;
/** Milliseconds until what is shared must have arrived. */
const ARRIVAL_MS = 10_000;
const signal = new AbortController().signal;

/** What every revocation store must do, as runner-neutral cases. */
export function revocationStoreContract(make: () => Promise<RevocationStoresUnderTest>): ContractCase[] {
  const cases: ContractCase[] = [];
  const open = (store: RevocationStore | LocalRevocationStore, opened: Revocations[], pollSeconds = 0.05) => {
    const revocations = createRevocations({ store, pollSeconds, maxStalenessSeconds: 3_600 });
    opened.push(revocations);
    return revocations;
  };
  const test = (
    name: string,
    body: (
      here: Revocations,
      there: Revocations,
      newcomer: () => Promise<Revocations>,
      stores: RevocationStoresUnderTest['stores'],
    ) => Promise<void>,
  ): void => {
    cases.push({
      name,
      async run() {
        const { stores, end } = await make();
        const opened: Revocations[] = [];
        try {
          const [here, there] = [open(stores[0], opened), open(stores[1], opened)];
          await Promise.all([here.ready(), there.ready()]);
          const newcomer = async (): Promise<Revocations> => {
            const late = open(stores[1], opened);
            await late.ready();
            return late;
          };
          await body(here, there, newcomer, stores);
        } finally {
          await Promise.all(opened.map((each) => each.close()));
          await end?.();
        }
      },
    });
  };
  /** A case about the store's own methods; a store within one process has none. */
  const raw = (
    name: string,
    body: (one: RevocationStore, other: RevocationStore, opened: Revocations[]) => Promise<void>,
  ): void => {
    cases.push({
      name,
      async run() {
        const { stores, end } = await make();
        const opened: Revocations[] = [];
        try {
          const [one, other] = stores;
          if ('append' in one && 'append' in other) await body(one, other, opened);
        } finally {
          await Promise.all(opened.map((each) => each.close()));
          await end?.();
        }
      },
    });
  };

  test('shows what one process denies to the others, and to whoever comes later', async (here, there, newcomer) => {
    await here.revoke({ tokenId: 'j1' });
    await here.revoke({ clientId: 'c1' }, { before: 1_000, reason: 'left' });
    await there.revoke({ subject: 's1', issuer: 'https://a' }, { before: 1_000 });
    for (const each of [here, there, await newcomer()]) {
      await eventually(() => each.check(caller({ tokenId: 'j1' })) === 'revoked');
      await eventually(() => each.check(caller({ clientId: 'c1', issuedAt: 1_000 })) === 'revoked');
      await eventually(
        () => each.check(caller({ subject: { kind: 'user', id: 's1' }, issuer: 'https://a' })) === 'revoked',
      );
      assert.equal(each.check(caller({ clientId: 'c1', issuedAt: 1_001 })), 'live');
      assert.equal(each.check(caller({ tokenId: 'j2', clientId: 'c2' })), 'live');
    }
  });

  test('keeps the maximum of the watermarks that several processes set', async (here, there, newcomer) => {
    await here.revoke({ tenant: 't1' }, { before: 2_000 });
    await there.revoke({ tenant: 't1' }, { before: 1_000 });
    await there.revoke({ tenant: 't2' }, { before: 1_000 });
    await here.revoke({ tenant: 't2' }, { before: 2_000 });
    const late = await newcomer();
    for (const tenant of ['t1', 't2']) {
      assert.equal(late.check(caller({ tenant, issuedAt: 2_000 })), 'revoked');
      assert.equal(late.check(caller({ tenant, issuedAt: 2_001 })), 'live');
    }
  });

  test('keeps the later expiry of a denial that is repeated', async (here, there, newcomer) => {
    await here.revoke({ tokenId: 'j1' });
    await there.revoke({ tokenId: 'j1' }, { expiresAt: 1_000 });
    assert.equal((await newcomer()).check(caller({ tokenId: 'j1' })), 'revoked');
  });

  test('needs not keep what has expired', async (here, _there, newcomer) => {
    await here.revoke({ tokenId: 'j1' }, { expiresAt: 1_000 });
    await here.revoke({ tokenId: 'j2' });
    const late = await newcomer();
    assert.equal(late.check(caller({ tokenId: 'j1' })), 'live');
    assert.equal(late.check(caller({ tokenId: 'j2' })), 'revoked');
  });

  test('shows changes to the others, as often as they happen', async (here, there) => {
    for (let round = 0; round < 3; round++) {
      const decidedAt = there.version;
      await here.changed({ tokenId: 'j1' });
      await eventually(() => there.check(caller({ tokenId: 'j1' }), decidedAt) === 'changed');
      assert.equal(there.check(caller({ tokenId: 'j2' }), decidedAt), 'live');
    }
  });

  test('shows a watermark that is raised again and again', async (here, there) => {
    for (const before of [1_000, 2_000, 3_000]) {
      await here.revoke({ all: true }, { before });
      await eventually(() => there.check(caller({ issuedAt: before })) === 'revoked');
      assert.equal(there.check(caller({ issuedAt: before + 1 })), 'live');
    }
  });

  test('loses nothing between concurrent writers and a reader', async (here, there, newcomer) => {
    const reader = await newcomer();
    const ids = Array.from({ length: 300 }, (_, index) => `j${index}`);
    await Promise.all(ids.map((tokenId, index) => (index % 2 === 0 ? here : there).revoke({ tokenId })));
    for (const each of [here, there, reader]) {
      await eventually(() => ids.every((tokenId) => each.check(caller({ tokenId })) === 'revoked'));
    }
  });

  test('takes ids of every form', async (here, there) => {
    const ids = ['', ' ', '\u0000', '\ud800', 'ü€😀', '"\\', "';--", '{tag}', '__proto__', 'x'.repeat(20_000)].slice(1);
    for (const tokenId of ids) await here.revoke({ tokenId, issuer: `https://${tokenId.slice(0, 100)}` });
    for (const tokenId of ids) {
      const issuer = `https://${tokenId.slice(0, 100)}`;
      await eventually(() => there.check(caller({ tokenId, issuer })) === 'revoked');
      assert.equal(there.check(caller({ tokenId })), 'live');
    }
  });

  raw('gives everything without a cursor, and with one only what came after', async (one, other) => {
    await one.append(entry('a'), signal);
    const first = await readAll(other);
    assert.deepEqual(keysOf(first.entries), ['a']);
    assert.deepEqual(first.entries[0], entry('a'));
    const nothing = await other.read(first.cursor, signal);
    assert.deepEqual([nothing.entries, nothing.continued, nothing.more], [[], true, false]);
    await other.append(entry('b'), signal);
    await one.append(entry('a', { before: 7 }), signal);
    const next = await one.read(nothing.cursor, signal);
    assert.equal(next.continued, true);
    assert.deepEqual(keysOf(next.entries), ['b', 'a']);
    assert.equal(next.entries[1]?.before, 7);
    assert.deepEqual(keysOf((await readAll(other)).entries), ['b', 'a']);
  });

  raw('states its time, which is not ahead of what it has read', async (one) => {
    const started = Date.now();
    const { asOf } = await one.read(undefined, signal);
    // A minute, for the two clocks.
    assert.ok(asOf > started - 60_000 && asOf < Date.now() + 60_000);
  });

  raw('does not continue from a cursor that it does not know', async (one) => {
    await one.append(entry('a'), signal);
    for (const cursor of ['', 'nonsense', '1', 'x:1', `${NEVER}`, ':::', "';--"]) {
      const page = await one.read(cursor, signal);
      assert.deepEqual([page.continued, keysOf(page.entries)], [false, ['a']]);
    }
  });

  raw('gives more than fits in a page in several, each entry once', async (one, other) => {
    const keys = Array.from({ length: 4_500 }, (_, index) => `k${index}`);
    for (let at = 0; at < keys.length; at += 100) {
      await Promise.all(keys.slice(at, at + 100).map((key) => one.append(entry(key), signal)));
    }
    const { entries } = await readAll(other);
    assert.equal(entries.length, keys.length);
    assert.deepEqual(new Set(keysOf(entries)), new Set(keys));
  });

  raw('hints at new entries, if it hints, until it is told to stop', async (one, other, opened) => {
    if (other.subscribe === undefined) return;
    const reader = open(other, opened, 3_600);
    await reader.ready();
    const writer = open(one, opened, 3_600);
    await eventually(async () => {
      const tokenId = `j${Math.random()}`;
      await writer.revoke({ tokenId });
      await new Promise((resolve) => setTimeout(resolve, 50));
      return reader.check(caller({ tokenId })) === 'revoked';
    });
    let hints = 0;
    const stop = other.subscribe(() => {
      hints += 1;
    });
    await eventually(() => hints > 0);
    await stop();
    await stop();
    const heard = hints;
    await writer.revoke({ tokenId: 'last' });
    await eventually(() => reader.check(caller({ tokenId: 'last' })) === 'revoked');
    assert.equal(hints, heard);
  });

  return cases;
}

function caller(facts: Partial<IdentityInput>) {
  return createIdentity({ subject: { kind: 'user', id: 'u0' }, authId: 'a0', ...facts }, 'contract');
}

function entry(key: string, facts: Partial<RevocationEntry> = {}): RevocationEntry {
  return { key, target: JSON.stringify(['revoke', 'token', key, '']), before: 5, expiresAt: NEVER, ...facts };
}

function keysOf(entries: readonly RevocationEntry[]): string[] {
  return entries.map(({ key }) => key);
}

async function readAll(store: RevocationStore): Promise<RevocationPage> {
  let page = await store.read(undefined, signal);
  const entries = [...page.entries];
  while (page.more) {
    page = await store.read(page.cursor, signal);
    assert.equal(page.continued, true);
    entries.push(...page.entries);
  }
  return { ...page, entries };
}

async function eventually(condition: () => boolean | Promise<boolean>): Promise<void> {
  const end = Date.now() + ARRIVAL_MS;
  while (!(await condition())) {
    assert.ok(Date.now() < end, `it did not happen within ${ARRIVAL_MS / 1_000} s`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

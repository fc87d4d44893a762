import assert from 'node:assert/strict';
import type { ReplayStore } from '../issuer/replay-store.js';
import type { ContractCase } from './contract-case.js';

/** Two stores on one empty, migrated source, as two processes would have them, and what ends them. */
export interface ReplayStoresUnderTest {
  readonly stores: readonly [ReplayStore, ReplayStore];
  end?(): Promise<void>;
}

/** How many take one id at once, and how many ids. */
const RIVALS = 16;
const ROUNDS = 10;
/** Seconds that an id lives here: no test takes as long. */
const LIFE_SECONDS = 3_600;
const signal = new AbortController().signal;

/** What every replay store must do, as runner-neutral cases. */
export function replayStoreContract(make: () => Promise<ReplayStoresUnderTest>): ContractCase[] {
  const cases: ContractCase[] = [];
  const test = (name: string, body: (here: ReplayStore, there: ReplayStore) => Promise<void>): void => {
    cases.push({
      name,
      async run() {
        const { stores, end } = await make();
        try {
          await body(...stores);
        } finally {
          await end?.();
        }
      },
    });
  };
  const take = async (store: ReplayStore, id: string, seconds = LIFE_SECONDS): Promise<boolean> =>
    store.take(id, Date.now() / 1_000 + seconds, signal);

  test('takes an id once, whichever process is asked', async (here, there) => {
    assert.equal(await take(here, 'a'), true);
    for (const store of [here, there]) assert.equal(await take(store, 'a'), false);
    assert.equal(await take(there, 'b'), true);
    assert.equal(await take(here, 'b'), false);
  });

  test('takes an id once however many ask at the same time', async (here, there) => {
    for (let round = 0; round < ROUNDS; round++) {
      const answers = await Promise.all(
        Array.from({ length: RIVALS }, (_, index) => take(index % 2 === 0 ? here : there, `id ${round}`)),
      );
      assert.equal(answers.filter((answer) => answer === true).length, 1);
      assert.equal(answers.filter((answer) => answer === false).length, RIVALS - 1);
    }
  });

  test('keeps apart ids that look alike, of any length and any characters', async (here, there) => {
    const ids = [
      'x',
      'X',
      ' x',
      'x ',
      '',
      'x\u0000',
      'é',
      'e\u0301',
      '["x"]',
      '__proto__',
      'x'.repeat(65_536),
      'x\n*?[',
    ];
    for (const id of ids) assert.equal(await take(here, id), true, JSON.stringify(id.slice(0, 10)));
    for (const id of ids) assert.equal(await take(there, id), false, JSON.stringify(id.slice(0, 10)));
    assert.equal(await take(here, `${'x'.repeat(65_536)}y`), true);
  });

  test('remembers an id until its expiry, also a fraction of a second', async (here, there) => {
    for (const seconds of [0.4, 1.2]) {
      const id = `short ${seconds}`;
      const expiresAt = Date.now() / 1_000 + seconds;
      assert.equal(await here.take(id, expiresAt, signal), true);
      let asked = Date.now() / 1_000;
      while (asked < expiresAt) {
        const answer = await there.take(id, expiresAt, signal);
        // Whatever is answered later says nothing.
        asked = Date.now() / 1_000;
        if (asked < expiresAt) assert.equal(answer, false);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  });

  test('remembers what expires late while what expires early comes and goes', async (here, there) => {
    assert.equal(await take(here, 'late', 31_536_000), true);
    for (let index = 0; index < 300; index++) await take(there, `early ${index}`, 0.01);
    assert.equal(await take(there, 'late', 31_536_000), false);
  });

  return cases;
}

import { memoryTokenStore } from 'tollkeeper';
import { tokenStoreContract } from 'tollkeeper/testing';
import { describe, expect, it } from 'vitest';
import { brokenTokenStores } from './broken-token-stores.js';

describe('memoryTokenStore', () => {
  for (const { name, run } of tokenStoreContract(async () => ({ store: memoryTokenStore() }))) it(name, run);
});

describe('the contract of token stores', () => {
  for (const { flaw, make } of brokenTokenStores) {
    it(`refuses a store that ${flaw}`, async () => {
      const failures: string[] = [];
      for (const { name, run } of tokenStoreContract(async () => ({ store: make() }))) {
        await run().catch((error: Error) => failures.push(`${name}: ${error.name}`));
      }
      expect(failures).not.toEqual([]);
    });
  }

  it('ends every store that it was given', async () => {
    let open = 0;
    const cases = tokenStoreContract(async () => {
      open += 1;
      return {
        store: memoryTokenStore(),
        async end() {
          open -= 1;
        },
      };
    });
    for (const { run } of cases) await run();
    expect([cases.length > 10, open]).toEqual([true, 0]);
  });
});

import type { RevocationEntry, RevocationPage, RevocationStore } from 'tollkeeper';

export interface ScriptedStore extends RevocationStore {
  /** Answers the next reads, one each; then reads find nothing new. */
  readonly answers: (Partial<RevocationPage> | Error | Promise<Partial<RevocationPage>>)[];
  readonly cursors: (string | undefined)[];
  readonly appended: RevocationEntry[];
  /** What the next writes fail with. */
  writeFails: Error | undefined;
  /** What reads fail with, while it is set. */
  down: Error | undefined;
  asOf: () => number;
  hint(): void;
  readonly hinted: { listening: number };
}

/** A store whose answers the test decides, for what no real server does on demand. */
export function scriptedStore(): ScriptedStore {
  const listeners = new Set<() => void>();
  const store: ScriptedStore = {
    answers: [],
    cursors: [],
    appended: [],
    writeFails: undefined,
    down: undefined,
    asOf: () => Number.MAX_SAFE_INTEGER,
    hinted: { listening: 0 },
    hint() {
      for (const listener of listeners) listener();
    },
    async append(entry) {
      if (store.writeFails !== undefined) throw store.writeFails;
      store.appended.push(entry);
    },
    async read(cursor) {
      store.cursors.push(cursor);
      if (store.down !== undefined) throw store.down;
      const answer = await store.answers.shift();
      if (answer instanceof Error) throw answer;
      return { entries: [], cursor: 'c', more: false, continued: cursor !== undefined, asOf: store.asOf(), ...answer };
    },
    subscribe(hint) {
      listeners.add(hint);
      store.hinted.listening += 1;
      return async () => {
        listeners.delete(hint);
        store.hinted.listening -= 1;
      };
    },
  };
  return store;
}

export function denial(tokenId: string): RevocationEntry {
  return {
    key: tokenId,
    target: JSON.stringify(['revoke', 'token', tokenId, '']),
    before: 4_294_967_295,
    expiresAt: 4_294_967_295,
  };
}

export function change(tokenId: string): RevocationEntry {
  return { ...denial(tokenId), target: JSON.stringify(['change', 'token', tokenId, '']), before: 0 };
}

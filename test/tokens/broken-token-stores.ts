import { memoryTokenStore, type StoredToken, type TokenStore } from 'tollkeeper';

/** Stores with one flaw each, for the contract to find. */
export const brokenTokenStores: readonly { readonly flaw: string; readonly make: () => TokenStore }[] = [
  {
    flaw: 'lets the last writer win',
    make: () => {
      const store = memoryTokenStore();
      return broken(store, {
        async updateToken(token) {
          const [found] = await store.getTokens([token.id]);
          return found !== undefined && store.updateToken({ ...token, version: found.token.version });
        },
      });
    },
  },
  {
    flaw: 'replaces a token in two steps',
    make: () => {
      const store = memoryTokenStore();
      return broken(store, {
        async insertToken(token, replaced) {
          const inserted = await store.insertToken(token);
          if (inserted !== 'inserted' || replaced === undefined) return inserted;
          return (await store.updateToken(replaced)) ? 'inserted' : 'conflict';
        },
      });
    },
  },
  {
    flaw: 'sorts the groups',
    make: () => {
      const store = memoryTokenStore();
      const sorted = (token: StoredToken) => ({ ...token, groups: [...token.groups].sort() });
      return broken(store, { insertToken: (token, replaced) => store.insertToken(sorted(token), replaced) });
    },
  },
  {
    flaw: 'forgets to revoke the tokens of a deleted client',
    make: () => {
      const store = memoryTokenStore();
      return broken(store, {
        async deleteClient(id, at) {
          const { items } = await store.listTokens({ limit: 999, clientId: id });
          const deleted = await store.deleteClient(id, at);
          for (const token of items) {
            const [now] = await store.getTokens([token.id]);
            const { revokedAt: _, ...rest } = token;
            if (now !== undefined) await store.updateToken({ ...rest, version: now.token.version });
          }
          return deleted;
        },
      });
    },
  },
  {
    flaw: 'checks a name before it inserts',
    make: () => {
      const store = memoryTokenStore();
      const ids = new Map<string, string>();
      return broken(store, {
        async insertClient(client) {
          const taken = ids.has(JSON.stringify([client.tenant, client.name]));
          await Promise.resolve();
          if (taken) return false;
          ids.set(JSON.stringify([client.tenant, client.name]), client.id);
          await store.insertClient({ ...client, name: client.id });
          return true;
        },
      });
    },
  },
  {
    flaw: 'counts the version up at every use',
    make: () => {
      const store = memoryTokenStore();
      return broken(store, {
        async touchTokens(uses) {
          await store.touchTokens(uses);
          for (const { token } of await store.getTokens(uses.map(({ id }) => id))) await store.updateToken(token);
        },
      });
    },
  },
];

function broken(store: TokenStore, flaws: Partial<TokenStore>): TokenStore {
  return { ...store, ...flaws };
}

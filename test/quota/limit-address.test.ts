import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import express from 'express';
import { Redis } from 'ioredis';
import { AccessError, authenticate, limitAddress, memoryQuotaStore, type QuotaStore, type Verifier } from 'tollkeeper';
import { redisQuotaStore } from 'tollkeeper/redis';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { describeWith, type Served, serve, startRedis } from '../support/index.js';

const ends: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

/** Takes a while over every token, as introspection does, and counts how many it was shown. */
function slowVerifier() {
  const seen = { guesses: 0 };
  const verifier: Verifier = {
    name: 'slow',
    accepts: ({ scheme }) => scheme === 'bearer',
    async verify({ token }) {
      if (!token?.startsWith('good')) seen.guesses += 1;
      await new Promise((resolve) => setTimeout(resolve, 5));
      if (!token?.startsWith('good')) throw new AccessError('invalid_token');
      return { subject: { kind: 'user', id: token }, authId: token };
    },
  };
  return { verifier, seen };
}

async function apiOn(
  store: QuotaStore,
  limit: number,
  handler: express.RequestHandler = (_req, res) => res.json('in'),
) {
  const { verifier, seen } = slowVerifier();
  const app = express();
  app.use(limitAddress({ store, limit, periodSeconds: 3_600 }), authenticate({ verifiers: [verifier] }), handler);
  const served: Served = await serve(app);
  ends.push(() => served.close());
  const ask = async (token: string): Promise<number> => {
    const answer = await fetch(served.url, { headers: { authorization: `Bearer ${token}` } });
    await answer.arrayBuffer();
    return answer.status;
  };
  return { served, ask, seen };
}

function count(statuses: readonly number[]): Record<number, number> {
  const counts: Record<number, number> = {};
  for (const status of statuses) counts[status] = (counts[status] ?? 0) + 1;
  return counts;
}

function suite(make: () => Promise<QuotaStore>): void {
  it('lets no more guesses through than the limit, however many come at once', async () => {
    const { ask, seen } = await apiOn(await make(), 5);
    const statuses = await Promise.all(Array.from({ length: 60 }, (_, guess) => ask(`guess-${guess}`)));
    expect(count(statuses)).toEqual({ 401: 5, 429: 55 });
    expect(seen.guesses).toBe(5);
    expect(await ask('guess')).toBe(429);
  });

  it('refuses none of the good requests that come at once, and counts the guesses among them', async () => {
    const { ask, seen } = await apiOn(await make(), 5);
    const good = await Promise.all(Array.from({ length: 30 }, (_, caller) => ask(`good-${caller}`)));
    expect(count(good)).toEqual({ 200: 30 });
    const mixed = await Promise.all(
      Array.from({ length: 20 }, (_, caller) => ask(caller % 5 === 0 ? `guess-${caller}` : `good-${caller}`)),
    );
    expect(count(mixed)).toEqual({ 200: 16, 401: 4 });
    expect(seen.guesses).toBe(4);
  });

  it('lets go of a request that was authenticated: open streams keep nobody out', async () => {
    const { served, ask } = await apiOn(await make(), 2, (req, res) => {
      if (req.url === '/stream') res.write('open');
      else res.json('in');
    });
    const streams = await Promise.all(
      Array.from({ length: 6 }, (_, stream) =>
        fetch(`${served.url}/stream`, { headers: { authorization: `Bearer good-${stream}` } }),
      ),
    );
    expect(await ask('good')).toBe(200);
    for (const { body } of streams) await body?.cancel();
  });
}

describe('limitAddress in memory', () => {
  suite(async () => memoryQuotaStore());

  it('refuses after 5 s what waited for requests that nobody decides about', async () => {
    const pending: express.Response[] = [];
    const app = express().use(
      limitAddress({ store: memoryQuotaStore(), limit: 1, periodSeconds: 60 }),
      (_req, res) => void pending.push(res),
    );
    const served = await serve(app);
    ends.push(() => served.close());
    const first = fetch(served.url);
    await vi.waitFor(() => expect(pending).toHaveLength(1));
    const started = performance.now();
    const controller = new AbortController();
    const left = fetch(served.url, { signal: controller.signal }).catch(() => 'left');
    setTimeout(() => controller.abort(), 200);
    const second = await fetch(served.url);
    expect([second.status, second.headers.get('retry-after')]).toEqual([429, '1']);
    expect(performance.now() - started).toBeGreaterThan(4_900);
    expect(await left).toBe('left');
    pending[0]?.end();
    expect((await first).status).toBe(200);
    const third = fetch(served.url);
    await vi.waitFor(() => expect(pending).toHaveLength(2));
    pending[1]?.status(401).end();
    expect((await third).status).toBe(401);
    expect((await fetch(served.url)).status).toBe(429);
  });

  it('counts a 401 that the app gives behind authenticate', async () => {
    const { ask } = await apiOn(memoryQuotaStore(), 2, (_req, res) => void res.status(401).end());
    expect([await ask('good-1'), await ask('good-2'), await ask('good-3')]).toEqual([401, 401, 429]);
  });

  it.each([
    ['peek', { type: 'store_error', cause: expect.any(Error) }, 503],
    ['force', { type: 'settle_error', cause: expect.any(Error) }, 401],
  ] as const)('publishes a store that fails to %s', async (failing, event, status) => {
    const seen: unknown[] = [];
    const listen = (message: unknown): unknown => seen.push(message);
    subscribe('tollkeeper:quota', listen);
    ends.push(() => unsubscribe('tollkeeper:quota', listen));
    const memory = memoryQuotaStore();
    const { ask } = await apiOn(
      {
        take: (slot, ops, options) =>
          options.mode === failing ? Promise.reject(new Error('down')) : memory.take(slot, ops, options),
        settle: () => {},
        reset: () => {},
      },
      2,
    );
    expect(await ask('guess')).toBe(status);
    await vi.waitFor(() => expect(seen).toEqual([event]));
  });
});

describeWith('redis', 'limitAddress on Redis', () => {
  suite(async () => {
    const server = await startRedis();
    const client = new Redis(server.url);
    const store = redisQuotaStore(client, { deadlineSeconds: 10 });
    ends.push(
      () => server.stop(),
      () => client.disconnect(),
      () => store.close?.(),
    );
    return store;
  });
});

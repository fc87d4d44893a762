import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import express from 'express';
import { createQuota, enforceQuota, identityOf, limitAddress, memoryQuotaStore, type QuotaStore } from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { serve } from '../support/serve.js';

const events: { type: string }[] = [];
const hear = (message: unknown): void => {
  events.push(message as { type: string });
};
beforeEach(() => subscribe('tollkeeper:quota', hear));
afterEach(() => {
  unsubscribe('tollkeeper:quota', hear);
  events.length = 0;
});

const caller = asIdentity({ subject: { kind: 'user', id: 'u' }, authId: 'k' });
const req = {} as never;
caller(req, {} as never, () => {});

function storeWith(broken: Partial<QuotaStore>): QuotaStore {
  const store = memoryQuotaStore();
  return {
    take: (...args) => store.take(...args),
    settle: (...args) => store.settle(...args),
    reset: (...args) => store.reset(...args),
    ...broken,
  };
}

function quotaOn(store: QuotaStore) {
  return createQuota({
    store,
    plans: { free: [{ name: 'p', per: 'subject', limit: 5, window: { periodSeconds: 1e6 } }] },
    defaultPlan: 'free',
  });
}

const fail = (): never => {
  throw new Error('down');
};

describe('a store that fails', () => {
  it('makes peek, reset and the handler fail with 503, and is published', async () => {
    const quota = quotaOn(storeWith({ take: fail, reset: async () => fail() }));
    await expect(quota.peek(identityOf(req))).rejects.toMatchObject({ code: 'quota_unavailable' });
    await expect(quota.reset(identityOf(req))).rejects.toMatchObject({ code: 'quota_unavailable' });
    const served = await serve(express().use(caller, quota.handler()));
    const answer = await fetch(served.url);
    expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '5']);
    await served.close();
    expect(events.map(({ type }) => type)).toEqual(['store_error', 'store_error', 'store_error']);
  });

  it.each([
    ['at once', fail],
    ['later', async () => fail()],
  ])('while it settles (%s) is published, and the answer stands', async (_name, settle) => {
    const quota = quotaOn(storeWith({ settle }));
    const app = express().use(caller, enforceQuota({ quota }), (_req, res) => res.status(500).json('broken'));
    const served = await serve(app);
    expect((await fetch(served.url)).status).toBe(500);
    await served.close();
    await expect.poll(() => events.map(({ type }) => type)).toEqual(['settle_error']);
  });

  it.each([
    ['at once', fail],
    ['later', async () => fail()],
  ])('while an address is counted (%s) changes no answer', async (_name, force) => {
    const memory = memoryQuotaStore();
    const store = storeWith({
      take: (slot, ops, options) => (options.mode === 'force' ? force() : memory.take(slot, ops, options)),
    });
    const app = express().use(limitAddress({ store, limit: 2, periodSeconds: 60 }), (_req, res) =>
      res.status(401).json('no'),
    );
    const served = await serve(app);
    for (let call = 0; call < 4; call++) expect((await fetch(served.url)).status).toBe(401);
    await served.close();
  });

  it('is closed with its quota, and made ready with it', async () => {
    const told: string[] = [];
    const quota = quotaOn(
      storeWith({
        ready: async () => void told.push('ready'),
        close: async () => void told.push('closed'),
      }),
    );
    await quota.ready();
    await quota.close();
    await quotaOn(storeWith({})).ready();
    await quotaOn(storeWith({})).close();
    expect(told).toEqual(['ready', 'closed']);
  });

  it('is refused at construction when it leases what cannot be leased, or is none', () => {
    const plans = { free: [{ name: 'p', per: 'subject', limit: 5, window: { periodSeconds: 60 } }] } as const;
    expect(() => createQuota({ store: storeWith({ leased: true }), plans })).toThrow(
      'plans.free: leases need calendar windows',
    );
    expect(() => createQuota({ store: memoryQuotaStore as never, plans })).toThrow('did you call its factory?');
    expect(() => limitAddress({ store: storeWith({ leased: true }), limit: 1, periodSeconds: 1 })).toThrow('leases');
    const day = { kind: 'calendar', unit: 'day' } as const;
    createQuota({ store: storeWith({ leased: true }), plans: { free: [{ ...plans.free[0], window: day }] } });
  });

  it.each([undefined, null, {}, 'quota'])('enforceQuota takes no %j for a quota', (quota) => {
    expect(() => enforceQuota({ quota: quota as never })).toThrow('quota must come from createQuota');
  });

  it('leaves every kind of window its share, and settles on it', async () => {
    const quota = createQuota({
      store: storeWith({ take: fail }),
      replicas: 2,
      defaultPlan: 'free',
      plans: {
        free: [
          { name: 'day', per: 'subject', limit: 3, onStoreError: 'local', window: { kind: 'calendar', unit: 'day' } },
          { name: 'rate', per: 'subject', limit: 9, onStoreError: 'local', window: { periodSeconds: 1e6, burst: 8 } },
          { name: 'same time', per: 'subject', limit: 2, onStoreError: 'local', window: { kind: 'concurrent' } },
        ],
      },
    });
    const served = await serve(express().use(caller, enforceQuota({ quota }), (_req, res) => res.json('in')));
    const statuses: number[] = [];
    for (let call = 0; call < 3; call++) statuses.push((await fetch(served.url)).status);
    expect(statuses).toEqual([200, 200, 429]);
    await served.close();
  });

  it('resets one policy by its name, and refuses a name that the plan does not have', async () => {
    const quota = quotaOn(memoryQuotaStore());
    await quota.reset(identityOf(req), { policy: 'p' });
    await expect(quota.reset(identityOf(req), { policy: 'q' })).rejects.toMatchObject({ code: 'quota_unavailable' });
  });
});

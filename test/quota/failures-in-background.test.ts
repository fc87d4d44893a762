import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { runInNewContext } from 'node:vm';
import express from 'express';
import request from 'supertest';
import { createQuota, enforceQuota, limitAddress, memoryQuotaStore, type QuotaStore, usageOf } from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';
import { expect, it, vi } from 'vitest';

const caller = asIdentity({ subject: { kind: 'user', id: 'u' }, authId: 'k' });
const tokens = {
  name: 'tokens',
  per: 'subject',
  unit: 'tokens',
  limit: 10,
  window: { kind: 'calendar', unit: 'day' },
} as const;

function storeWith(overrides: Partial<QuotaStore>): QuotaStore {
  const store = memoryQuotaStore();
  return {
    take: (slot, ops, options) => store.take(slot, ops, options),
    settle: (slot, hold, actual) => store.settle(slot, hold, actual),
    reset: (slot, ops) => store.reset(slot, ops),
    ...overrides,
  };
}

it.each([
  [
    'throws',
    () => {
      throw new Error('down');
    },
  ],
  ['rejects', () => Promise.reject(new Error('down'))],
  [
    'rejects with a promise of another realm',
    (): Promise<never> => runInNewContext('Promise.reject(new Error("down"))'),
  ],
])('a settling that %s is published, and the answer stands', async (_name, settle) => {
  const seen: unknown[] = [];
  const listen = (message: unknown) => seen.push(message);
  subscribe('tollkeeper:quota', listen);
  const quota = createQuota({ store: storeWith({ settle }), plans: { p: [tokens] }, defaultPlan: 'p' });
  const app = express().use(caller, enforceQuota({ quota, reserve: () => ({ tokens: 5 }) }), (req, res) => {
    usageOf(req).add('tokens', 1);
    res.end();
  });
  expect((await request(app).get('/')).status).toBe(200);
  await vi.waitFor(() =>
    expect(seen).toEqual([{ type: 'settle_error', cause: expect.objectContaining({ message: 'down' }) }]),
  );
  unsubscribe('tollkeeper:quota', listen);
});

it('answers nothing twice when the response is over before the store has decided', async () => {
  let decide = (): void => {};
  const store = memoryQuotaStore();
  const settle = vi.spyOn(store, 'settle');
  const slow = storeWith({
    take: (slot, ops, options) =>
      new Promise((resolve) => {
        decide = () => resolve(store.take(slot, ops, options));
      }),
    settle: (slot, hold, actual) => store.settle(slot, hold, actual),
  });
  const quota = createQuota({ store: slow, plans: { p: [tokens] }, defaultPlan: 'p' });
  const handler = vi.fn();
  const impatient: express.RequestHandler = (_req, res, next) => {
    next();
    res.status(504).end();
  };
  const app = express().use(caller, impatient, enforceQuota({ quota, reserve: () => ({ tokens: 5 }) }), handler);
  expect((await request(app).get('/')).status).toBe(504);
  decide();
  await vi.waitFor(() => expect(settle).toHaveBeenCalledTimes(1));
  expect(settle.mock.calls[0]?.[2]).toEqual([0]);
  expect(handler).not.toHaveBeenCalled();
});

it('refuses plans and address limits that cannot be leased', () => {
  const leased = { ...storeWith({}), leased: true };
  const rate = { name: 'r', per: 'subject', limit: 1, window: { periodSeconds: 1 } } as const;
  expect(() => createQuota({ store: leased, plans: { p: [tokens, rate] } })).toThrow(
    'plans.p: leases need calendar windows',
  );
  createQuota({ store: leased, plans: { p: [tokens] } });
  expect(() => limitAddress({ store: leased, limit: 1, periodSeconds: 1 })).toThrow('leases need calendar windows');
});

it('limitAddress goes on when a failure cannot be counted, and asks an asynchronous store too', async () => {
  for (const force of [
    () => {
      throw new Error('down');
    },
    () => Promise.reject(new Error('down')),
  ]) {
    const store = memoryQuotaStore();
    const broken = storeWith({
      take: (slot, ops, options) =>
        options.mode === 'force' ? (force() as never) : Promise.resolve(store.take(slot, ops, options)),
    });
    const app = express().use(
      limitAddress({ store: broken, limit: 1, periodSeconds: 60 }),
      (_req, res) => void res.status(401).end(),
    );
    expect([(await request(app).get('/')).status, (await request(app).get('/')).status]).toEqual([401, 401]);
  }
});

it('prepares and closes its store', async () => {
  const ready = vi.fn(async () => {});
  const close = vi.fn(async () => {});
  const quota = createQuota({ store: storeWith({ ready, close }), plans: {} });
  await quota.ready();
  await quota.close();
  expect([ready.mock.calls.length, close.mock.calls.length]).toEqual([1, 1]);
});

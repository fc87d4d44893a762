import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { setTimeout as sleep } from 'node:timers/promises';
import express from 'express';
import request from 'supertest';
import { authenticate, createRevocations, type RevocationEntry, type Revocations } from 'tollkeeper';
import { manualClock } from 'tollkeeper/testing';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { identity } from './identity.js';
import { change, denial, scriptedStore } from './scripted-store.js';

const NOW_MS = 1_800_000_000_000;

const opened: Revocations[] = [];
const told: { type: string; [detail: string]: unknown }[] = [];
const listen = (message: unknown): void => {
  told.push(message as (typeof told)[number]);
};

beforeEach(() => {
  told.length = 0;
  subscribe('tollkeeper:revocations', listen);
});
afterEach(async () => {
  unsubscribe('tollkeeper:revocations', listen);
  await Promise.all(opened.splice(0).map((revocations) => revocations.close()));
});

/** Polls every 20 ms of real time; staleness is on the clock that the test moves. */
function scripted({ pollSeconds = 0.02, maxStalenessSeconds = 60 } = {}) {
  const store = scriptedStore();
  const clock = manualClock(NOW_MS);
  const revocations = createRevocations({ store, clock, pollSeconds, maxStalenessSeconds });
  opened.push(revocations);
  const reads = async (count: number): Promise<void> => {
    const { length } = store.cursors;
    await vi.waitFor(() => expect(store.cursors.length).toBeGreaterThanOrEqual(length + count), 5_000);
  };
  return { store, clock, revocations, reads };
}

describe('the first view', () => {
  it('is read on first use, not on construction', async () => {
    const { store, revocations } = scripted();
    await sleep(30);
    expect([store.cursors.length, store.hinted.listening]).toEqual([0, 0]);
    expect(revocations.check(identity())).toBe('unknown');
    await vi.waitFor(() => expect(revocations.check(identity())).toBe('live'));
    expect(store.hinted.listening).toBe(1);
  });

  it('comes before any answer but a denial that was made here', async () => {
    const { store, revocations } = scripted();
    store.down = new Error('not there');
    await revocations.revoke({ tokenId: 'j1' });
    expect(revocations.check(identity({ tokenId: 'j1' }))).toBe('revoked');
    expect(revocations.check(identity({ tokenId: 'j2' }))).toBe('unknown');
    expect(revocations.staleAt).toBe(Number.NEGATIVE_INFINITY);
  });

  it('is complete only when all its pages are there', async () => {
    const { store, revocations } = scripted();
    let release = (_: object): void => {};
    store.answers.push(
      { entries: [denial('j1')], more: true, cursor: 'p1' },
      new Promise((resolve) => {
        release = resolve;
      }),
    );
    const ready = revocations.ready();
    await vi.waitFor(() => expect(store.cursors).toEqual([undefined, 'p1']));
    expect(revocations.check(identity({ tokenId: 'j1' }))).toBe('revoked');
    expect(revocations.check(identity({ tokenId: 'j2' }))).toBe('unknown');
    release({ entries: [denial('j2')], continued: true });
    await ready;
    expect(revocations.check(identity({ tokenId: 'j2' }))).toBe('revoked');
    expect(revocations.check(identity({ tokenId: 'j3' }))).toBe('live');
    expect(told).toEqual([{ type: 'ready' }]);
  });

  it('is waited for through failures', async () => {
    const { store, revocations, reads } = scripted();
    store.down = Object.assign(new Error('secret words'), { code: 'ECONNREFUSED' });
    const ready = revocations.ready();
    await reads(2);
    store.down = undefined;
    await ready;
    await revocations.ready();
    expect(told.at(0)).toEqual({ type: 'read_failed', detail: 'Error ECONNREFUSED' });
    expect(JSON.stringify(told)).not.toContain('secret');
  });

  it('makes ready() reject when the signal aborts first, or everything is closed', async () => {
    const { store, revocations } = scripted();
    store.down = new Error('secret words');
    const controller = new AbortController();
    const waiting = revocations.ready(controller.signal);
    setTimeout(() => controller.abort(), 30);
    await expect(waiting).rejects.toThrow('the revocations have no first view of their store: Error');
    const closed = revocations.ready();
    await revocations.close();
    await expect(closed).rejects.toThrow('no first view');
    await expect(revocations.ready(AbortSignal.abort())).rejects.toThrow('no first view');
  });

  it('makes ready() reject after five seconds without a signal', async () => {
    vi.useFakeTimers();
    try {
      const { store, revocations } = scripted();
      store.down = new Error('not there');
      const ready = revocations.ready();
      const outcome = expect(ready).rejects.toThrow('no first view');
      await vi.advanceTimersByTimeAsync(4_999);
      await vi.advanceTimersByTimeAsync(1);
      await outcome;
    } finally {
      vi.useRealTimers();
    }
  });

  it('is waited for without a signal as long as its pages come', async () => {
    vi.useFakeTimers();
    try {
      const { store, revocations } = scripted();
      for (let page = 0; page < 4; page++) {
        store.answers.push(new Promise((resolve) => setTimeout(() => resolve({ more: page < 3 }), 4_000 * (page + 1))));
      }
      let settled = '';
      revocations.ready().then(
        () => {
          settled = 'ready';
        },
        () => {
          settled = 'rejected';
        },
      );
      await vi.advanceTimersByTimeAsync(15_999);
      expect(settled).toBe('');
      await vi.advanceTimersByTimeAsync(1);
      expect(settled).toBe('ready');
    } finally {
      vi.useRealTimers();
    }
  });

  it('is awaited by a request, which is then answered', async () => {
    const { store, revocations } = scripted();
    store.answers.push(new Promise((resolve) => setTimeout(() => resolve({}), 50)));
    const app = express();
    const verifier = { name: 'v', accepts: () => true, verify: () => identity() };
    app.use(authenticate({ verifiers: [verifier], revocations }), (_req, res) => {
      res.json('ok');
    });
    const res = await request(app).get('/').set('authorization', 'Bearer t1');
    expect(res.status).toBe(200);
  });
});

describe('a view that is held', () => {
  it('is good until maxStalenessSeconds after the start of its last read, then unknown, and good again after a read', async () => {
    const { store, clock, revocations, reads } = scripted();
    await revocations.ready();
    await reads(1);
    store.down = new Error('down');
    await reads(1);
    expect(revocations.staleAt).toBe(60_000);
    clock.advance(59.999);
    expect(revocations.check(identity())).toBe('live');
    await revocations.revoke({ tokenId: 'j1' });
    clock.advance(0.001);
    expect(revocations.check(identity())).toBe('unknown');
    expect(revocations.check(identity({ tokenId: 'j1' }))).toBe('revoked');
    await reads(2);
    store.down = undefined;
    await vi.waitFor(() => expect(revocations.check(identity())).toBe('live'));
    expect(told.map(({ type }) => type).filter((type) => type !== 'read_failed')).toEqual([
      'ready',
      'revoked',
      'stale',
      'recovered',
    ]);
  });

  it('answers a cached caller with 503 and Retry-After once it is stale', async () => {
    const { store, clock, revocations } = scripted();
    const app = express();
    const verifier = { name: 'v', accepts: () => true, verify: () => identity() };
    app.use(authenticate({ verifiers: [verifier], revocations, clock, cache: { ttlSeconds: 1_000 } }), (_req, res) => {
      res.json('ok');
    });
    const ask = () => request(app).get('/').set('authorization', 'Bearer t1');
    expect((await ask()).status).toBe(200);
    store.down = new Error('down');
    clock.advance(59);
    expect((await ask()).status).toBe(200);
    clock.advance(1);
    const res = await ask();
    expect([res.status, res.body.code, res.headers['retry-after']]).toEqual([503, 'revocation_stale', '5']);
    expect(res.headers['www-authenticate']).toBeUndefined();
  });

  it('counts as older by as much as the source’s time is behind', async () => {
    const { store, clock, revocations, reads } = scripted();
    store.asOf = () => NOW_MS - 20_000;
    await revocations.ready();
    expect(revocations.staleAt).toBe(40_000);
    clock.advance(41);
    await reads(2);
    expect(revocations.staleAt).toBe(41_000 + 60_000 - 61_000);
    expect(revocations.check(identity())).toBe('unknown');
    expect(told.at(-1)).toEqual({ type: 'stale', lagSeconds: 61 });
    store.asOf = () => NOW_MS + 1_000_000;
    await vi.waitFor(() => expect(revocations.check(identity())).toBe('live'));
    expect(revocations.staleAt).toBe(41_000 + 60_000);
  });

  it('keeps its denials when the source comes back empty, and has everything verified anew', async () => {
    const { store, revocations, reads } = scripted();
    store.answers.push({ entries: [denial('j1')] });
    await revocations.ready();
    await reads(1);
    const decidedAt = revocations.version;
    store.answers.push({ continued: false, cursor: 'new' });
    await vi.waitFor(() => expect(revocations.check(identity({ tokenId: 'j2' }), decidedAt)).toBe('changed'));
    expect(revocations.check(identity({ tokenId: 'j1' }))).toBe('revoked');
    expect(revocations.check(identity({ tokenId: 'j2' }), revocations.version)).toBe('live');
    expect(told.filter(({ type }) => type === 'discontinued')).toHaveLength(1);
  });

  it('has everything verified anew after half an hour without a read, since changes may be forgotten by then', async () => {
    const { store, clock, revocations, reads } = scripted();
    await revocations.ready();
    store.down = new Error('down');
    await reads(1);
    const decidedAt = revocations.version;
    clock.advance(1_801);
    store.down = undefined;
    await vi.waitFor(() => expect(revocations.check(identity(), decidedAt)).toBe('changed'));
  });

  it('applies a change that is read, and does not grow with a denial that it knows', async () => {
    const { store, revocations, reads } = scripted();
    await revocations.revoke({ tokenId: 'j1' });
    await revocations.ready();
    const decidedAt = revocations.version;
    store.answers.push({ entries: [store.appended[0] as RevocationEntry] });
    await reads(2);
    expect(revocations.version).toBe(decidedAt);
    store.answers.push({ entries: [change('j2')] });
    await vi.waitFor(() => expect(revocations.check(identity({ tokenId: 'j2' }), decidedAt)).toBe('changed'));
  });

  it.each<[string, Partial<RevocationEntry>]>([
    ['target that is no JSON', { target: '{' }],
    ['target that is no list', { target: '{"action":"revoke"}' }],
    ['unknown kind', { target: '["revoke","planet","x",""]' }],
    ['unknown action', { target: '["bless","token","x",""]' }],
    ['change of a kind that does not change', { target: '["change","tenant","x",""]' }],
    ['id that is no text', { target: '["revoke","token",5,""]' }],
    ['issuer that is no text', { target: '["revoke","token","x",null]' }],
    ['watermark that is no number', { before: Number.NaN }],
    ['watermark beyond for ever', { before: 4_294_967_296 }],
    ['expiry that is no number', { expiresAt: 'never' as unknown as number }],
  ])('is not taken from an entry with a(n) %s: the read has failed', async (_, wrong) => {
    const { store, revocations, reads } = scripted();
    await revocations.ready();
    const cursor = 'c';
    store.answers.push({ entries: [{ ...denial('x'), ...wrong }], cursor: 'skipped' });
    await reads(2);
    expect(store.cursors.at(-1)).toBe(cursor);
    expect(told.filter(({ type }) => type === 'read_failed')).toHaveLength(1);
  });
});

describe('writing', () => {
  it('rejects when the store does not take a denial, which holds here all the same', async () => {
    const { store, revocations } = scripted();
    await revocations.ready();
    store.writeFails = new Error('disk full');
    await expect(revocations.revoke({ clientId: 'c1' })).rejects.toThrow('disk full');
    await expect(revocations.changed({ tokenId: 'j1' })).rejects.toThrow('disk full');
    expect(revocations.check(identity({ clientId: 'c1' }))).toBe('revoked');
    expect(revocations.check(identity({ tokenId: 'j1' }), 0)).toBe('changed');
    expect(told.filter(({ type }) => type === 'write_failed')).toHaveLength(2);
  });

  it('rejects after five seconds when the store does not answer', async () => {
    vi.useFakeTimers();
    try {
      const { store, revocations } = scripted();
      store.append = () => new Promise(() => {});
      const outcome = expect(revocations.revoke({ tokenId: 'j1' })).rejects.toThrow('no answer within 5000 ms');
      await vi.advanceTimersByTimeAsync(5_000);
      await outcome;
      expect(revocations.check(identity({ tokenId: 'j1' }))).toBe('revoked');
    } finally {
      vi.useRealTimers();
    }
  });

  it('writes what the store needs, and the reason', async () => {
    const { store, revocations } = scripted();
    await revocations.revoke({ clientId: 'c1', issuer: 'https://a' }, { before: 5.9, expiresAt: 10, reason: 'left' });
    await revocations.revoke({ all: true });
    await revocations.changed({ keyId: 'k1' });
    const now = NOW_MS / 1_000;
    expect(store.appended).toEqual([
      {
        key: expect.stringMatching(/^[\w-]{43}$/),
        target: '["revoke","client","c1","https://a"]',
        before: 5,
        expiresAt: 70,
        reason: 'left',
      },
      { key: expect.any(String), target: '["revoke","all","",""]', before: now, expiresAt: 4_294_967_295 },
      { key: expect.any(String), target: '["change","key","k1",""]', before: 0, expiresAt: now + 3_600 },
    ]);
  });
});

describe('reading', () => {
  it('happens at once on a hint, and once more for a hint that comes during a read', async () => {
    const { store, revocations } = scripted({ pollSeconds: 1_000, maxStalenessSeconds: 1_000 });
    await revocations.ready();
    expect(store.cursors).toHaveLength(1);
    let release = (_: object): void => {};
    store.answers.push(
      new Promise((resolve) => {
        release = resolve;
      }),
    );
    store.hint();
    await sleep(5);
    for (let count = 0; count < 5; count++) store.hint();
    expect(store.cursors).toHaveLength(2);
    store.answers.push({ entries: [denial('j1')] });
    release({});
    await vi.waitFor(() => expect(revocations.check(identity({ tokenId: 'j1' }))).toBe('revoked'));
    await sleep(5);
    expect(store.cursors).toHaveLength(3);
  });

  it('is given up after five seconds and tried again within one more', async () => {
    vi.useFakeTimers();
    try {
      const { store, revocations } = scripted({ pollSeconds: 10 });
      await revocations.ready();
      let aborted = false;
      const read = store.read;
      store.read = (_cursor, signal) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener('abort', () => {
            aborted = true;
            reject(signal.reason);
          });
        });
      await vi.advanceTimersByTimeAsync(10_000);
      await vi.advanceTimersByTimeAsync(5_000);
      expect(aborted).toBe(true);
      store.read = read;
      const { length } = store.cursors;
      await vi.advanceTimersByTimeAsync(1_000);
      expect(store.cursors.length).toBe(length + 1);
    } finally {
      vi.useRealTimers();
    }
  });

  it('happens every pollSeconds, or up to a tenth earlier', async () => {
    vi.useFakeTimers();
    try {
      const { store, revocations } = scripted({ pollSeconds: 10 });
      await revocations.ready();
      for (let round = 0; round < 20; round++) {
        const { length } = store.cursors;
        await vi.advanceTimersByTimeAsync(8_999);
        expect(store.cursors).toHaveLength(length);
        const started = Date.now();
        while (store.cursors.length === length) await vi.advanceTimersToNextTimerAsync();
        expect(Date.now() - started).toBeLessThanOrEqual(1_001);
      }
    } finally {
      vi.useRealTimers();
    }
  });

  it('ends with close(), and so do hints', async () => {
    const { store, revocations } = scripted();
    await revocations.ready();
    await revocations.close();
    await revocations.close();
    const { length } = store.cursors;
    store.hint();
    await sleep(50);
    expect(store.cursors).toHaveLength(length);
    expect(store.hinted.listening).toBe(0);
    revocations.check(identity());
    await revocations.revoke({ tokenId: 'j1' });
    expect(revocations.check(identity({ tokenId: 'j1' }))).toBe('revoked');
  });

  it('ends with close() in the middle of a read, and never begins after it', async () => {
    const { store, revocations } = scripted();
    store.answers.push(new Promise(() => {}));
    revocations.check(identity());
    await sleep(5);
    await revocations.close();
    expect(told.filter(({ type }) => type === 'read_failed')).toEqual([]);
    const unused = scripted();
    await unused.revocations.close();
    expect(unused.revocations.check(identity())).toBe('unknown');
    await sleep(30);
    expect(unused.store.cursors).toEqual([]);
  });
});

import express from 'express';
import fc from 'fast-check';
import request from 'supertest';
import { limitAddress, memoryQuotaStore, requireNetwork } from 'tollkeeper';
import { describe, expect, it } from 'vitest';

/** Whether a caller that a trusted proxy forwards for is on the list. */
async function isAllowed(allow: string[], forwarded: string): Promise<boolean> {
  const app = express().use(
    requireNetwork({ allow, trustedProxies: ['127.0.0.1', '::1'] }),
    (_req, res) => void res.end(),
  );
  const { status } = await request(app).get('/').set('x-forwarded-for', forwarded);
  expect([200, 403]).toContain(status);
  return status === 200;
}

describe('addresses', () => {
  it.each([
    ['10.1.2.3', '10.0.0.0/8', true],
    ['11.1.2.3', '10.0.0.0/8', false],
    ['10.1.2.3', '0.0.0.0/0', true],
    ['::ffff:10.1.2.3', '10.0.0.0/8', true],
    ['::ffff:a01:203', '10.0.0.0/8', true],
    ['0:0:0:0:0:ffff:0a01:0203', '10.1.2.3', true],
    ['::FFFF:10.1.2.3', '10.1.2.3', true],
    ['10.1.2.3', '::ffff:10.1.2.3', true],
    ['fd00::1', 'fd00::/8', true],
    ['fd00:0:0:0:0:0:0:1', 'fd00::1', true],
    ['fe80::1%eth0', 'fe80::1', true],
    ['[fd00::1]:8080', 'fd00::/8', true],
    ['[fd00::1]', 'fd00::/8', true],
    ['10.1.2.3:8080', '10.1.2.3', true],
    ['fe00::1', 'fd00::/8', false],
    ['64:ff9b::10.1.2.3', '10.0.0.0/8', false],
    ['::10.1.2.3', '10.0.0.0/8', false],
    ['1::ffff:10.1.2.3', '10.0.0.0/8', false],
    ['10.1.2', '10.0.0.0/8', false],
    ['010.1.2.3', '10.0.0.0/8', false],
    ['10.1.2.3.4', '10.0.0.0/8', false],
    ['localhost', '0.0.0.0/0', false],
    ['', '0.0.0.0/0', false],
    [',', '0.0.0.0/0', false],
  ])('%s on %s: %s', async (address, allow, expected) => {
    if (address === '') return;
    expect(await isAllowed([allow], address)).toBe(expected);
  });

  it('never believe more of X-Forwarded-For than trusted proxies wrote', async () => {
    const hop = fc.constantFrom('10.9.9.9', '8.8.8.8', '127.0.0.1', '::1', 'unknown', '');
    await fc.assert(
      fc.asyncProperty(fc.array(hop, { minLength: 1, maxLength: 5 }), async (hops) => {
        // The first hop from the right that is no trusted proxy is the caller.
        let caller: string | undefined = '127.0.0.1';
        const stated = hops.join(',').trim() === '' ? [] : hops;
        for (const each of [...stated].reverse()) {
          if (each === 'unknown' || each === '') {
            caller = undefined;
            break;
          }
          caller = each;
          if (each !== '127.0.0.1' && each !== '::1') break;
        }
        expect(await isAllowed(['10.9.9.9'], hops.join(', '))).toBe(caller === '10.9.9.9');
      }),
      { numRuns: 60 },
    );
  });

  it('count IPv6 by /64, however they are spelt, and IPv4 whole', async () => {
    const app = express().use(
      limitAddress({
        store: memoryQuotaStore(),
        limit: 1,
        periodSeconds: 60,
        count: 'all',
        trustedProxies: ['127.0.0.1'],
      }),
      (_req, res) => void res.end(),
    );
    const ask = async (address: string) => (await request(app).get('/').set('x-forwarded-for', address)).status;
    for (const [first, same] of [
      ['2001:db8:1:2::1', '2001:DB8:1:2:ffff::'],
      ['::1:0:0:0:1', '0:0:0:1:2:3:4:5'],
      ['1.2.3.4', '::ffff:1.2.3.4'],
      ['2001:db8::1.2.3.4', '2001:db8:0:0::5'],
    ] as const) {
      expect([await ask(first), await ask(same)], first).toEqual([200, 429]);
    }
    expect([await ask('2001:db8:1:3::1'), await ask('1.2.3.5')]).toEqual([200, 200]);
  });

  it.each([':', '0:', '0'])('of any length that are none are refused: %s, over and over', async (part) => {
    expect(await isAllowed(['0.0.0.0/0', '::/0'], part.repeat(12_000 / part.length))).toBe(false);
    expect(await isAllowed(['0.0.0.0/0'], `${part.repeat(12_000 / part.length)}ffff:1.2.3.4`)).toBe(false);
  });
});

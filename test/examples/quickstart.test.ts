import { readFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { afterAll, expect, it, vi } from 'vitest';

vi.stubEnv('PORT', '0');
vi.spyOn(console, 'log').mockImplementation(() => {});
const { ledger, pipeline, server, token } = await import('../../examples/quickstart.js');
afterAll(async () => {
  server.close();
  await pipeline.close();
});

it('the quick start knows its caller, refuses others and accounts for every request', async () => {
  if (!server.listening) await new Promise((resolve) => server.once('listening', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/reports`;
  const ask = (authorization?: string) => fetch(url, authorization === undefined ? {} : { headers: { authorization } });
  const welcome = await ask(`Bearer ${token}`);
  expect([welcome.status, await welcome.json()]).toEqual([200, { hello: 'ada-inc' }]);
  expect((await ask()).status).toBe(401);
  expect((await ask(`Bearer ${token}x`)).status).toBe(401);
  await vi.waitFor(() => expect(pipeline.stats().written).toBe(1));
  await pipeline.flush();
  const hour = 3_600_000;
  const { rows } = await ledger.usage({
    from: new Date(Date.now() - hour),
    to: new Date(Date.now() + hour),
    groupBy: ['tenant'],
  });
  expect(rows).toMatchObject([{ key: { tenant: 'ada-inc' }, quantities: { requests: 1n }, events: 1 }]);
});

it('the README shows the quick start as it is', () => {
  const [readme, source] = ['README.md', 'examples/quickstart.ts'].map((file) =>
    readFileSync(new URL(`../../${file}`, import.meta.url), 'utf8'),
  );
  expect(readme).toContain(source);
});

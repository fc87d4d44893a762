import { createServer } from 'node:http';
import { shutdown } from 'tollkeeper';
import { expect, it, vi } from 'vitest';

async function listening(handler: Parameters<typeof createServer>[1]) {
  const server = createServer(handler as never).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  return { server, url: `http://127.0.0.1:${(server.address() as { port: number }).port}` };
}

it('ends the requests that do not drain in time', async () => {
  const { server, url } = await listening(() => {});
  const hanging = fetch(url).catch((error: Error) => error);
  await vi.waitFor(() => expect(server.connections ?? 1).toBeGreaterThan(0));
  await new Promise((resolve) => setTimeout(resolve, 30));
  expect(await shutdown({ server, parts: [], drainSeconds: 0.05 })).toEqual({ undelivered: 0 });
  expect(await hanging).toBeInstanceOf(Error);
});

it('closes every part, also when one fails, and tells of all that failed', async () => {
  const closed: string[] = [];
  const parts = [
    {
      close: async () => {
        throw new Error('first');
      },
    },
    { close: async () => void closed.push('second') },
    {
      close: () => {
        throw new Error('third');
      },
    },
  ];
  const error = await shutdown({ parts: parts as never }).catch((cause: unknown) => cause);
  expect(error).toBeInstanceOf(AggregateError);
  expect((error as AggregateError).errors.map(({ message }: Error) => message)).toEqual(['first', 'third']);
  expect(closed).toEqual(['second']);
});

it('does not wait for ever for a part', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  try {
    let aborted = false;
    const stuck = {
      close: (signal?: AbortSignal) =>
        new Promise<void>(() =>
          signal?.addEventListener('abort', () => {
            aborted = true;
          }),
        ),
    };
    const ended = shutdown({ parts: [stuck] }).catch((cause: unknown) => cause);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(await ended).toBeInstanceOf(AggregateError);
    expect(aborted).toBe(true);
  } finally {
    vi.useRealTimers();
  }
});

it.each([
  { parts: 'none' },
  { parts: [{}] },
  { parts: [null] },
  { parts: [], drainSeconds: -1 },
  { parts: [], deliverSeconds: 'x' },
  { parts: [], sever: 1 },
])('refuses wrong options: %j', async (options) => {
  await expect(shutdown(options as never)).rejects.toThrow(TypeError);
});

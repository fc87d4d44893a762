import { randomUUID } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { tempFolder } from '../support/index.js';
import {
  crashCopy,
  deliver,
  type Entry,
  type EventLog,
  entryCodec,
  makeSpool,
  openSpool,
  readAll,
  type SpoolOverrides,
  segmentsOf,
  until,
} from './spool-fixture.js';

const MIB = 1024 * 1024;

let folder: ReturnType<typeof tempFolder>;
let directory: string;
let opened: EventLog<Entry>[] = [];
beforeEach(() => {
  folder = tempFolder('spool');
  directory = join(folder.path, 'spool');
});
afterEach(async () => {
  await Promise.all(opened.map((spool) => spool.close()));
  opened = [];
  folder.remove();
});

async function open(options: Partial<SpoolOverrides> = {}): Promise<EventLog<Entry>> {
  const spool = await openSpool({ directory, ...options });
  opened.push(spool);
  return spool;
}

/** A request from its admission to its end. */
async function serve(spool: EventLog<Entry>, id: string): Promise<void> {
  const entry = { id };
  await spool.intent(entry);
  spool.final(entry);
}

/** A spool in which somebody was killed who had written these. */
async function killedWith(
  write: (spool: EventLog<Entry>, own: string) => Promise<void> | void,
  options: Partial<SpoolOverrides> = {},
) {
  const elsewhere = join(folder.path, `elsewhere-${randomUUID()}`);
  const spool = await openSpool({ directory: elsewhere, ...options });
  await write(spool, join(elsewhere, spool.instance));
  await spool.flush();
  await mkdir(directory, { recursive: true });
  await crashCopy(elsewhere, spool.instance, directory);
  await spool.close();
  return spool.instance;
}

const big = 'x'.repeat(1000);
/** About so many MiB of finished requests. */
function fill(spool: EventLog<Entry>, mib: number, prefix = 'fill'): number {
  const count = Math.round((mib * MIB) / 1119);
  for (let index = 0; index < count; index++) spool.final({ id: `${prefix}-${index}-${big}` });
  return count;
}

describe('what was given', () => {
  test.each(['always', 'group', 'interval', 'os'] as const)(
    'is read back in order, gapless from 1, with fsync %s',
    async (fsync) => {
      const spool = await open({ fsync });
      await Promise.all(Array.from({ length: 50 }, (_, index) => serve(spool, `r${index}`)));
      spool.final({ id: 'without-intent' });
      await spool.flush();
      const [own] = spool.sources();
      const events = await readAll(own as NonNullable<typeof own>);
      expect(events.map(({ seq }) => seq)).toEqual(Array.from({ length: 51 }, (_, index) => index + 1));
      expect(new Set(events.map(({ source }) => source))).toEqual(new Set([`app/${spool.instance}`]));
      expect(spool.stats()).toMatchObject({ written: 51, corrupt: 0, lost: 0 });
    },
  );

  test('is read in batches within their limits, and one event at least', async () => {
    const spool = await open();
    for (let index = 0; index < 10; index++) spool.final({ id: `${index}-${big}` });
    await spool.flush();
    const [own] = spool.sources();
    expect(await own?.read(0, { maxEvents: 3, maxBytes: MIB })).toHaveLength(3);
    expect((await own?.read(3, { maxEvents: 100, maxBytes: 2500 }))?.map(({ seq }) => seq)).toEqual([4, 5]);
    expect((await own?.read(5, { maxEvents: 100, maxBytes: 1 }))?.map(({ seq }) => seq)).toEqual([6]);
    expect(await own?.read(10, { maxEvents: 100, maxBytes: MIB })).toEqual([]);
    expect((await own?.read(7, { maxEvents: 100, maxBytes: MIB }))?.map(({ seq }) => seq)).toEqual([8, 9, 10]);
  });

  test('is told of at most once a tick', async () => {
    const spool = await open();
    let told = 0;
    spool.onChange(() => told++);
    for (let index = 0; index < 100; index++) spool.final({ id: `r${index}` });
    await spool.flush();
    await until(() => told > 0);
    expect(told).toBeLessThan(5);
  });

  test('before the spool is open is written once it is', async () => {
    const spool = makeSpool({ directory });
    opened.push(spool);
    expect(spool.refusal?.reason).toContain('not open yet');
    await expect(spool.intent({ id: 'early' })).rejects.toThrow('not open yet');
    spool.final({ id: 'job' });
    await spool.ready();
    expect(spool.refusal).toBeUndefined();
    await until(() => spool.stats().written === 1);
  });

  test('is private: directories 0700, files 0600', async () => {
    const spool = await open();
    const own = join(directory, spool.instance);
    expect((await stat(own)).mode & 0o777).toBe(0o700);
    for (const name of await segmentsOf(own)) expect((await stat(join(own, name))).mode & 0o777).toBe(0o600);
  });

  test('goes to a new segment when one is full, and every segment is deleted when its billing sinks are done', async () => {
    const spool = await open({ maxBytes: 16 * MIB, billing: ['a', 'b'] });
    const count = fill(spool, 5);
    await spool.flush();
    const own = join(directory, spool.instance);
    const before = (await segmentsOf(own)).length;
    expect(before).toBeGreaterThan(3);
    const [source] = spool.sources();
    const events = await readAll(source as NonNullable<typeof source>);
    expect(events).toHaveLength(count);
    source?.advance('a', count);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(await segmentsOf(own)).toHaveLength(before);
    source?.advance('b', count);
    await until(async () => (await segmentsOf(own)).length === 1);
    // The cursors are durable before.
    expect(JSON.parse(await readFile(join(own, 'cursor-a'), 'utf8'))).toMatchObject({ sink: 'a', seq: count });
    expect(spool.stats().bytes).toBeLessThan(2 * MIB);
  });
});

describe('a record that cannot be written as it is', () => {
  test('is refused as an intent when it is longer than 64 KiB', async () => {
    const spool = await open();
    await expect(spool.intent({ id: 'x'.repeat(70_000) })).rejects.toThrow(RangeError);
    await expect(spool.intent({ id: 'ä'.repeat(40_000) })).rejects.toThrow(RangeError);
    await spool.intent({ id: 'ä'.repeat(30_000) });
  });

  test('becomes what a crash would have made of it, as a final event', async () => {
    const spool = await open({
      codec: {
        ...entryCodec,
        final(entry, seq, source) {
          if (entry.id === 'throws') throw new Error('cyclic');
          return entryCodec.final(entry, seq, source) + (entry.id === 'long' ? ' '.repeat(70_000) : '');
        },
      },
    });
    await serve(spool, 'throws');
    await serve(spool, 'long');
    spool.final({ id: 'throws' });
    await serve(spool, 'fine');
    const events = await deliver(spool, 'ledger')
      .then(() => spool.flush())
      .then(() => readAll(spool.sources()[0] as never));
    expect(events.map(({ id, seq, outcome }) => [id, seq, outcome])).toEqual([
      ['throws', 1, 'unknown'],
      ['long', 2, 'unknown'],
      ['throws', 3, 'unknown'],
      ['fine', 4, 'complete'],
    ]);
  });

  test('is counted as lost when nothing can be made of it, and leaves no gap', async () => {
    const broken = (): never => {
      throw new Error('never');
    };
    const spool = await open({
      codec: {
        ...entryCodec,
        final: (entry, seq, source) => (entry.id === 'bad' ? broken() : entryCodec.final(entry, seq, source)),
        orphan: broken,
        checkpoint: broken,
      },
    });
    await serve(spool, 'bad');
    spool.checkpoint({ id: 'none' });
    await serve(spool, 'good');
    await spool.flush();
    expect((await readAll(spool.sources()[0] as never)).map(({ id, seq }) => [id, seq])).toEqual([['good', 1]]);
    expect(spool.stats().lost).toBe(1);
  });

  test('is skipped as a checkpoint that is longer than 64 KiB; the event comes all the same', async () => {
    const spool = await open({ codec: { ...entryCodec, checkpoint: () => ' '.repeat(70_000) } });
    const entry = { id: 'a' };
    await spool.intent(entry);
    spool.checkpoint(entry);
    spool.final(entry);
    await spool.flush();
    expect(spool.stats()).toMatchObject({ written: 1, lost: 0 });
  });
});

describe('a dead instance', () => {
  test('is adopted: its events, then its orphans as unknown under its own sequence, then the closing marker', async () => {
    const dead = await killedWith(async (spool) => {
      await serve(spool, 'done');
      const streaming = { id: 'streaming', used: 7 };
      await spool.intent(streaming);
      spool.checkpoint(streaming);
      const refused = { id: 'refused' };
      await spool.intent(refused);
      spool.cancel(refused);
      await spool.intent({ id: 'open' });
    });
    const spool = await open();
    await until(() => spool.sources()[1]?.closed === true);
    const [, adopted] = spool.sources();
    expect(adopted).toMatchObject({ source: `app/${dead}`, lastSeq: 3, closed: true });
    expect(
      (await readAll(adopted as NonNullable<typeof adopted>)).map(({ id, seq, outcome, used }) => [
        id,
        seq,
        outcome,
        used,
      ]),
    ).toEqual([
      ['done', 1, 'complete', undefined],
      ['streaming', 2, 'unknown', 7],
      ['open', 3, 'unknown', undefined],
    ]);
    expect(spool.stats()).toMatchObject({ adopted: 1, recovered: 2, corrupt: 0 });
    expect(await readdir(directory)).toEqual([spool.instance]);
  });

  test('is removed only when every billing sink has everything and knows that it is closed', async () => {
    await killedWith((spool) => serve(spool, 'done'), { billing: ['a', 'b'] });
    const spool = await open({ billing: ['a', 'b'] });
    await until(() => spool.sources()[1]?.closed === true);
    const [, adopted] = spool.sources();
    adopted?.advance('a', 1);
    adopted?.finished('a');
    adopted?.advance('b', 1);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(spool.sources()).toHaveLength(2);
    adopted?.finished('b');
    await until(() => spool.sources().length === 1);
    expect(await readdir(join(directory, spool.instance, 'adopted'))).toEqual([]);
  });

  test('gives a sink what it has not had, by the cursor of its name, and a new name the oldest that is kept', async () => {
    await killedWith(async (spool) => {
      for (let index = 0; index < 5; index++) await serve(spool, `r${index}`);
      await spool.flush();
      spool.sources()[0]?.advance('ledger', 3);
      await new Promise((resolve) => setTimeout(resolve, 250));
    });
    const spool = await open({ billing: ['ledger', 'new'] });
    await until(() => spool.sources()[1]?.closed === true);
    const [, adopted] = spool.sources();
    expect([adopted?.cursor('ledger'), adopted?.cursor('new')]).toEqual([3, 0]);
    expect([adopted?.attachedAt('ledger'), adopted?.attachedAt('new')]).toEqual([1, 1]);
  });

  test.each([
    ['the cursor is durable and the segment is not yet deleted', 'segment'],
    ['the segment is deleted and the cursor is an old one', 'cursor'],
  ])('starts clean when %s', async (_what, stale) => {
    const options = { maxBytes: 16 * MIB };
    let count = 0;
    const saved = new Map<string, Buffer>();
    const dead = await killedWith(async (spool, own) => {
      count = fill(spool, 3);
      await spool.flush();
      for (const name of ['seg-0000000000000001.log', 'cursor-ledger'])
        saved.set(name, await readFile(join(own, name)));
      spool.sources()[0]?.advance('ledger', count - 1);
      await until(async () => (await segmentsOf(own)).length === 1);
    }, options);
    const name = stale === 'segment' ? 'seg-0000000000000001.log' : 'cursor-ledger';
    await writeFile(join(directory, dead, name), saved.get(name) as Buffer);
    const spool = await open(options);
    await until(() => spool.sources()[1]?.closed === true);
    const [, adopted] = spool.sources();
    const cursor = adopted?.cursor('ledger') ?? 0;
    // Nothing that is kept is left out, and with a good cursor nothing comes twice.
    if (stale === 'segment') expect(cursor).toBe(count - 1);
    else expect(cursor).toBeGreaterThan(0);
    const events = await deliver(spool, 'ledger');
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_, index) => cursor + 1 + index));
    expect(events.at(-1)?.seq).toBe(count);
    await until(() => spool.sources().length === 1);
    expect(spool.stats()).toMatchObject({ corrupt: 0, recovered: 0 });
  });

  test('is handed on by adopters that die in the middle of it, each under its own name', async () => {
    const chain: string[] = [];
    for (const id of ['first', 'second', 'third']) chain.push(await killedWith((spool) => serve(spool, id)));
    const [first, second, third] = chain as [string, string, string];
    await rename(join(directory, first), join(directory, second, 'adopted', first));
    await rename(join(directory, second), join(directory, third, 'adopted', second));
    // One of them had nothing of its own.
    const idle = '11111111-2222-4333-8444-555555555555';
    await mkdir(join(directory, idle, 'adopted'), { recursive: true });
    await rename(join(directory, third), join(directory, idle, 'adopted', third));
    const spool = await open();
    await until(() => spool.sources().filter(({ closed }) => closed).length === 3);
    const names = spool.sources().map(({ source }) => source);
    expect(names.slice(1).sort()).toEqual(chain.map((name) => `app/${name}`).sort());
    expect((await deliver(spool, 'ledger')).map(({ id }) => id).sort()).toEqual(['first', 'second', 'third']);
    await until(() => spool.sources().length === 1);
    expect(await readdir(join(directory, spool.instance, 'adopted'))).toEqual([]);
  });

  test('that wrote no segment leaves nothing', async () => {
    await mkdir(join(directory, '11111111-2222-4333-8444-555555555555', 'adopted'), { recursive: true });
    const spool = await open();
    await until(async () => (await readdir(directory)).length === 1);
    await until(async () => (await readdir(join(directory, spool.instance, 'adopted'))).length === 0);
    expect(spool.sources()).toHaveLength(1);
  });

  test('goes on as closed when it had said so itself', async () => {
    await killedWith(async (spool) => {
      await spool.intent({ id: 'cut' });
      await spool.seal();
    });
    const spool = await open();
    await until(() => spool.sources()[1]?.closed === true);
    expect(spool.stats()).toMatchObject({ recovered: 0 });
    expect((await deliver(spool, 'ledger')).map(({ id, seq, outcome }) => [id, seq, outcome])).toEqual([
      ['cut', 1, 'unknown'],
    ]);
  });

  test('continues its sequence although all its events are delivered and deleted', async () => {
    let last = 0;
    const dead = await killedWith(
      async (spool) => {
        last = fill(spool, 3);
        await spool.flush();
        spool.sources()[0]?.advance('ledger', last);
        await until(() => spool.stats().bytes < 1.5 * MIB);
        await spool.intent({ id: 'orphan' });
      },
      { maxBytes: 16 * MIB },
    );
    const spool = await open();
    await until(() => spool.sources()[1]?.closed === true);
    const [, adopted] = spool.sources();
    expect(adopted?.source).toBe(`app/${dead}`);
    expect((await readAll(adopted as never, last)).map(({ id, seq }) => [id, seq])).toEqual([['orphan', last + 1]]);
  });

  test('with an orphan that the codec cannot read loses that one, counted', async () => {
    await killedWith(async (spool) => {
      await spool.intent({ id: 'bad' });
      await spool.intent({ id: 'good' });
    });
    const orphan: typeof entryCodec.orphan = (intent, ...rest) => {
      if (intent.includes('bad')) throw new SyntaxError('what is this');
      return entryCodec.orphan(intent, ...rest);
    };
    const spool = await open({ codec: { ...entryCodec, orphan } });
    await until(() => spool.sources()[1]?.closed === true);
    expect((await deliver(spool, 'ledger')).map(({ id, seq }) => [id, seq])).toEqual([['good', 1]]);
    expect(spool.stats()).toMatchObject({ corrupt: 1, recovered: 1 });
  });
});

describe('liveness', () => {
  test('a living instance is never adopted, and both write into directories of their own', async () => {
    const [first, second] = await Promise.all([open(), open()]);
    await serve(first, 'first');
    await serve(second, 'second');
    // Longer than one round of looking for dead ones.
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    expect([first.sources().length, second.sources().length]).toEqual([1, 1]);
    expect((await readAll(first.sources()[0] as never)).map(({ id }) => id)).toEqual(['first']);
    expect((await readAll(second.sources()[0] as never)).map(({ id }) => id)).toEqual(['second']);
  });

  test('a living instance whose socket was deleted binds it again, and is not adopted meanwhile', async () => {
    const first = await open();
    // Its rounds are not those in which the first one looks after its socket.
    await new Promise((resolve) => setTimeout(resolve, 400));
    const second = await open();
    const socket = join(directory, first.instance, 'alive');
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    // Over the next round of looking for dead ones.
    for (const end = Date.now() + 1_900; Date.now() < end; ) {
      await rm(socket, { force: true });
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await until(async () => (await readdir(join(directory, first.instance))).includes('alive'));
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    expect(second.sources()).toHaveLength(1);
    expect(first.refusal).toBeUndefined();
  });

  test('a directory without a socket, out of a backup, is adopted when nobody binds one', async () => {
    const dead = await killedWith((spool) => serve(spool, 'kept'));
    await rm(join(directory, dead, 'alive'));
    const spool = await open();
    await until(() => spool.sources()[1]?.closed === true);
    expect((await deliver(spool, 'ledger')).map(({ id }) => id)).toEqual(['kept']);
  });

  test('an instance whose directory was removed refuses', async () => {
    const spool = await open();
    await rm(join(directory, spool.instance), { recursive: true });
    await until(() => spool.refusal !== undefined);
    expect(spool.refusal?.reason).toContain('was removed');
    await expect(spool.intent({ id: 'a' })).rejects.toThrow('was removed');
  });

  test('works where the path is too long for a unix socket', async () => {
    directory = join(directory, 'a-rather-long-name'.repeat(5), 'another-rather-long-name'.repeat(5));
    const [first, second] = await Promise.all([open(), open()]);
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    expect([first.sources().length, second.sources().length]).toEqual([1, 1]);
    await serve(first, 'left');
    await first.close();
    await until(() => second.sources()[1]?.closed === true);
  });

  test('the beginning of an instance that never started is removed after a minute', async () => {
    const stale = join(directory, '.new-11111111-2222-4333-8444-555555555555');
    const recent = join(directory, '.new-11111111-2222-4333-8444-666666666666');
    await mkdir(stale, { recursive: true });
    await mkdir(recent);
    const past = Date.now() / 1000 - 120;
    await utimes(stale, past, past);
    await open();
    await until(async () => !(await readdir(directory)).includes('.new-11111111-2222-4333-8444-555555555555'));
    expect(await readdir(directory)).toContain('.new-11111111-2222-4333-8444-666666666666');
  });
});

describe('bounds', () => {
  test('the spool refuses at fifteen sixteenths of maxBytes, takes what was admitted, and admits again when sinks are done', async () => {
    const spool = await open({ maxBytes: 4 * MIB });
    const admitted = { id: 'admitted' };
    await spool.intent(admitted);
    fill(spool, 3);
    await spool.flush();
    expect(spool.refusal).toBeUndefined();
    fill(spool, 0.85, 'more');
    await spool.flush();
    expect(spool.stats().bytes).toBeGreaterThanOrEqual((4 * MIB * 15) / 16);
    expect(spool.refusal).toEqual({ reason: 'the spool is full: sinks do not keep up', retryAfterSeconds: 30 });
    await expect(spool.intent({ id: 'too-late' })).rejects.toThrow('full');
    spool.final(admitted);
    await spool.flush();
    const events = await deliver(spool, 'ledger');
    expect(events.at(-1)?.id).toBe('admitted');
    await until(() => spool.refusal === undefined);
    await spool.intent({ id: 'again' });
  });

  test('what a dead instance left counts', async () => {
    await killedWith(async (spool) => void fill(spool, 3.9), { maxBytes: 64 * MIB });
    const spool = await open({ maxBytes: 4 * MIB });
    await until(() => spool.refusal !== undefined);
    await until(() => spool.sources()[1]?.closed === true);
    await deliver(spool, 'ledger');
    await until(() => spool.refusal === undefined);
    expect(spool.sources()).toHaveLength(1);
  });

  test('a request that stays open does not hold what is behind it, and is still recovered', async () => {
    const dead = await killedWith(
      async (spool) => {
        const stream = { id: 'stream', used: 1 };
        await spool.intent(stream);
        stream.used = 2;
        spool.checkpoint(stream);
        for (let round = 0; round < 3; round++) {
          const last = spool.stats().written + fill(spool, 3, `round${round}`);
          await spool.flush();
          spool.sources()[0]?.advance('ledger', last);
          await until(() => spool.stats().bytes < 1.5 * MIB);
        }
      },
      { maxBytes: 16 * MIB },
    );
    const spool = await open();
    await until(() => spool.sources()[1]?.closed === true);
    const events = await readAll(spool.sources()[1] as never, spool.sources()[1]?.cursor('ledger'));
    expect(events.map(({ id, source, outcome, used }) => [id, source, outcome, used])).toEqual([
      ['stream', `app/${dead}`, 'unknown', 2],
    ]);
  });

  test('an observational sink holds a quarter of maxBytes, and what it loses beyond is counted', async () => {
    const spool = await open({ maxBytes: 16 * MIB, billing: ['ledger'], observational: ['metrics'] });
    const first = fill(spool, 2.5);
    await spool.flush();
    const [own] = spool.sources();
    own?.advance('ledger', first);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(own?.cursor('metrics')).toBe(0);
    expect(spool.stats()).toMatchObject({ dropped: {} });
    const all = first + fill(spool, 5, 'more');
    await spool.flush();
    expect(own?.cursor('metrics')).toBe(0);
    own?.advance('ledger', all);
    await until(() => spool.stats().bytes <= 4 * MIB);
    const { dropped } = spool.stats();
    expect(dropped.metrics).toBeGreaterThan(1000);
    expect(spool.stats().bytes).toBeGreaterThan(2.5 * MIB);
    expect(dropped.metrics).toBe(own?.cursor('metrics'));
    expect(await readAll(own as never, own?.cursor('metrics'))).toHaveLength(all - (dropped.metrics ?? 0));
  });
});

describe('sinks that come and go', () => {
  test('a billing sink that is configured no more holds its events, by name, until it is forgotten', async () => {
    await killedWith((spool) => serve(spool, 'done'), { billing: ['ledger', 'old'] });
    const spool = await open({ billing: ['ledger'] });
    await until(() => spool.sources()[1]?.closed === true);
    expect(spool.stats().absent).toEqual(['old']);
    await deliver(spool, 'ledger');
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(spool.sources()).toHaveLength(2);
    await spool.forget('old');
    await until(() => spool.sources().length === 1);
    expect(spool.stats().absent).toEqual([]);
  });

  test('it holds the segments too, not only the directory', async () => {
    const options = { maxBytes: 16 * MIB };
    const dead = await killedWith((spool) => void fill(spool, 4), { ...options, billing: ['ledger', 'old'] });
    const spool = await open(options);
    await until(() => spool.sources()[1]?.closed === true);
    const adopted = join(directory, spool.instance, 'adopted', dead);
    const before = await segmentsOf(adopted);
    expect(before.length).toBeGreaterThan(3);
    await deliver(spool, 'ledger');
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(await segmentsOf(adopted)).toEqual(before);
  });

  test('one that was done holds nothing, and an observational one neither', async () => {
    await killedWith(
      async (spool) => {
        await serve(spool, 'done');
        await spool.flush();
        spool.sources()[0]?.advance('old', 1);
        await new Promise((resolve) => setTimeout(resolve, 250));
      },
      { billing: ['ledger', 'old'], observational: ['metrics'] },
    );
    const spool = await open({ billing: ['ledger'] });
    await until(() => spool.sources()[1]?.closed === true);
    await deliver(spool, 'ledger');
    await until(() => spool.sources().length === 1);
  });

  test('a sink that changes its role keeps its place', async () => {
    await killedWith(
      async (spool) => {
        await serve(spool, 'done');
        await spool.flush();
        spool.sources()[0]?.advance('both', 1);
        await new Promise((resolve) => setTimeout(resolve, 250));
      },
      { billing: ['ledger', 'both'] },
    );
    const spool = await open({ billing: ['ledger'], observational: ['both'] });
    await until(() => spool.sources()[1]?.closed === true);
    expect(spool.sources()[1]?.cursor('both')).toBe(1);
  });

  test('a configured sink that is forgotten begins again at the oldest event that is kept', async () => {
    const spool = await open();
    await serve(spool, 'a');
    await spool.flush();
    const [own] = spool.sources();
    own?.advance('ledger', 1);
    await spool.forget('ledger');
    expect(own?.cursor('ledger')).toBe(0);
  });

  test('a cursor never goes back, nor beyond the last event', async () => {
    const spool = await open();
    await serve(spool, 'a');
    await serve(spool, 'b');
    await spool.flush();
    const [own] = spool.sources();
    own?.advance('ledger', 99);
    expect(own?.cursor('ledger')).toBe(2);
    own?.advance('ledger', 1);
    expect(own?.cursor('ledger')).toBe(2);
  });
});

describe('the end', () => {
  test('a spool that is sealed has its closing marker, makes open requests unknown, and takes nothing more', async () => {
    const spool = await open();
    await serve(spool, 'done');
    const open_ = { id: 'open' };
    await spool.intent(open_);
    await spool.seal();
    expect(spool.sources()[0]).toMatchObject({ closed: true, lastSeq: 2 });
    expect(spool.refusal?.reason).toContain('closed');
    spool.final(open_);
    spool.checkpoint(open_);
    spool.cancel(open_);
    await spool.flush();
    expect(spool.stats()).toMatchObject({ written: 2, lost: 1 });
  });

  test('a clean close leaves nothing behind when everything was delivered', async () => {
    const spool = await open();
    await serve(spool, 'done');
    await spool.seal();
    await deliver(spool, 'ledger');
    await spool.close();
    await spool.close();
    expect(await readdir(directory)).toEqual([]);
    await expect(spool.ready()).rejects.toThrow('closed');
  });

  test('what was not delivered stays for the next start, closed, without a socket that looks alive', async () => {
    const spool = await open();
    await serve(spool, 'left');
    await spool.close();
    expect(await readdir(directory)).toEqual([spool.instance]);
    const next = await open();
    await until(() => next.sources()[1]?.closed === true);
    expect(next.stats().recovered).toBe(0);
    expect((await deliver(next, 'ledger')).map(({ id }) => id)).toEqual(['left']);
  });

  test('what was adopted and not delivered stays too', async () => {
    await killedWith((spool) => serve(spool, 'left'));
    const middle = await open();
    await until(() => middle.sources()[1]?.closed === true);
    await middle.close();
    const next = await open();
    await until(() => next.sources().some(({ lastSeq, closed }) => closed && lastSeq === 1));
    expect((await deliver(next, 'ledger')).map(({ id }) => id)).toEqual(['left']);
  });

  test('a spool that was never opened closes at once', async () => {
    const spool = makeSpool({ directory });
    await spool.seal();
    await spool.close();
    await expect(readdir(directory)).rejects.toThrow('ENOENT');
  });
});

describe('opening', () => {
  test('fails with the reason when the directory cannot be used, and succeeds when it can', async () => {
    await writeFile(directory, 'a file');
    const spool = makeSpool({ directory });
    opened.push(spool);
    await expect(spool.ready()).rejects.toThrow(/spool: its directory cannot be used \(E[A-Z]+\)/);
    expect(spool.refusal).toBeDefined();
    await rm(directory);
    await spool.ready();
    expect(spool.refusal).toBeUndefined();
  });

  test('gives up when the signal aborts', async () => {
    const spool = makeSpool({ directory });
    opened.push(spool);
    await expect(spool.ready(AbortSignal.abort(new Error('too late')))).rejects.toThrow('too late');
    const controller = new AbortController();
    const ready = spool.ready(controller.signal);
    controller.abort(new Error('enough'));
    await expect(ready).rejects.toThrow('enough');
    await spool.ready();
  });
});

import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { type FileHandle, mkdir, open as openFile, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { tempFolder } from '../support/index.js';
import { failing, interceptFiles } from './disk-faults.js';
import { describeWithSmallDisk, type SmallDisk, smallDisk } from './small-disk.js';
import {
  crashCopy,
  deliver,
  type Entry,
  type EventLog,
  openSpool,
  readAll,
  type SpoolOverrides,
  segmentsOf,
  until,
} from './spool-fixture.js';

const MIB = 1024 * 1024;

let folder: ReturnType<typeof tempFolder>;
let directory: string;
const opened: EventLog<Entry>[] = [];
const restore: (() => void)[] = [];
beforeEach(() => {
  folder = tempFolder('spool-disk');
  directory = join(folder.path, 'spool');
});
afterEach(async () => {
  for (const undo of restore.splice(0)) undo();
  await Promise.all(opened.splice(0).map((spool) => spool.close(AbortSignal.timeout(1000))));
  folder.remove();
});

async function open(options: Partial<SpoolOverrides> = {}): Promise<EventLog<Entry>> {
  const spool = await openSpool({ directory, fsync: 'group', ...options });
  opened.push(spool);
  return spool;
}

async function intercept(...fault: Parameters<typeof interceptFiles>): Promise<() => void> {
  const undo = await interceptFiles(...fault);
  restore.push(undo);
  return undo;
}

async function serve(spool: EventLog<Entry>, id: string): Promise<void> {
  const entry = { id };
  await spool.intent(entry);
  spool.final(entry);
}

const outcomes = (events: readonly { id: string; seq: number; outcome: string }[]) =>
  events.map(({ id, seq, outcome }) => [id, seq, outcome]);

describe('a failed fsync', () => {
  test('refuses who waited for it, loses nothing that was admitted, and writes to a new segment', async () => {
    const spool = await open();
    const before = { id: 'before' };
    await spool.intent(before);
    await intercept('datasync', failing('EIO'));
    spool.final(before);
    const refused = spool.intent({ id: 'refused' });
    await expect(refused).rejects.toThrow('spool: it cannot be written (EIO)');
    await until(() => spool.refusal === undefined);
    await serve(spool, 'after');
    await spool.flush();
    const own = join(directory, spool.instance);
    expect(await segmentsOf(own)).toEqual(['seg-0000000000000001.log', 'seg-0000000000000002.log']);
    const expected = [
      ['before', 1, 'complete'],
      ['after', 2, 'complete'],
    ];
    expect(outcomes(await readAll(spool.sources()[0] as never))).toEqual(expected);
    // The same after a crash: the refused request left no orphan, and nothing stands there twice.
    const elsewhere = join(folder.path, 'elsewhere');
    await mkdir(elsewhere);
    await crashCopy(directory, spool.instance, elsewhere);
    const next = await open({ directory: elsewhere });
    await until(() => next.sources()[1]?.closed === true);
    expect(outcomes(await readAll(next.sources()[1] as never))).toEqual(expected);
    expect(next.stats()).toMatchObject({ recovered: 0, corrupt: 0 });
  });

  test('is not asked again on the same descriptor', async () => {
    const spool = await open();
    const synced: FileHandle[] = [];
    const fails = failing('EIO');
    await intercept('datasync', (handle) => {
      synced.push(handle);
      fails();
    });
    await expect(spool.intent({ id: 'a' })).rejects.toThrow('EIO');
    await until(() => spool.refusal === undefined);
    await spool.intent({ id: 'b' });
    const [failed, ...others] = synced;
    expect(others.length).toBeGreaterThan(0);
    expect(others).not.toContain(failed);
  });

  test.each(['always', 'group', 'interval'] as const)(
    'for seconds refuses for seconds, and keeps final events in memory (fsync %s)',
    async (fsync) => {
      const spool = await open({ fsync });
      const admitted = Array.from({ length: 100 }, (_, index) => ({ id: `admitted-${index}` }));
      await Promise.all(admitted.map((entry) => spool.intent(entry)));
      const reasons: unknown[] = [];
      const listen = (message: unknown) => reasons.push((message as { type: string }).type);
      subscribe('tollkeeper:pipeline', listen);
      const heal = await intercept('datasync', failing('EIO', Number.POSITIVE_INFINITY));
      for (const entry of admitted) spool.final(entry);
      await until(() => spool.refusal !== undefined);
      expect(spool.refusal).toEqual({ reason: 'the spool cannot be written (EIO)', retryAfterSeconds: 5 });
      await expect(spool.intent({ id: 'refused' })).rejects.toThrow('EIO');
      await new Promise((resolve) => setTimeout(resolve, 1000));
      expect(spool.refusal).toBeDefined();
      heal();
      await until(() => spool.refusal === undefined);
      unsubscribe('tollkeeper:pipeline', listen);
      expect(reasons).toContain('refusing');
      expect(reasons.at(-1)).toBe('admitting');
      await serve(spool, 'after');
      await spool.flush();
      const events = await readAll(spool.sources()[0] as never);
      expect(events.map(({ seq }) => seq)).toEqual(Array.from({ length: 101 }, (_, index) => index + 1));
      expect(new Set(events.map(({ id }) => id)).size).toBe(101);
    },
  );

  test('while a segment is full opens the next one later', async () => {
    const spool = await open({ maxBytes: MIB });
    await intercept('write', failing('EIO'));
    const ids = Array.from({ length: 150 }, (_, index) => `r${index}-${'x'.repeat(1000)}`);
    for (const id of ids) {
      await serve(spool, id).catch(() => undefined);
      await until(() => spool.refusal === undefined);
    }
    await spool.flush();
    const events = await readAll(spool.sources()[0] as never);
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_, index) => index + 1));
    expect(events.length).toBeGreaterThanOrEqual(ids.length - 1);
  });
});

describe('a disk that does not answer', () => {
  test('never holds up the event loop; after five seconds requests are refused instead of waiting', async () => {
    let now = 0;
    const spool = await open({ clock: { now: () => Date.now(), monotonic: () => now } });
    const admitted = { id: 'admitted' };
    await spool.intent(admitted);
    let answer!: () => void;
    const hang = new Promise<void>((resolve) => {
      answer = resolve;
    });
    await intercept('datasync', () => hang);
    const waiting = spool.intent({ id: 'waiting' });
    let ticks = 0;
    const ticking = setInterval(() => ticks++, 5);
    await new Promise((resolve) => setTimeout(resolve, 200));
    clearInterval(ticking);
    expect(ticks).toBeGreaterThan(10);
    expect(spool.refusal).toBeUndefined();
    now = 5_001;
    await expect(waiting).rejects.toThrow('does not answer');
    expect(spool.refusal?.reason).toBe('the disk of the spool does not answer');
    spool.final(admitted);
    answer();
    await until(() => spool.refusal === undefined);
    await spool.flush();
    expect(outcomes(await readAll(spool.sources()[0] as never))).toEqual([['admitted', 1, 'complete']]);
    await spool.seal();
    expect(spool.sources()[0]?.lastSeq).toBe(1);
  });

  test('makes the spool refuse before more than 32 MiB wait in memory', async () => {
    const spool = await open({ maxBytes: 1024 * MIB });
    let answer!: () => void;
    const hang = new Promise<void>((resolve) => {
      answer = resolve;
    });
    await intercept('datasync', () => hang);
    const id = 'x'.repeat(30_000);
    let given = 0;
    while (spool.refusal === undefined && given < 2_000) {
      spool.final({ id });
      given++;
      if (given % 10 === 0) await new Promise((resolve) => setTimeout(resolve, 2));
    }
    expect(spool.refusal?.reason).toBe('the disk of the spool does not keep up');
    expect(given * 30_000).toBeGreaterThan(30 * MIB);
    expect(given * 30_000).toBeLessThan(45 * MIB);
    answer();
    await until(() => spool.refusal === undefined);
    await spool.flush();
    expect(spool.stats().written).toBe(given);
  });

  test('does not hold up close() beyond its signal; what was written is adopted', async () => {
    const spool = await openSpool({ directory, fsync: 'group' });
    await spool.intent({ id: 'open' });
    const heal = await intercept('datasync', () => new Promise(() => undefined));
    spool.final({ id: 'written' });
    await spool.close(AbortSignal.timeout(300));
    heal();
    const next = await open();
    await until(() => next.sources()[1]?.closed === true);
    expect((await deliver(next, 'ledger')).map(({ id }) => id).sort()).toEqual(['open', 'written']);
  });
});

describe('reading', () => {
  test('an error of the disk while a dead instance is read puts that segment aside, and starts', async () => {
    const elsewhere = join(folder.path, 'elsewhere');
    const dead = await openSpool({ directory: elsewhere });
    await serve(dead, 'lost');
    await dead.flush();
    await mkdir(directory);
    await crashCopy(elsewhere, dead.instance, directory);
    await dead.close();
    let broken: FileHandle | undefined;
    await intercept('read', function fail(handle) {
      // The header is read through one handle, the records through the next.
      broken ??= handle;
      if (handle !== broken) throw Object.assign(new Error('EIO: injected'), { code: 'EIO' });
    });
    const spool = await open();
    await until(() => spool.stats().adopted === 1);
    for (const undo of restore.splice(0)) undo();
    expect(spool.stats().corrupt).toBe(1);
    expect(await readdir(join(directory, 'quarantine'))).toHaveLength(1);
    await until(() => spool.sources()[1]?.closed === true);
  });

  test('too many open files are no damage: the instance is read a little later', async () => {
    const elsewhere = join(folder.path, 'elsewhere');
    const dead = await openSpool({ directory: elsewhere });
    await serve(dead, 'kept');
    await dead.flush();
    await mkdir(directory);
    await crashCopy(elsewhere, dead.instance, directory);
    await dead.close();
    await intercept('read', failing('EMFILE'));
    const spool = await open();
    await until(() => spool.sources()[1]?.closed === true);
    expect(spool.stats()).toMatchObject({ corrupt: 0, adopted: 1 });
    expect((await deliver(spool, 'ledger')).map(({ id }) => id)).toEqual(['kept']);
  });

  test('a record that rots after it was written is passed over and counted once', async () => {
    const spool = await open();
    for (const id of ['a', 'b', 'c']) await serve(spool, id);
    await spool.flush();
    // The last 2 MiB are also in memory.
    for (let index = 0; index < 2500; index++) spool.final({ id: `${index}-${'x'.repeat(1000)}` });
    await spool.flush();
    const path = join(directory, spool.instance, 'seg-0000000000000001.log');
    const file = await openFile(path, 'r+');
    const { size } = await file.stat();
    const bytes = Buffer.alloc(size);
    await file.read(bytes, 0, size, 0);
    await file.write('X', bytes.indexOf('"id":"b","seq"') + 6);
    await file.close();
    for (let round = 0; round < 2; round++) {
      const events = await readAll(spool.sources()[0] as never);
      expect(events.slice(0, 2).map(({ id, seq }) => [id, seq])).toEqual([
        ['a', 1],
        ['c', 3],
      ]);
      expect(events).toHaveLength(2502);
    }
    expect(spool.stats().corrupt).toBe(1);
  });
});

describeWithSmallDisk('a full disk', () => {
  let disk: SmallDisk;
  beforeEach(() => {
    disk = smallDisk(4);
  });
  afterEach(async () => {
    await Promise.all(opened.splice(0).map((spool) => spool.close(AbortSignal.timeout(1000))));
    disk.remove();
  });

  const long = 'x'.repeat(1000);

  test('refuses, keeps what was admitted, and admits again by itself when space returns', async () => {
    const spool = await open({ directory: join(disk.path, 'spool') });
    const admitted = Array.from({ length: 2000 }, (_, index) => ({ id: `a${index}-${long}` }));
    await Promise.all(admitted.slice(0, 500).map((entry) => spool.intent(entry)));
    disk.fill();
    // More than the reserve has room for.
    for (const entry of admitted) spool.final(entry);
    await until(() => spool.refusal !== undefined);
    expect(spool.refusal).toEqual({ reason: 'the spool cannot be written (ENOSPC)', retryAfterSeconds: 5 });
    await expect(spool.intent({ id: 'refused' })).rejects.toThrow('ENOSPC');
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(spool.refusal).toBeDefined();
    disk.free();
    await until(() => spool.refusal === undefined);
    await serve(spool, 'after');
    await spool.flush();
    const events = await readAll(spool.sources()[0] as never);
    expect(events.map(({ seq }) => seq)).toEqual(Array.from({ length: 2001 }, (_, index) => index + 1));
    expect(new Set(events.map(({ id }) => id)).size).toBe(2001);
    expect(spool.stats()).toMatchObject({ lost: 0, corrupt: 0 });
  });

  test('has a reserve for what was admitted: it is durable although the disk is full', async () => {
    const spool = await open({ directory: join(disk.path, 'spool') });
    const admitted = Array.from({ length: 100 }, (_, index) => ({ id: `a${index}-${long}` }));
    await Promise.all(admitted.map((entry) => spool.intent(entry)));
    disk.fill();
    for (const entry of admitted) spool.final(entry);
    await until(() => spool.stats().written === 100);
    expect(spool.refusal?.reason).toContain('ENOSPC');
  });

  test('is freed by sinks that make progress', async () => {
    const spool = await open({ directory: join(disk.path, 'spool'), maxBytes: 8 * MIB });
    let count = 0;
    while (spool.refusal === undefined) {
      spool.final({ id: `${count++}-${long}` });
      if (count % 50 === 0) await spool.flush();
    }
    expect(spool.refusal?.reason).toContain('ENOSPC');
    // Cursors and deletions need no more than the reserve.
    await until(async () => {
      await deliver(spool, 'ledger');
      return spool.refusal === undefined;
    });
    await spool.flush();
    await deliver(spool, 'ledger');
    expect(spool.stats().written).toBe(count);
  });

  test('lets a dead instance be delivered, and finishes it when there is space', async () => {
    const spool = join(disk.path, 'spool');
    const elsewhere = join(folder.path, 'elsewhere');
    const dead = await openSpool({ directory: elsewhere });
    await serve(dead, 'done');
    await dead.intent({ id: 'open' });
    await dead.flush();
    await mkdir(spool);
    await crashCopy(elsewhere, dead.instance, spool);
    await dead.close();
    const next = await open({ directory: spool, maxBytes: MIB });
    disk.fill();
    await until(() => next.stats().adopted === 1);
    disk.free();
    await until(() => next.sources()[1]?.closed === true);
    expect((await deliver(next, 'ledger')).map(({ id }) => id)).toEqual(['done', 'open']);
  });

  test('is refused at the start, with the reason', async () => {
    await writeFile(join(disk.path, 'x'), '');
    disk.fill();
    await expect(open({ directory: join(disk.path, 'spool') })).rejects.toThrow('ENOSPC');
  });
});

import { copyFile, mkdir, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { sized, tempFolder } from '../support/index.js';
import {
  crashCopy,
  encodeHeader,
  makeSpool,
  openSpool,
  readAll,
  recoverSource,
  removeInstance,
  type SourceContext,
  segmentsOf,
} from './spool-fixture.js';

const UUID = '11111111-2222-4333-8444-555555555555';
const HEADER = 32;

let folder: ReturnType<typeof tempFolder>;
beforeAll(() => {
  folder = tempFolder('spool-format');
});
afterAll(() => folder.remove());

let count = 0;
async function fresh(): Promise<string> {
  const path = join(folder.path, `f${++count}`);
  await mkdir(path);
  return path;
}

function newContext(): SourceContext & { corrupt: number } {
  const context = {
    corrupt: 0,
    billing: new Set(['ledger']),
    observational: new Set<string>(),
    dropped: new Map<string, number>(),
    advanced() {},
    damaged() {
      context.corrupt++;
    },
  };
  return context;
}

/** The directory of an instance that was killed after these finished requests. */
async function killedAfter(ids: readonly string[], intents: readonly string[] = []): Promise<string> {
  const directory = await fresh();
  const spool = await openSpool({ directory });
  for (const id of ids) spool.final({ id });
  for (const id of intents) void spool.intent({ id });
  await spool.flush();
  const copy = await crashCopy(directory, spool.instance, await fresh());
  await spool.close();
  return copy;
}

async function recover(directory: string) {
  const context = newContext();
  const recovered = await recoverSource(directory, join(directory, 'quarantine'), 'app', context);
  if (recovered === undefined) throw new Error('nothing was recovered');
  recovered.source.cursors.stop();
  const events = await readAll(recovered.source);
  return { ...recovered, corrupt: context.corrupt, ids: events.map(({ id }) => id), events };
}

/** Where the records of a segment begin, and where the last one ends. */
function offsets(bytes: Buffer): number[] {
  const found = [HEADER];
  for (let at = HEADER; at < bytes.length; ) {
    at += 17 + bytes.readUInt32LE(at);
    found.push(at);
  }
  return found;
}

const IDS = ['a', 'bb', 'ccc', 'dddd', 'eeeee'];

describe('a segment', () => {
  test('holds a header and records of length, CRC, type, number and JSON', async () => {
    const directory = await killedAfter(['a']);
    const [name] = await segmentsOf(directory);
    expect(name).toBe('seg-0000000000000001.log');
    const bytes = await readFile(join(directory, name as string));
    expect(bytes.toString('latin1', 0, 8)).toBe('TOLLSPL\n');
    expect(bytes.readUInt32LE(8)).toBe(1);
    expect(bytes.readBigUInt64LE(12)).toBe(1n);
    expect(bytes.readBigUInt64LE(20)).toBe(0n);
    const length = bytes.readUInt32LE(HEADER);
    expect(bytes[HEADER + 8]).toBe(3);
    expect(bytes.readBigUInt64LE(HEADER + 9)).toBe(1n);
    const json = bytes.toString('utf8', HEADER + 17, HEADER + 17 + length);
    expect(JSON.parse(json)).toMatchObject({ id: 'a', seq: 1 });
    expect(bytes.length).toBe(HEADER + 17 + length);
  });

  test('that is truncated at any byte gives every record that is whole, without a word about damage', async () => {
    const directory = await killedAfter(IDS);
    const path = join(directory, 'seg-0000000000000001.log');
    const bytes = await readFile(path);
    const ends = offsets(bytes).slice(1);
    for (let size = bytes.length; size >= HEADER; size--) {
      await truncate(path, size);
      const { ids, corrupt } = await recover(directory);
      const whole = ends.filter((end) => end <= size).length;
      expect({ size, ids, corrupt }).toEqual({ size, ids: IDS.slice(0, whole), corrupt: 0 });
      // The torn record is cut off, or the next records would stand behind it.
      expect((await readFile(path)).length).toBe([HEADER, ...ends][whole]);
    }
  });

  test('that is truncated inside its header starts all the same', async () => {
    const directory = await killedAfter(IDS);
    for (let size = HEADER - 1; size >= 0; size--) {
      await truncate(join(directory, 'seg-0000000000000001.log'), size);
      expect((await recover(directory)).ids).toEqual([]);
    }
  });

  test('that lost any one bit loses only that record, counts it once, and keeps the damaged bytes', async () => {
    const ids = ['a', 'b', 'c'];
    const directory = await killedAfter(ids);
    const path = join(directory, 'seg-0000000000000001.log');
    // A second segment seals the first.
    const bytes = await readFile(path);
    const sealing = encodeHeader({ firstNumber: 4, lastSeq: 3 });
    await writeFile(join(directory, 'seg-0000000000000002.log'), sealing);
    const starts = offsets(bytes);
    // Three is prime to eight: every byte, and every bit of a byte. All of them at full size.
    const step = sized(3, 1);
    for (let bit = 0; bit < bytes.length * 8; bit += step) {
      const at = bit >> 3;
      const flipped = Buffer.from(bytes);
      flipped[at] = (flipped[at] as number) ^ (1 << (bit & 7));
      await writeFile(path, flipped);
      const lost = starts.findLastIndex((start) => start <= at);
      const { ids: found, corrupt } = await recover(directory);
      expect({ bit, found, corrupt }).toEqual({ bit, found: ids.filter((_, index) => index !== lost), corrupt: 1 });
    }
    expect((await readdir(join(directory, 'quarantine'))).length).toBe(3);
  }, 60_000);

  test('with anything at all between and inside its records is read through, and what is intact is found', async () => {
    const directory = await killedAfter(IDS);
    const path = join(directory, 'seg-0000000000000001.log');
    const original = await readFile(path);
    const starts = offsets(original);
    const records = IDS.map((_, index) => original.subarray(starts[index], starts[index + 1]));
    const garbage = fc.uint8Array({ maxLength: 300 });
    await fc.assert(
      fc.asyncProperty(
        fc.array(garbage, { minLength: 5, maxLength: 5 }),
        fc.subarray([0, 1, 2, 3, 4]),
        async (junk, kept) => {
          const parts = records.flatMap((record, index) => [
            junk[index] as Uint8Array,
            kept.includes(index) ? record : Buffer.alloc(0),
          ]);
          await writeFile(path, Buffer.concat([original.subarray(0, HEADER), ...parts]));
          const { ids } = await recover(directory);
          expect(ids).toEqual(kept.map((index) => IDS[index]));
        },
      ),
      { numRuns: 200 },
    );
  });

  test('whose bytes the file system replaced by zeros is read through', async () => {
    const directory = await killedAfter(IDS);
    const path = join(directory, 'seg-0000000000000001.log');
    const bytes = await readFile(path);
    await writeFile(path, Buffer.concat([bytes, Buffer.alloc(1024 * 1024)]));
    const { ids, corrupt } = await recover(directory);
    expect({ ids, corrupt }).toEqual({ ids: IDS, corrupt: 0 });
  });

  test('that is a directory, or unreadable, is put aside and counted; the others are read', async () => {
    const directory = await killedAfter(IDS);
    await copyFile(join(directory, 'seg-0000000000000001.log'), join(directory, 'seg-0000000000000003.log'));
    await mkdir(join(directory, 'seg-0000000000000002.log'));
    const { ids, corrupt } = await recover(directory);
    expect(ids).toEqual(IDS);
    expect(corrupt).toBe(1);
    expect(await readdir(join(directory, 'quarantine'))).toHaveLength(1);
  });
});

describe('records that were written twice', () => {
  /** A segment of the given records, under a header. */
  async function twice(first: number[], second: number[], firstNumber: number): Promise<string> {
    const directory = await killedAfter(IDS);
    const path = join(directory, 'seg-0000000000000001.log');
    const bytes = await readFile(path);
    const starts = offsets(bytes);
    const pick = (indexes: number[]) => indexes.map((index) => bytes.subarray(starts[index], starts[index + 1]));
    await writeFile(path, Buffer.concat([bytes.subarray(0, HEADER), ...pick(first)]));
    const header = encodeHeader({ firstNumber, lastSeq: firstNumber - 1 });
    await writeFile(join(directory, 'seg-0000000000000002.log'), Buffer.concat([header, ...pick(second)]));
    return directory;
  }

  test('after a failed fsync are read once, from the new segment', async () => {
    const { ids, events } = await recover(await twice([0, 1, 2, 3], [2, 3, 4], 3));
    expect(ids).toEqual(IDS);
    expect(events.map(({ seq }) => seq)).toEqual([1, 2, 3, 4, 5]);
  });

  test('are read once, where the header that says so is damaged too', async () => {
    const directory = await twice([0, 1, 2, 3], [2, 3, 4], 3);
    const path = join(directory, 'seg-0000000000000002.log');
    const bytes = await readFile(path);
    bytes[12] = 9;
    await writeFile(path, bytes);
    const { ids, events, corrupt } = await recover(directory);
    expect({ ids, corrupt }).toEqual({ ids: IDS, corrupt: 1 });
    expect(events.map(({ seq }) => seq)).toEqual([1, 2, 3, 4, 5]);
  });

  test('are complete in the new segment, whichever of them the old one has', async () => {
    const { ids, corrupt } = await recover(await twice([0, 1, 3], [2, 3, 4], 3));
    expect({ ids, corrupt }).toEqual({ ids: IDS, corrupt: 0 });
  });
});

describe('recovery', () => {
  test('never removes an instance that has others in it which nobody has read', async () => {
    const directory = await killedAfter(IDS);
    await mkdir(join(directory, 'adopted', UUID), { recursive: true });
    await expect(removeInstance(directory)).rejects.toThrow('ENOTEMPTY');
    expect((await recover(directory)).ids).toEqual(IDS);
    await rm(join(directory, 'adopted'), { recursive: true });
    await removeInstance(directory);
    await expect(readdir(directory)).rejects.toThrow('ENOENT');
  });

  test('tells intents without a final event, with their last checkpoint, from cancelled and finished ones', async () => {
    const directory = await fresh();
    const spool = await openSpool({ directory });
    const entries = ['open', 'done', 'void', 'streaming'].map((id) => ({ id, used: 1 }));
    const [, done, gone, streaming] = entries as [
      (typeof entries)[0],
      (typeof entries)[0],
      (typeof entries)[0],
      (typeof entries)[0],
    ];
    await Promise.all(entries.map((entry) => spool.intent(entry)));
    spool.final(done);
    spool.cancel(gone);
    for (streaming.used = 2; streaming.used < 5; streaming.used++) {
      spool.checkpoint(streaming);
      await spool.flush();
    }
    const { ids, orphans } = await recover(await crashCopy(directory, spool.instance, await fresh()));
    expect(ids).toEqual(['done']);
    expect([...orphans.keys()]).toEqual(['open', 'streaming']);
    expect(JSON.parse(orphans.get('streaming')?.checkpoint ?? '')).toEqual({ id: 'streaming', used: 4 });
    await spool.close();
  });

  test('keeps open intents in memory, and nothing of the events', async () => {
    const ids = Array.from({ length: 20_000 }, (_, index) => `event-${index}`);
    const { orphans, source } = await recover(await killedAfter(ids, ['open']));
    expect(orphans.size).toBe(1);
    expect(source.lastSeq).toBe(20_000);
    const [segment] = source.segments;
    expect(segment?.seqs.length).toBeLessThan(60);
  });

  test('takes an instance without its name file, and one without segments', async () => {
    const directory = await killedAfter(IDS);
    await writeFile(join(directory, 'instance.json'), '{');
    expect((await recover(directory)).source.source).toMatch(/^app\/[0-9a-f-]{36}$/);
    expect(await recoverSource(await fresh(), 'unused', 'app', newContext())).toBeUndefined();
  });

  test.each([
    ['cut off', '{"sink":"led'],
    [
      'for another sequence number than its checksum',
      '{"sink":"ledger","role":"billing","seq":4,"attached":1,"crc":1}',
    ],
    ['no JSON object', 'null'],
  ])('gives a sink whose cursor is %s everything again', async (_what, text) => {
    const directory = await killedAfter(IDS);
    await writeFile(join(directory, 'cursor-ledger'), text);
    const { source } = await recover(directory);
    expect(source.cursor('ledger')).toBe(0);
  });

  test('refuses nothing that is misplaced: a file of another kind in the spool is left alone', async () => {
    const directory = await fresh();
    await writeFile(join(directory, 'README'), 'x');
    await mkdir(join(directory, UUID, 'nested'), { recursive: true });
    const spool = makeSpool({ directory });
    await spool.ready();
    expect(await readdir(directory)).toContain('README');
    await spool.close();
  });
});

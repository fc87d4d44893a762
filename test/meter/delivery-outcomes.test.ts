import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  createPipeline,
  jsonlSink,
  type Pipeline,
  type PipelineOptions,
  type Sink,
  SinkError,
  type SourceNote,
  type UsageEvent,
  type Verdict,
} from 'tollkeeper';
import { manualClock } from 'tollkeeper/testing';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { tempFolder } from '../support/index.js';

/** No jitter: a backoff is over at once. */
const random = (size: number) => new Uint8Array(size);
const limits = { lingerSeconds: 0 };
let folder: ReturnType<typeof tempFolder>;
let pipeline: Pipeline;
const messages: Record<string, unknown>[] = [];
const listen = (message: unknown) => void messages.push(message as never);
beforeEach(() => {
  folder = tempFolder('delivery');
  messages.length = 0;
  subscribe('tollkeeper:pipeline', listen);
});
afterEach(async () => {
  unsubscribe('tollkeeper:pipeline', listen);
  await pipeline?.close({ deliverSeconds: 0.2 });
  folder.remove();
});

function open(sinks: Sink[], options: Partial<PipelineOptions> = {}): Pipeline {
  pipeline = createPipeline({
    sinks,
    source: 'test',
    spool: { directory: folder.path },
    random,
    ...options,
  } as PipelineOptions);
  return pipeline;
}

async function record(count: number): Promise<void> {
  for (let index = 0; index < count; index++) {
    await pipeline.record({ type: 'job', authId: 'k', quantities: { n: index } } as never);
  }
}

/** A sink that answers each call with what the list says; then it takes everything. */
function scripted(name: string, answers: ((events: readonly UsageEvent[]) => unknown)[], more: Partial<Sink> = {}) {
  const calls: number[][] = [];
  const notes: SourceNote[] = [];
  const sink: Sink = {
    name,
    limits,
    async write(events) {
      calls.push(events.map(({ seq }) => seq));
      const answer = answers.shift();
      return (await answer?.(events)) as undefined;
    },
    async sourceNotes(given) {
      notes.push(...given);
    },
    ...more,
  };
  return { sink, calls, notes };
}

const delivered: Verdict = { outcome: 'delivered' };

describe('delivery', () => {
  it('does what each verdict says: keeps, tries again, puts aside', async () => {
    const { sink, calls, notes } = scripted(
      's',
      [
        () =>
          [
            delivered,
            { outcome: 'retry', afterSeconds: 0.01 },
            { outcome: 'reject', reason: 'bad' },
          ] satisfies Verdict[],
        () => [{ outcome: 'retry' }] satisfies Verdict[],
      ],
      { limits: { lingerSeconds: 30 } },
    );
    open([sink]);
    await record(3);
    await pipeline.flush();
    expect(calls).toEqual([[1, 2, 3], [2], [2]]);
    expect(pipeline.stats().sinks.s).toMatchObject({
      delivered: 2,
      rejected: 1,
      retried: 2,
      state: 'running',
      backlog: 0,
    });
    expect(notes.filter(({ kind }) => kind === 'dead_letter')).toEqual([
      { kind: 'dead_letter', source: expect.any(String), seq: 3, reason: 'bad' },
    ]);
    const [line] = readFileSync(join(folder.path, 'dead-letters', 's.jsonl'), 'utf8')
      .trim()
      .split('\n');
    expect(JSON.parse(line as string)).toMatchObject({
      reason: 'bad',
      event: { seq: 3, quantities: { n: { value: 2 } } },
    });
  });

  it.each([
    ['too short', () => [delivered]],
    ['of unknown outcomes', () => [{ outcome: 'fine' }, delivered]],
    ['a rejection without a reason', () => [{ outcome: 'reject' }, delivered]],
    ['no list', () => 'ok'],
  ])('takes a list of verdicts that is %s for a retry of all, and says so', async (_name, answer) => {
    const { sink, calls } = scripted('s', [answer], { limits: { lingerSeconds: 30 } });
    open([sink]);
    await record(2);
    await pipeline.flush();
    expect(calls).toEqual([
      [1, 2],
      [1, 2],
    ]);
    expect(messages).toContainEqual(expect.objectContaining({ type: 'invalid_verdicts', sink: 's', events: 2 }));
  });

  it('retries whatever a sink throws, with the same bytes, and a sink cannot change what comes next', async () => {
    const seen: string[] = [];
    const { sink } = scripted('s', [
      (events) => {
        seen.push(JSON.stringify(events));
        (events[0] as { id: string }).id = 'changed';
        throw new Error('down');
      },
      (events) => {
        seen.push(JSON.stringify(events));
        throw undefined;
      },
      (events) => void seen.push(JSON.stringify(events)),
    ]);
    open([sink]);
    await record(1);
    await pipeline.flush();
    expect(new Set(seen).size).toBe(1);
    expect(seen.length).toBe(3);
  });

  it('halves a batch that is too large until the one poison event is alone', async () => {
    const poison = (events: readonly UsageEvent[]): undefined => {
      if (events.some(({ quantities }) => quantities.n?.value === 41)) throw new SinkError('413', { action: 'split' });
      return undefined;
    };
    const got: number[] = [];
    const sink: Sink = {
      name: 's',
      limits: { lingerSeconds: 30, maxEvents: 100 },
      async write(events) {
        poison(events);
        got.push(...events.map(({ seq }) => seq));
      },
    };
    open([sink], { spool: 'memory' });
    await record(100);
    await pipeline.flush();
    expect(got.length).toBe(99);
    expect(new Set(got).size).toBe(99);
    expect(pipeline.stats().sinks.s).toMatchObject({ delivered: 99, rejected: 1 });
  });

  it('pauses, stops and goes on', async () => {
    const { sink, calls } = scripted('s', [
      () => {
        throw new SinkError('401', { action: 'pause', afterSeconds: 0.05 });
      },
      () => {
        throw new SinkError('410', { action: 'stop' });
      },
    ]);
    open([sink]);
    await record(1);
    await vi.waitFor(() => expect(pipeline.stats().sinks.s?.state).toBe('stopped'));
    expect(messages.map(({ type }) => type)).toEqual(expect.arrayContaining(['sink_paused', 'sink_stopped']));
    await new Promise((resolve) => setTimeout(resolve, 60));
    expect(calls.length).toBe(2);
    expect(pipeline.stats().sinks.s).toMatchObject({ backlog: 1 });
    expect(pipeline.stats().oldestAgeSeconds).toBeGreaterThanOrEqual(0);
    pipeline.resume('s');
    await pipeline.flush();
    expect(calls.length).toBe(3);
  });

  it('waits a minute after a pause that names no time, and a resume cuts it short', async () => {
    const { sink, calls } = scripted('s', [
      () => {
        throw new SinkError('403', { action: 'pause' });
      },
    ]);
    open([sink]);
    await record(1);
    await vi.waitFor(() => expect(pipeline.stats().sinks.s?.state).toBe('paused'));
    expect(messages).toContainEqual(expect.objectContaining({ type: 'sink_paused', afterSeconds: 60 }));
    pipeline.resume('s');
    await pipeline.flush();
    expect(calls.length).toBe(2);
  });

  it('parks what the sink may have taken, once it would not recognise a duplicate any more', async () => {
    const clock = manualClock(Date.now());
    const { sink, calls, notes } = scripted(
      's',
      [
        () => {
          throw new SinkError('timeout', { ambiguous: true, afterSeconds: 0.05 });
        },
      ],
      { limits: { ...limits, dedupeWindowSeconds: 60 } },
    );
    open([sink], { clock });
    await record(1);
    await vi.waitFor(() => expect(calls.length).toBe(1));
    clock.advance(61);
    await pipeline.flush();
    expect(calls.length).toBe(1);
    expect(pipeline.stats().sinks.s).toMatchObject({ parked: 1, delivered: 0 });
    expect(notes).toContainEqual(expect.objectContaining({ kind: 'dead_letter', seq: 1 }));
    expect(existsSync(join(folder.path, 'parked', 's.jsonl'))).toBe(true);
  });

  it('never parks what a sink surely has not got', async () => {
    const clock = manualClock(Date.now());
    const { sink, calls } = scripted(
      's',
      [
        () => {
          throw new Error('ECONNREFUSED');
        },
      ],
      { limits: { ...limits, dedupeWindowSeconds: 60 } },
    );
    open([sink], { clock });
    await record(1);
    clock.advance(3_600);
    await pipeline.flush();
    expect(calls.length).toBe(2);
    expect(pipeline.stats().sinks.s).toMatchObject({ parked: 0, delivered: 1 });
  });

  it('gives a write that hangs up after its time, and tries again', async () => {
    let aborted = false;
    let first = true;
    const sink: Sink = {
      name: 's',
      limits: { ...limits, timeoutSeconds: 0.05 },
      write(_events, signal) {
        if (!first) return Promise.resolve();
        first = false;
        signal.addEventListener('abort', () => {
          aborted = true;
        });
        return new Promise(() => {});
      },
    };
    open([sink]);
    await record(1);
    await pipeline.flush();
    expect(aborted).toBe(true);
    expect(pipeline.stats().sinks.s).toMatchObject({ delivered: 1, retried: 1 });
  });

  it('a slow sink delays no other, and keeps its order', async () => {
    const slow = scripted(
      'slow',
      Array.from({ length: 5 }, () => () => new Promise((resolve) => setTimeout(resolve, 30))),
      { limits: { ...limits, maxEvents: 1 } },
    );
    const fast = scripted('fast', []);
    open([slow.sink, fast.sink]);
    await record(10);
    await vi.waitFor(() => expect(fast.calls.flat().length).toBe(10));
    expect(slow.calls.flat().length).toBeLessThan(10);
    await pipeline.flush();
    expect(slow.calls.flat()).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  });

  it('moves a cursor over what is done with alone, though batches end in any order', async () => {
    const releases: (() => void)[] = [];
    const { sink, calls } = scripted(
      's',
      Array.from({ length: 3 }, () => () => new Promise<void>((resolve) => void releases.push(resolve))),
      {
        limits: { lingerSeconds: 0, maxEvents: 1, concurrency: 3 },
      },
    );
    open([sink], { spool: 'memory' });
    await record(3);
    await vi.waitFor(() => expect(calls.length).toBe(3));
    releases[2]?.();
    releases[1]?.();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(pipeline.stats().sinks.s?.backlog).toBe(3);
    releases[0]?.();
    await pipeline.flush();
    expect(pipeline.stats().sinks.s?.backlog).toBe(0);
  });

  it('waits for a sink that is not ready, however long', async () => {
    let tries = 0;
    const { sink, calls } = scripted('s', [], {
      ready: async () => {
        tries += 1;
        if (tries < 3) throw new Error('no table');
      },
    });
    open([sink]);
    await record(1);
    await pipeline.flush();
    expect([tries, calls.length]).toEqual([3, 1]);
    expect(messages).toContainEqual(expect.objectContaining({ type: 'sink_not_ready', message: 'no table' }));
  });

  it('tells a sink again what it failed to note', async () => {
    let tries = 0;
    const { sink } = scripted('s', [], {
      sourceNotes: async () => {
        tries += 1;
        if (tries === 1) throw new Error('not now');
      },
    });
    open([sink], { spool: 'memory' });
    await record(1);
    expect(await pipeline.close()).toEqual({ undelivered: 0 });
    expect(tries).toBeGreaterThan(1);
  });

  it('never waits for observational sinks when it closes, nor lets them hold events back', async () => {
    const stuck = scripted('seen', [() => new Promise(() => {})], { role: 'observational' });
    const bills = scripted('bills', []);
    open([stuck.sink, bills.sink]);
    await record(5);
    await pipeline.flush();
    expect(bills.calls.flat()).toEqual([1, 2, 3, 4, 5]);
    expect(await pipeline.close({ deliverSeconds: 0.2 })).toEqual({ undelivered: 0 });
  });

  it('keeps undelivered events in the spool for the next process', async () => {
    const down = scripted('s', [], { write: () => Promise.reject(new Error('down')) });
    open([down.sink]);
    await record(3);
    expect(await pipeline.close({ deliverSeconds: 0.05 })).toEqual({ undelivered: 3 });
    const up = scripted('s', []);
    open([up.sink]);
    await pipeline.ready();
    await vi.waitFor(() => expect(up.calls.flat()).toEqual([1, 2, 3]), { timeout: 10_000 });
    await vi.waitFor(() => expect(up.notes).toContainEqual(expect.objectContaining({ kind: 'closed', lastSeq: 3 })), {
      timeout: 10_000,
    });
  });

  it('refuses admissions when billing sinks leave no room in memory, and goes on when they do', async () => {
    let down = true;
    const sink: Sink = {
      name: 's',
      limits: { lingerSeconds: 0, maxEvents: 10_000, maxBytes: 64 * 1024 * 1024 },
      write: async () => {
        if (down) throw new SinkError('down', { afterSeconds: 0.05 });
      },
    };
    open([sink], { spool: 'memory' });
    const big = {
      type: 'job',
      authId: 'k',
      quantities: {},
      dimensions: Object.fromEntries(Array.from({ length: 8 }, (_, i) => [`d${i}`, 'x'.repeat(900)])),
    } as never;
    let refused: unknown;
    for (let index = 0; index < 60 && refused === undefined; index++) {
      await Promise.all(
        Array.from({ length: 500 }, () =>
          pipeline.record(big).catch((error) => {
            refused = error;
          }),
        ),
      );
    }
    expect(refused).toMatchObject({ code: 'metering_unavailable' });
    down = false;
    await vi.waitFor(() => pipeline.record(big), { timeout: 10_000 });
  });
});

describe('jsonlSink', () => {
  it('appends each event as a line, and reads back as it was', async () => {
    const path = join(folder.path, 'usage.jsonl');
    open([jsonlSink(path)], { spool: 'memory' });
    await record(3);
    await pipeline.close();
    open([jsonlSink(path, { name: 'again', role: 'observational' })], { spool: 'memory' });
    await record(1);
    await pipeline.close();
    const lines = readFileSync(path, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as UsageEvent);
    expect(lines.map(({ quantities }) => quantities.n?.value)).toEqual([0, 1, 2, 0]);
  });

  it('throws for a path that is none, and retries where it cannot write', async () => {
    expect(() => jsonlSink('')).toThrow(TypeError);
    expect(() => jsonlSink('x', { nam: 'y' } as never)).toThrow('did you mean "name"?');
    open([jsonlSink('/dev/null/x.jsonl')], { spool: 'memory' });
    await record(1);
    await vi.waitFor(() => expect(pipeline.stats().sinks.jsonl?.retried).toBeGreaterThan(0), { timeout: 5_000 });
  });
});

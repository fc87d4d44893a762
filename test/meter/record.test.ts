import { createPipeline, type Identity, type MemorySink, memorySink, type Pipeline } from 'tollkeeper';
import { afterEach, beforeEach, expect, it } from 'vitest';

let sink: MemorySink;
let pipeline: Pipeline;
beforeEach(() => {
  sink = memorySink();
  pipeline = createPipeline({ sinks: [sink], spool: 'memory', source: 'test' });
});
afterEach(async () => {
  await pipeline.close();
});

it('records everything that a draft can state', async () => {
  const identity = {
    subject: { kind: 'user', id: 'ann' },
    authId: 'k',
    issuer: 'iss',
    verifier: 'v',
    tenant: 't',
    clientId: 'c',
    tokenId: 'tok',
    plan: 'pro',
    scopes: new Set(),
    groups: [],
    claims: {},
  } as unknown as Identity;
  const { id } = await pipeline.record({
    type: 'job',
    identity,
    tenant: 'other',
    resource: { type: 'repo', id: 'r' },
    time: new Date('2026-03-01T10:00:00.123Z'),
    requestId: 'req',
    status: 503,
    durationMs: 12,
    outcome: 'server_error',
    quantities: { a: 1, b: { value: 2, basis: 'estimated' }, c: undefined },
    dimensions: { model: 'm' },
  } as never);
  await pipeline.flush();
  expect(sink.events).toEqual([
    {
      id,
      seq: 1,
      source: expect.any(String),
      type: 'job',
      time: '2026-03-01T10:00:00.123Z',
      authId: 'k',
      subject: { kind: 'user', id: 'ann' },
      issuer: 'iss',
      verifier: 'v',
      tenant: 'other',
      clientId: 'c',
      tokenId: 'tok',
      plan: 'pro',
      resource: { type: 'repo', id: 'r' },
      requestId: 'req',
      status: 503,
      outcome: 'server_error',
      billable: false,
      durationMs: 12,
      quantities: { a: { value: 1, basis: 'reported' }, b: { value: 2, basis: 'estimated' } },
      dimensions: { model: 'm' },
    },
  ]);
});

it.each([
  ['nothing', undefined],
  ['no authId', { type: 'job', authId: undefined }],
  ['an empty tenant', { tenant: '' }],
  ['a subject without an id', { subject: { kind: 'user' } }],
  ['a subject of an unknown kind', { subject: { kind: 'robot', id: 'r' } }],
  ['no type', { type: '' }],
  ['half a resource', { resource: { type: 'repo' } }],
  ['a resource without a type', { resource: { id: 'r' } }],
  ['a time as text', { time: '2026-03-01' }],
  ['an invalid time', { time: new Date(Number.NaN) }],
  ['a time before the epoch', { time: new Date(-1) }],
  ['a time that no ledger books', { time: new Date('9999-01-01T00:00:00Z') }],
  ['a long request id', { requestId: 'x'.repeat(201) }],
  ['a request id that is no text', { requestId: 5 }],
  ['a status of 99', { status: 99 }],
  ['a negative duration', { durationMs: -1 }],
  ['an unknown outcome', { outcome: 'fine' }],
  ['billable as text', { billable: 'yes' }],
  ['an unknown key', { authID: 'k' }],
  ['a huge attribution', { tenant: 'x'.repeat(70_000) }],
  ['quantities that are none', { quantities: 5 }],
  ['a negative quantity', { quantities: { a: -1 } }],
  ['a quantity without a value', { quantities: { a: null } }],
  ['a quantity with an unknown basis', { quantities: { a: { value: 1, basis: 'felt' } } }],
  [
    'too many quantities',
    { quantities: Object.fromEntries(Array.from({ length: 65 }, (_, index) => [`q${index}`, 1])) },
  ],
  ['nested dimensions', { dimensions: { a: {} } }],
])('refuses a draft with %s, and writes nothing', async (_name, draft) => {
  const whole = draft === undefined ? undefined : { type: 'job', authId: 'k', quantities: {}, ...draft };
  await expect(pipeline.record(whole as never)).rejects.toThrow(/Error|record|usage/);
  expect(pipeline.stats().written).toBe(0);
});

it.each([
  ['an id that is none', ['a b', { a: 1 }, { reason: 'r' }]],
  ['an id that is no text', [5, { a: 1 }, { reason: 'r' }]],
  ['no reason', ['id', { a: 1 }, {}]],
  ['a long reason', ['id', { a: 1 }, { reason: 'x'.repeat(501) }]],
  ['a fraction', ['id', { a: 0.5 }, { reason: 'r' }]],
  ['no quantities', ['id', undefined, { reason: 'r' }]],
])('refuses a correction with %s, and writes nothing', async (_name, args) => {
  await expect((pipeline.correct as (...all: unknown[]) => Promise<unknown>)(...args)).rejects.toThrow();
  expect(pipeline.stats().written).toBe(0);
});

it('takes nothing any more once it is closed', async () => {
  await pipeline.close();
  await expect(pipeline.record({ type: 'job', authId: 'k', quantities: {} } as never)).rejects.toMatchObject({
    code: 'metering_unavailable',
  });
});

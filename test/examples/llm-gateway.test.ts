import request from 'supertest';
import { expect, it, vi } from 'vitest';
import { llmGateway } from '../../examples/llm-gateway.js';

it('the gateway holds a budget of tokens per key, settles to what was said, and tells what was spent', async () => {
  async function* model(prompt: string) {
    for (const word of prompt.split(' ')) yield `${word} `;
  }
  const { app, registry, pipeline } = await llmGateway(model, 300);
  const client = await registry.createClient({ name: 'ann' });
  const { token } = await registry.issueToken({ clientId: client.id, scopes: [] });
  const ask = (prompt: string, max = 256, key = token) =>
    request(app)
      .post('/v1/completions')
      .set('authorization', `Bearer ${key}`)
      .send({ prompt, max_tokens: max, model: 'm-7b' });
  const get = async (path: string) => (await request(app).get(path).set('authorization', `Bearer ${token}`)).body;

  expect((await ask('one two three')).text).toBe('one two three ');
  expect((await ask('one two three', 2)).text).toBe('one two ');
  await vi.waitFor(async () =>
    expect((await get('/v1/budget')).policies[0]).toMatchObject({ used: 5, remaining: 295 }),
  );
  // What is asked for must fit, though less may be said.
  const refused = await ask('a', 296);
  expect([refused.status, refused.body['violated-policies']]).toEqual([429, ['tokens']]);
  expect((await ask('a', 295)).status).toBe(200);
  await vi.waitFor(async () => expect(await get('/v1/spend')).toEqual([{ model: 'm-7b', tokens: 6 }]));
  expect((await ask('x', 1, `${token}x`)).status).toBe(401);
  const other = await registry.issueToken({ clientId: client.id, scopes: [] });
  expect((await ask('a', 300, other.token)).status).toBe(200);
  await pipeline.close();
});

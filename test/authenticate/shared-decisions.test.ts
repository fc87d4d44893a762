import type { IncomingMessage, ServerResponse } from 'node:http';
import express from 'express';
import request from 'supertest';
import { AccessError, type AuthenticateOptions, authenticate, edgeVerifier, type Verifier } from 'tollkeeper';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { type Served, serve } from '../support/serve.js';

const open: Served[] = [];
afterEach(async () => {
  vi.useRealTimers();
  for (const served of open.splice(0)) await served.close();
});

const CREDENTIAL = 'Bearer some-token';
const fromEdge = (req: IncomingMessage): boolean => req.headers['x-peer'] === 'edge';
const edge = edgeVerifier({ prefix: 'x-e-', trust: { peers: ['10.0.0.1'] }, map: { authId: 'x-e-auth-id' } });

function tokens(verify: Verifier['verify']): Verifier {
  return { name: 'tokens', accepts: ({ scheme }) => scheme === 'bearer', verify };
}

const user = (id: string) => ({ subject: { kind: 'user', id } as const, authId: id });

/** The header `x-peer: edge` stands for a connection from the edge's address. */
async function api(options: AuthenticateOptions): Promise<string> {
  const app = express();
  app.use((req, _res, next) => {
    const value = fromEdge(req) ? '10.0.0.1' : '192.0.2.1';
    Object.defineProperty(req.socket, 'remoteAddress', { value, configurable: true });
    next();
  });
  app.use(authenticate(options), (req, res) => void res.json({ authId: req.identity?.authId ?? null }));
  const served = await serve(app);
  open.push(served);
  return served.url;
}

describe('a decision that another request may reuse', () => {
  it('never is that of a trusted edge that named no caller', async () => {
    const refusing = tokens(() => {
      throw new AccessError('invalid_token');
    });
    const url = await api({ verifiers: [edge, refusing] });
    const incomplete = await request(url).get('/').set('x-peer', 'edge').set('authorization', CREDENTIAL);
    expect([incomplete.status, incomplete.body.authId]).toEqual([200, null]);
    expect((await request(url).get('/').set('authorization', CREDENTIAL)).status).toBe(401);
    const complete = await request(url)
      .get('/')
      .set({ 'x-peer': 'edge', 'x-e-auth-id': 'ann', authorization: CREDENTIAL });
    expect(complete.body.authId).toBe('ann');
  });

  it('is not that of a verifier which does not take this request', async () => {
    const mutual: Verifier = {
      name: 'mutual-tls',
      dependsOnRequest: true,
      accepts: ({ req }) => fromEdge(req),
      verify: vi.fn(() => user('ann')),
    };
    const url = await api({ verifiers: [mutual] });
    for (let round = 0; round < 2; round++) {
      const good = await request(url).get('/').set({ 'x-peer': 'edge', authorization: CREDENTIAL });
      expect(good.body.authId).toBe('ann');
    }
    expect(mutual.verify).toHaveBeenCalledTimes(1);
    expect((await request(url).get('/').set('authorization', CREDENTIAL)).status).toBe(401);
  });

  it.each(['now', 'later'])('is not that of another verifier which is still at it (edge answers %s)', async (when) => {
    let begun = (): void => {};
    let finish = (): void => {};
    const started = new Promise<void>((resolve) => {
      begun = resolve;
    });
    const slow = tokens(async () => {
      begun();
      await new Promise<void>((resolve) => {
        finish = resolve;
      });
      return user('from-token');
    });
    const first: Verifier =
      when === 'now' ? edge : { ...edge, verify: async (presented, signal) => edge.verify(presented, signal) };
    const url = await api({ verifiers: [first, slow] });
    const other = request(url)
      .get('/')
      .set('authorization', CREDENTIAL)
      .then((answer) => answer);
    await started;
    const answer = await request(url)
      .get('/')
      .set({ 'x-peer': 'edge', 'x-e-auth-id': 'ann', authorization: CREDENTIAL });
    expect(answer.body.authId).toBe('ann');
    finish();
    expect((await other).body.authId).toBe('from-token');
  });
});

describe('code of the app that misbehaves', () => {
  it('may reject in an async onReject: the answer stands and nothing is left unhandled', async () => {
    const unhandled = vi.fn();
    process.on('unhandledRejection', unhandled);
    const onReject = (async () => {
      throw new Error('the log is down');
    }) as () => void;
    const url = await api({ verifiers: [tokens(() => user('ann'))], onReject });
    expect((await request(url).get('/')).status).toBe(401);
    await new Promise((resolve) => setTimeout(resolve, 10));
    process.off('unhandledRejection', unhandled);
    expect(unhandled).not.toHaveBeenCalled();
  });

  it('may refuse with scopes that no header can carry: they are left out of the challenge', async () => {
    const verify = async () => {
      throw new AccessError('insufficient_scope', { scopes: ['a:read', 'b"\r\nset-cookie: c'] });
    };
    const url = await api({ verifiers: [tokens(verify)] });
    const answer = await request(url).get('/').set('authorization', CREDENTIAL);
    expect([answer.status, answer.headers['set-cookie']]).toEqual([403, undefined]);
    expect(answer.headers['www-authenticate']).toContain('scope="a:read"');
  });

  it('may have a checkRequest that never answers: 503 after the time of a verification', async () => {
    vi.useFakeTimers();
    const verifier = tokens(() => ({ identity: user('ann'), checkRequest: () => new Promise<void>(() => {}) }));
    const rejected = vi.fn();
    const next = vi.fn();
    const middleware = authenticate({ verifiers: [verifier], onReject: (error) => rejected(error.code) });
    const req = { headers: { authorization: CREDENTIAL }, rawHeaders: [] } as unknown as IncomingMessage;
    middleware(req, { writableEnded: true } as ServerResponse, next);
    await vi.advanceTimersByTimeAsync(14_999);
    expect(rejected).not.toHaveBeenCalled();
    await vi.advanceTimersByTimeAsync(1);
    expect(rejected).toHaveBeenCalledExactlyOnceWith('verifier_unavailable');
    expect(next).not.toHaveBeenCalled();
  });

  it('is told by its signal when a verification has taken too long', async () => {
    vi.useFakeTimers();
    const seen: AbortSignal[] = [];
    const verifier = tokens((_presented, signal) => {
      seen.push(signal);
      return new Promise(() => {});
    });
    const rejected = vi.fn();
    const middleware = authenticate({ verifiers: [verifier], onReject: (error) => rejected(error.code) });
    const req = { headers: { authorization: CREDENTIAL }, rawHeaders: [] } as unknown as IncomingMessage;
    middleware(req, { writableEnded: true } as ServerResponse, vi.fn());
    await vi.advanceTimersByTimeAsync(14_999);
    expect(seen[0]?.aborted).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(seen[0]?.aborted).toBe(true);
    expect(rejected).toHaveBeenCalledExactlyOnceWith('verifier_unavailable');
  });
});

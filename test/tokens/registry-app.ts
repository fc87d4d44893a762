import { randomBytes } from 'node:crypto';
import express from 'express';
import request from 'supertest';
import {
  type AccessError,
  authenticate,
  createTokenRegistry,
  memoryTokenStore,
  opaqueTokenVerifier,
  type TokenRegistryOptions,
} from 'tollkeeper';

export const pepper = { id: 'p1', secret: randomBytes(32) };

/** A registry, what it asked its store, and an app that shows who is calling. */
export function registryApp(options: Partial<TokenRegistryOptions> = {}) {
  const inner = options.store ?? memoryTokenStore();
  const asked: (readonly string[])[] = [];
  const store = {
    ...inner,
    getTokens(ids: readonly string[]) {
      asked.push(ids);
      return inner.getTokens(ids);
    },
  };
  const registry = createTokenRegistry({ peppers: { current: pepper }, prefix: 'acme', ...options, store });
  const reasons: (string | undefined)[] = [];
  const app = express();
  app.use(
    authenticate({
      verifiers: [opaqueTokenVerifier({ registry })],
      onReject: (error: AccessError) => reasons.push(error.reason),
      ...(options.clock === undefined ? {} : { clock: options.clock }),
    }),
    (req, res) => {
      res.json(req.identity);
    },
  );
  const ask = (token: string) => request(app).get('/').set('authorization', `Bearer ${token}`);
  return { registry, store: inner, asked, reasons, app, ask };
}

/** The same with a client and a token of it. */
export async function issuedApp(
  options: Partial<TokenRegistryOptions> = {},
  fields: Partial<Parameters<ReturnType<typeof createTokenRegistry>['issueToken']>[0]> = {},
) {
  const app = registryApp(options);
  const client = await app.registry.createClient({ name: 'customer', tenant: 'acme-inc', plan: 'pro' });
  const { token, record } = await app.registry.issueToken({ clientId: client.id, scopes: ['scan:read'], ...fields });
  app.asked.length = 0;
  return { ...app, client, token, record };
}

import { mkdtempSync } from 'node:fs';
import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import express from 'express';
import {
  authenticate,
  createPipeline,
  createQuota,
  createTokenRegistry,
  enforceQuota,
  jwtVerifier,
  type Middleware,
  memoryQuotaStore,
  memoryTokenStore,
  meter,
  opaqueTokenVerifier,
  requireScope,
} from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';
import { ask, start } from '../processes.js';
import { AUDIENCE, type Callers, ISSUER } from './callers.js';

/** What a server of the benchmark is made of. */
export interface Setting {
  readonly framework: 'express' | 'http';
  readonly callers: Callers;
  readonly algorithm: 'RS256' | 'ES256';
}

export interface Scenario {
  readonly name: string;
  /** Default `stack`. */
  readonly group?: 'metering';
  /** Which callers it takes; none for a bare server. */
  readonly credential?: 'RS256' | 'ES256' | 'opaque';
  readonly frameworks: readonly ('express' | 'http')[];
  /** The middlewares, and the tokens where they are not the callers' JWTs. */
  build(setting: Setting): Promise<{ steps: Middleware[]; tokens?: readonly string[] }>;
}

const SCOPE = 'reports:read';
const both = ['express', 'http'] as const;

const jwt = ({ callers, algorithm }: Setting) =>
  authenticate({
    verifiers: [
      jwtVerifier({ issuer: ISSUER, audience: AUDIENCE, algorithms: [algorithm], keys: { jwks: callers.jwks } }),
    ],
  });

const quota = () =>
  enforceQuota({
    quota: createQuota({
      store: memoryQuotaStore(),
      plans: {
        pro: [
          {
            name: 'burst',
            per: 'authId',
            unit: 'requests',
            limit: 1_000_000_000,
            window: { kind: 'gcra', periodSeconds: 60 },
          },
        ],
      },
      defaultPlan: 'pro',
    }),
  });

/** Takes everything and keeps nothing: the sink's own cost is not the question here. */
const sink = { name: 'null', limits: { maxEvents: 2_000 }, async write() {} };

/** A caller without any credential, so that only metering is left. */
const signedIn = (): Middleware =>
  asIdentity({ subject: { kind: 'user', id: 'bench' }, authId: 'key-1', tenant: 'acme', clientId: 'c1', plan: 'pro' });

const metering = (durability: 'intent' | 'completion') =>
  meter({
    pipeline: createPipeline({
      sinks: [sink],
      source: 'bench',
      spool: { directory: mkdtempSync(join(tmpdir(), 'tollkeeper-bench-')) },
    }),
    type: 'report',
    durability,
  });

async function opaque(count: number) {
  const registry = createTokenRegistry({
    store: memoryTokenStore(),
    peppers: { current: { id: 'p1', secret: crypto.getRandomValues(new Uint8Array(32)) } },
    prefix: 'bench',
  });
  const client = await registry.createClient({ name: 'bench', plan: 'pro' });
  const tokens: string[] = [];
  for (let index = 0; index < count; index++) {
    tokens.push((await registry.issueToken({ clientId: client.id, scopes: [SCOPE] })).token);
  }
  return { step: authenticate({ verifiers: [opaqueTokenVerifier({ registry })] }), tokens };
}

export const scenarios: readonly Scenario[] = [
  { name: 'signed in, not metered', group: 'metering', frameworks: both, build: async () => ({ steps: [signedIn()] }) },
  {
    name: 'meter, in memory',
    group: 'metering',
    frameworks: both,
    build: async () => ({
      steps: [
        signedIn(),
        meter({ pipeline: createPipeline({ sinks: [sink], source: 'bench', spool: 'memory' }), type: 'report' }),
      ],
    }),
  },
  {
    name: 'meter, durable, completion',
    group: 'metering',
    frameworks: both,
    build: async () => ({ steps: [signedIn(), metering('completion')] }),
  },
  {
    name: 'meter, durable, intent',
    group: 'metering',
    frameworks: both,
    build: async () => ({ steps: [signedIn(), metering('intent')] }),
  },
  {
    name: 'peer: moesif-nodejs, without bodies',
    group: 'metering',
    frameworks: both,
    async build() {
      const { default: moesif } = await import('moesif-nodejs');
      const { port } = await ask<{ port: number }>(start('./http/collector.ts', 1), 'listen');
      const analytics = moesif({
        // It wants one of at least 50 characters.
        applicationId: 'bench'.padEnd(64, '-'),
        baseUri: `http://127.0.0.1:${port}`,
        logBody: false,
        identifyUser: (req: { identity?: { subject: { id: string } } }) => req.identity?.subject.id,
      });
      return { steps: [signedIn(), analytics as never] };
    },
  },
  { name: 'bare', frameworks: both, build: async () => ({ steps: [] }) },
  {
    name: 'authenticate + requireScope, JWT RS256',
    credential: 'RS256',
    frameworks: both,
    build: async (setting) => ({ steps: [jwt(setting), requireScope(SCOPE)] }),
  },
  {
    name: 'authenticate + requireScope, JWT ES256',
    credential: 'ES256',
    frameworks: both,
    build: async (setting) => ({ steps: [jwt(setting), requireScope(SCOPE)] }),
  },
  {
    name: 'authenticate + requireScope, opaque',
    credential: 'opaque',
    frameworks: both,
    async build({ callers }) {
      const { step, tokens } = await opaque(callers.tokens.length);
      return { steps: [step, requireScope(SCOPE)], tokens };
    },
  },
  {
    name: '+ enforceQuota in memory',
    credential: 'ES256',
    frameworks: both,
    build: async (setting) => ({ steps: [jwt(setting), requireScope(SCOPE), quota()] }),
  },
  {
    name: '+ meter, durable, completion (no quota)',
    credential: 'ES256',
    frameworks: both,
    build: async (setting) => ({ steps: [jwt(setting), requireScope(SCOPE), metering('completion')] }),
  },
  {
    name: 'whole stack, JWT, completion',
    credential: 'ES256',
    frameworks: both,
    build: async (setting) => ({ steps: [jwt(setting), requireScope(SCOPE), quota(), metering('completion')] }),
  },
  {
    name: 'whole stack, opaque, completion',
    credential: 'opaque',
    frameworks: both,
    async build({ callers }) {
      const { step, tokens } = await opaque(callers.tokens.length);
      return { steps: [step, requireScope(SCOPE), quota(), metering('completion')], tokens };
    },
  },
  {
    name: 'whole stack, JWT, intent',
    credential: 'ES256',
    frameworks: both,
    build: async (setting) => ({ steps: [jwt(setting), requireScope(SCOPE), quota(), metering('intent')] }),
  },
  {
    name: 'peer: express-oauth2-jwt-bearer + requiredScopes',
    credential: 'RS256',
    frameworks: ['express'],
    build: async (setting) => ({ steps: await oauth2JwtBearer(setting) }),
  },
  {
    name: 'peer: that + express-rate-limit',
    credential: 'RS256',
    frameworks: ['express'],
    async build(setting) {
      const { rateLimit } = await import('express-rate-limit');
      const limit = rateLimit({
        windowMs: 60_000,
        limit: 1_000_000_000,
        standardHeaders: 'draft-8',
        keyGenerator: (req: { auth?: { payload?: { sub?: string } } }) => String(req.auth?.payload?.sub),
      } as never);
      return { steps: [...(await oauth2JwtBearer(setting)), limit as never] };
    },
  },
  {
    name: 'peer: express-jwt',
    credential: 'RS256',
    frameworks: ['express'],
    async build({ callers }) {
      const { expressjwt } = await import('express-jwt');
      const verify = expressjwt({
        secret: callers.publicPem,
        algorithms: ['RS256'],
        audience: AUDIENCE,
        issuer: ISSUER,
      });
      return { steps: [verify as never] };
    },
  },
  {
    name: 'peer: fast-jwt with its cache, three lines',
    credential: 'ES256',
    frameworks: both,
    async build({ callers }) {
      const { createVerifier } = await import('fast-jwt');
      const verify = createVerifier({
        key: callers.publicPem,
        cache: 10_000,
        allowedAud: AUDIENCE,
        allowedIss: ISSUER,
      });
      const step: Middleware = (req, _res, next) => {
        Object.assign(req, { user: verify((req.headers.authorization as string).slice(7)) });
        next();
      };
      return { steps: [step] };
    },
  },
  {
    name: 'peer: passport-http-bearer, tokens in a Map',
    credential: 'opaque',
    frameworks: ['express'],
    async build({ callers }) {
      const { default: passport } = await import('passport');
      const { Strategy } = await import('passport-http-bearer');
      const tokens = callers.tokens.map((_, index) => `bench-token-${index}-${'x'.repeat(43)}`);
      const known = new Map(tokens.map((token, index) => [token, { id: index, scope: [SCOPE] }]));
      passport.use(
        new Strategy((token: string, done: (error: unknown, user: unknown) => void) =>
          done(null, known.get(token) ?? false),
        ),
      );
      return { steps: [passport.authenticate('bearer', { session: false }) as never], tokens };
    },
  },
];

/** It fetches its keys: from a server of this process. */
async function oauth2JwtBearer({ callers }: Setting): Promise<Middleware[]> {
  const { auth, requiredScopes } = await import('express-oauth2-jwt-bearer');
  const keys = createServer((_req, res) => void res.end(JSON.stringify(callers.jwks)));
  await new Promise<void>((resolve) => keys.listen(0, '127.0.0.1', resolve));
  const { port } = keys.address() as { port: number };
  const verify = auth({
    issuer: ISSUER,
    audience: AUDIENCE,
    jwksUri: `http://127.0.0.1:${port}/`,
    tokenSigningAlg: 'RS256',
  });
  return [verify as never, requiredScopes(SCOPE) as never];
}

/** The server: the steps, then an answer in JSON. */
export function listenerOf(framework: 'express' | 'http', steps: readonly Middleware[]): RequestListener {
  const answer = (_req: IncomingMessage, res: ServerResponse): void => {
    const body = '{"ok":true,"report":"the answer to the question"}';
    res.setHeader('content-type', 'application/json');
    res.setHeader('content-length', body.length);
    res.end(body);
  };
  if (framework === 'express') {
    const app = express().disable('x-powered-by');
    app.get('/v1/reports', ...(steps as never[]), answer as never);
    return app;
  }
  return (req, res) => new Walk(steps, answer, req, res).next();
}

/** One request on its way through the steps, as Connect walks it: `next` is a closure that each request has of its own. */
class Walk {
  #index = 0;
  readonly next: (error?: unknown) => void;

  constructor(steps: readonly Middleware[], answer: RequestListener, req: IncomingMessage, res: ServerResponse) {
    // An arrow that is not named while the benchmark is transpiled: naming it would cost each request more than the walk.
    this.next = (() => (error?: unknown) => {
      if (error !== undefined) {
        res.statusCode = 500;
        res.end();
        return;
      }
      const step = steps[this.#index++];
      if (step === undefined) answer(req as never, res as never);
      else step(req, res, this.next);
    })();
  }
}

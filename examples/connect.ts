/** The same middlewares on Connect and on bare `node:http`: they use nothing but Node's own request and response. */
import { createServer, type RequestListener } from 'node:http';
import connect from 'connect';
import { authenticate, identityOf, type Middleware, requireScope, staticTokenVerifier } from 'tollkeeper';

export const TOKEN = 'a-secret-that-is-long-enough-for-an-example';
const identity = {
  subject: { kind: 'service', id: 'reporter' },
  authId: 'reporter',
  scopes: ['reports:read'],
} as const;
const steps: Middleware[] = [
  authenticate({ verifiers: [staticTokenVerifier({ tokens: [{ token: TOKEN, identity }] })] }),
  requireScope('reports:read'),
];
const handler: RequestListener = (req, res) => {
  res.end(`hello ${identityOf(req).subject.id}`);
};

export function onConnect() {
  const app = connect();
  for (const step of steps) app.use(step);
  app.use(handler);
  return createServer(app);
}

export function onNode() {
  return createServer((req, res) => {
    const run = (index: number): void => {
      const step = steps[index];
      if (step === undefined) return handler(req, res);
      step(req, res, () => run(index + 1));
    };
    run(0);
  });
}

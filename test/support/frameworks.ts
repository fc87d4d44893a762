import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import connect from 'connect';
import express from 'express';
import express4 from 'express4';

type Step = (req: never, res: ServerResponse, next: (error?: unknown) => void) => void;
type Handler = (req: IncomingMessage, res: ServerResponse) => void;

/** The frameworks whose answers must be the same: each builds a listener of middlewares, then a handler. */
export const frameworks: readonly {
  name: string;
  listen(steps: readonly Step[], handler: Handler): RequestListener;
}[] = [
  { name: 'Express 5', listen: (steps, handler) => fill(express().disable('x-powered-by'), steps, handler) },
  { name: 'Express 4', listen: (steps, handler) => fill(express4().disable('x-powered-by'), steps, handler) },
  { name: 'Connect', listen: (steps, handler) => fill(connect(), steps, handler) },
  {
    name: 'node:http',
    listen: (steps, handler) => (req, res) => {
      const run = (index: number): void => {
        const step = steps[index];
        if (step === undefined) return handler(req, res);
        step(req as never, res, (error) => {
          if (error === undefined) return run(index + 1);
          res.statusCode = 500;
          res.end();
        });
      };
      run(0);
    },
  },
];

function fill(app: unknown, steps: readonly Step[], handler: Handler): RequestListener {
  const { use } = app as { use(step: unknown): void };
  for (const step of steps) use.call(app, step);
  use.call(app, (req: IncomingMessage, res: ServerResponse) => handler(req, res));
  return app as RequestListener;
}

import { createServer } from 'node:http';
import type { Callers } from './callers.js';
import { listenerOf, type Scenario, scenarios } from './scenarios.js';

/** What the parent sends first. */
export interface ServerOrder {
  readonly scenario: string;
  readonly framework: 'express' | 'http';
  readonly callers: Callers;
}

process.on('message', async (message: ServerOrder | 'cpu') => {
  if (message === 'cpu') {
    const { user, system } = process.cpuUsage();
    process.send?.({ cpu: user + system, rss: process.memoryUsage.rss() });
    return;
  }
  const { scenario: name, framework, callers } = message;
  const scenario = scenarios.find((each) => each.name === name) as Scenario;
  const algorithm = scenario.credential === 'RS256' ? 'RS256' : 'ES256';
  const { steps, tokens = callers.tokens } = await scenario.build({ framework, callers, algorithm });
  const server = createServer(listenerOf(framework, steps));
  server.keepAliveTimeout = 600_000;
  server.listen(0, '127.0.0.1', () => {
    process.send?.({ port: (server.address() as { port: number }).port, tokens });
  });
});
process.on('disconnect', () => process.exit(0));

import type { IncomingMessage } from 'node:http';
import type { Request } from 'express';
import {
  createPipeline,
  type Identity,
  identityOf,
  memorySink,
  meter,
  requireScope,
  type Scope,
  usageOf,
} from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';

requireScope('reports:read');
requireScope({ any: ['reports:read', 'reports:write'] });
// @ts-expect-error: no such scope
requireScope('reports:raed');
// @ts-expect-error: no such scope
requireScope({ all: ['reports:read'], any: ['reports:raed'] });

// @ts-expect-error: no such scope
export const scope: Scope = 'reports:raed';

export function plan(express: Request, node: IncomingMessage): 'free' | 'pro' | undefined {
  const identity: Identity | undefined = express.identity;
  return identity?.plan ?? node.identity?.plan ?? identityOf(node).plan;
}

export function dimensions(req: IncomingMessage): void {
  usageOf(req).set({ model: 'm-7b' });
  // @ts-expect-error: no such dimension
  usageOf(req).set({ modle: 'm-7b' });
}

const pipeline = createPipeline({ sinks: [memorySink()], spool: 'memory', source: 'types' });
meter({ pipeline, type: 'x', dimensions: () => ({ model: 'm-7b' }) });
// @ts-expect-error: no such dimension
meter({ pipeline, type: 'x', dimensions: () => ({ modle: 'm-7b' }) });

// A subpath sees it too.
asIdentity({ subject: { kind: 'user', id: 'u' }, authId: 'a', plan: 'pro' });
// @ts-expect-error: no such plan
asIdentity({ subject: { kind: 'user', id: 'u' }, authId: 'a', plan: 'gold' });

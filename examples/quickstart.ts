import { randomBytes } from 'node:crypto';
import express from 'express';
import * as toll from 'tollkeeper';

// Who may call: API clients and their keys, in memory here, in SQLite or PostgreSQL in earnest.
const peppers = { current: { id: '2026-11', secret: randomBytes(32) } };
const registry = toll.createTokenRegistry({ store: toll.memoryTokenStore(), peppers, prefix: 'acme' });
const ada = await registry.createClient({ name: 'Ada', tenant: 'ada-inc', plan: 'free' });
export const { token } = await registry.issueToken({ clientId: ada.id, scopes: ['reports:read'] });

// Where usage goes: a ledger, which can be asked for totals.
export const ledger = toll.memoryLedger();
export const pipeline = toll.createPipeline({ sinks: [ledger], spool: 'memory', source: 'quickstart' });

const app = express();
const authenticate = toll.authenticate({ verifiers: [toll.opaqueTokenVerifier({ registry })] });
const read = [toll.requireScope('reports:read'), toll.meter({ pipeline, type: 'report' })];
app.get('/reports', authenticate, ...read, (req, res) => void res.json({ hello: req.identity?.tenant }));
export const server = app.listen(Number(process.env.PORT ?? 3000), '127.0.0.1', () => {
  console.log(`curl -H 'authorization: Bearer ${token}' http://127.0.0.1:${process.env.PORT ?? 3000}/reports`);
});

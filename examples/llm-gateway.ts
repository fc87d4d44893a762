/** A gateway to a model: a budget of tokens per key, held before the call and settled after it, and what each key has spent. */
import { randomBytes } from 'node:crypto';
import express from 'express';
import * as toll from 'tollkeeper';

/** Whatever streams tokens; here it is handed in. */
export type Model = (prompt: string) => AsyncIterable<string>;

export async function llmGateway(model: Model, budget: number) {
  const peppers = { current: { id: '2026-11', secret: randomBytes(32) } };
  const registry = toll.createTokenRegistry({ store: toll.memoryTokenStore(), peppers, prefix: 'llm' });
  const quota = toll.createQuota({
    store: toll.memoryQuotaStore(),
    plans: {
      metered: [
        {
          name: 'tokens',
          per: 'authId',
          unit: 'output_tokens',
          limit: budget,
          window: { kind: 'calendar', unit: 'month' },
        },
        { name: 'parallel', per: 'authId', unit: 'requests', limit: 8, window: { kind: 'concurrent' } },
      ],
    },
    defaultPlan: 'metered',
  });
  const ledger = toll.memoryLedger();
  const pipeline = toll.createPipeline({ sinks: [ledger], spool: 'memory', source: 'llm-gateway' });

  const app = express().use(express.json());
  const authenticated = toll.authenticate({ verifiers: [toll.opaqueTokenVerifier({ registry })] });
  /** The most that the caller lets the model say: held now, settled to what was said. */
  const most = (req: express.Request): number => Math.min(Number(req.body?.max_tokens ?? 256), 4_096);
  app.post(
    '/v1/completions',
    authenticated,
    toll.enforceQuota<express.Request>({ quota, reserve: (req) => ({ output_tokens: most(req) }) }),
    toll.meter<express.Request>({
      pipeline,
      type: 'completion',
      dimensions: (req) => ({ model: String(req.body?.model ?? 'default') }),
    }),
    async (req, res) => {
      const usage = toll.usageOf(req);
      res.type('text/plain');
      let said = 0;
      for await (const token of model(String(req.body?.prompt ?? ''))) {
        // A client that leaves pays for what was made until then.
        if (res.destroyed || said >= most(req)) break;
        said += 1;
        usage.add('output_tokens', 1);
        res.write(token);
      }
      res.end();
    },
  );
  app.get('/v1/budget', authenticated, quota.handler());
  app.get('/v1/spend', authenticated, async (req, res) => {
    const [to, from] = [new Date(Date.now() + 1_000), new Date(Date.now() - 86_400_000)];
    const filter = { authId: toll.identityOf(req).authId };
    await pipeline.flush();
    const { rows } = await ledger.usage({ from, to, groupBy: ['dimensions.model'], filter });
    res.json(
      rows.map(({ key, quantities }) => ({
        model: key['dimensions.model'],
        tokens: Number(quantities.output_tokens ?? 0n),
      })),
    );
  });
  return { app, registry, pipeline };
}

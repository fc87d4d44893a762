// A primary with two workers on one spool: one of them writes an event and dies, the other one adopts it.
import cluster from 'node:cluster';
import { createPipeline, type Sink } from 'tollkeeper';

const [, , directory = ''] = process.argv;

interface Message {
  readonly kind: 'ready' | 'written' | 'delivered';
  readonly types?: readonly string[];
}

if (cluster.isPrimary) {
  let diedAt = 0;
  const workers = [cluster.fork({ ROLE: 'writer' }), cluster.fork({ ROLE: 'peer' })];
  let ready = 0;
  for (const worker of workers) {
    worker.on('message', (message: Message) => {
      if (message.kind === 'ready' && ++ready === workers.length) workers[0]?.send('write');
      if (message.kind === 'written') {
        diedAt = performance.now();
        workers[0]?.process.kill('SIGKILL');
      }
      if (message.kind !== 'delivered') return;
      console.log(`ready ${JSON.stringify({ adoptedAfterMs: performance.now() - diedAt, ids: message.types })}`);
      workers[1]?.process.kill('SIGKILL');
    });
  }
} else {
  const peer = process.env.ROLE === 'peer';
  const sink: Sink = {
    name: 'ledger',
    limits: { lingerSeconds: 0 },
    async write(events) {
      if (!peer) throw new Error('down');
      process.send?.({ kind: 'delivered', types: events.map(({ type }) => type) });
    },
  };
  const pipeline = createPipeline({ sinks: [sink], spool: { directory }, source: 'cluster' });
  await pipeline.ready();
  process.on('message', async () => {
    await pipeline.record({ type: 'job-of-the-dead', authId: 'a', quantities: { n: 1 } });
    process.send?.({ kind: 'written' });
  });
  process.send?.({ kind: 'ready' });
}

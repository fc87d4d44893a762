/** One replica, in a process of its own. */
import { startOpenScore } from './app.js';

const { OPEN_SCORE } = process.env;
const { url, revocations, stop } = await startOpenScore(JSON.parse(OPEN_SCORE as string));
console.log(`ready ${JSON.stringify({ url })}`);
// The platform's own service would do this; here the acceptance run says when.
process.on('message', async ({ revoke }: { revoke: Parameters<typeof revocations.revoke>[0] }) => {
  await revocations.revoke(revoke);
  process.send?.('revoked');
});
process.once('SIGTERM', () => void stop().then(() => process.exit(0)));

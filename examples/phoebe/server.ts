/** The proxy, in a process of its own. */
import { startPhoebe } from './app.js';

const { PHOEBE } = process.env;
const { port, stop } = await startPhoebe(JSON.parse(PHOEBE as string));
console.log(`ready ${JSON.stringify({ port })}`);
process.once('SIGTERM', () => void stop().then(() => process.exit(0)));

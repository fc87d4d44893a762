/** One replica, in a process of its own. */
import { startDos } from './app.js';

const { url, stop } = await startDos(JSON.parse(process.env.DOS as string));
console.log(`ready ${JSON.stringify({ url })}`);
process.once('SIGTERM', () => void stop().then(() => process.exit(0)));

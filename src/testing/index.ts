export { asIdentity } from './as-identity.js';
export { type ManualClock, manualClock } from './manual-clock.js';

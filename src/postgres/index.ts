export { type PostgresLedger, type PostgresLedgerOptions, postgresLedger } from './ledger.js';
export type { PostgresConnection, PostgresNotification, PostgresPool, PostgresResult } from './postgres-pool.js';
export { type PostgresReplayStore, type PostgresReplayStoreOptions, postgresReplayStore } from './replay-store.js';
export {
  type PostgresRevocationStore,
  type PostgresRevocationStoreOptions,
  postgresRevocationStore,
} from './revocation-store.js';
export { type PostgresTokenStore, postgresTokenStore } from './token-store.js';

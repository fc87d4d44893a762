export { type PostgresLedger, type PostgresLedgerOptions, postgresLedger } from './ledger.js';
export {
  type PostgresRevocationStore,
  type PostgresRevocationStoreOptions,
  postgresRevocationStore,
} from './revocation-store.js';

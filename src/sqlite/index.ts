export { type SqliteLedger, type SqliteLedgerOptions, sqliteLedger } from './ledger.js';
export { type SqliteReplayStore, type SqliteReplayStoreOptions, sqliteReplayStore } from './replay-store.js';
export { type SqliteRevocationStore, sqliteRevocationStore } from './revocation-store.js';
export type { SqliteDatabase, SqliteStatement } from './sqlite-database.js';
export { type SqliteTokenStore, sqliteTokenStore } from './token-store.js';

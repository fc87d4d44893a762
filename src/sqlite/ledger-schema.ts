/**
 * The ledger's tables, one step per version. A step that has been released never changes.
 *
 * - `tollkeeper_usage_keys`: what roll-ups are keyed by; an absent value is the empty string.
 * - `tollkeeper_events`: every event as it was written. `key_id` is null while a correction waits for its original.
 * - `tollkeeper_rollups`: sums by quarter of an hour and by UTC day, in two parts so that none can overflow.
 * - `tollkeeper_sources`, `tollkeeper_source_runs`: what is known of each source, and which sequence numbers arrived.
 */
export const LEDGER_STEPS: readonly string[] = [
  `
  CREATE TABLE tollkeeper_usage_keys (
    key_id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    client_id TEXT NOT NULL,
    issuer TEXT NOT NULL,
    auth_id TEXT NOT NULL,
    type TEXT NOT NULL,
    billable INTEGER NOT NULL,
    UNIQUE (tenant, client_id, issuer, auth_id, type, billable)
  );
  CREATE TABLE tollkeeper_events (
    id TEXT NOT NULL,
    source TEXT NOT NULL,
    time_ms INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    key_id INTEGER,
    corrects TEXT,
    request_id TEXT,
    json TEXT NOT NULL,
    UNIQUE (id, source, time_ms)
  );
  CREATE INDEX tollkeeper_events_time ON tollkeeper_events (time_ms, source, seq);
  CREATE INDEX tollkeeper_events_request ON tollkeeper_events (request_id) WHERE request_id IS NOT NULL;
  CREATE INDEX tollkeeper_events_waiting ON tollkeeper_events (corrects) WHERE corrects IS NOT NULL AND key_id IS NULL;
  CREATE TABLE tollkeeper_rollups (
    tier INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    key_id INTEGER NOT NULL,
    quantity TEXT NOT NULL,
    high INTEGER NOT NULL,
    low INTEGER NOT NULL,
    PRIMARY KEY (tier, bucket, key_id, quantity)
  ) WITHOUT ROWID;
  CREATE TABLE tollkeeper_sources (
    source TEXT PRIMARY KEY,
    last INTEGER NOT NULL,
    count INTEGER NOT NULL,
    closed INTEGER NOT NULL,
    through_ms INTEGER
  ) WITHOUT ROWID;
  CREATE TABLE tollkeeper_source_runs (
    source TEXT NOT NULL,
    excused INTEGER NOT NULL,
    from_seq INTEGER NOT NULL,
    to_seq INTEGER NOT NULL,
    PRIMARY KEY (source, excused, from_seq)
  ) WITHOUT ROWID;
  CREATE TABLE tollkeeper_ledger_state (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
  ) WITHOUT ROWID;
  `,
];

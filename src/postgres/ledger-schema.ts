/**
 * The ledger's tables, one step per version. A step that has been released never changes.
 *
 * - `tollkeeper_usage_keys`: what roll-ups are keyed by; an absent value is the empty string. Unique by a digest, because
 *   an index holds no more than 2,700 bytes of a row.
 * - `tollkeeper_events`: every event as it was written, a partition per month. `key_id` is null while a correction waits
 *   for its original. Time is in the unique key because PostgreSQL partitions by it; a retry is byte-identical, so that
 *   the time of an id never differs.
 * - `tollkeeper_rollups`: sums by quarter of an hour (tier 900000) and by UTC day (tier 86400000).
 * - `tollkeeper_sources`: what is known of each source; `arrived` and `excused` are runs of sequence numbers.
 */
export const LEDGER_STEPS: readonly string[] = [
  `
  CREATE TABLE tollkeeper_usage_keys (
    key_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest text NOT NULL UNIQUE,
    tenant text NOT NULL,
    client_id text NOT NULL,
    issuer text NOT NULL,
    auth_id text NOT NULL,
    type text NOT NULL,
    billable boolean NOT NULL
  );
  CREATE TABLE tollkeeper_events (
    id text NOT NULL,
    source text NOT NULL,
    time timestamptz NOT NULL,
    seq bigint NOT NULL,
    key_id bigint,
    corrects text,
    request_id text,
    json text NOT NULL,
    UNIQUE (id, source, time)
  ) PARTITION BY RANGE (time);
  CREATE INDEX tollkeeper_events_time ON tollkeeper_events USING brin (time);
  CREATE INDEX tollkeeper_events_request ON tollkeeper_events (request_id) WHERE request_id IS NOT NULL;
  CREATE INDEX tollkeeper_events_waiting ON tollkeeper_events (corrects) WHERE corrects IS NOT NULL AND key_id IS NULL;
  CREATE TABLE tollkeeper_rollups (
    tier bigint NOT NULL,
    bucket bigint NOT NULL,
    key_id bigint NOT NULL,
    quantity text NOT NULL,
    amount numeric NOT NULL,
    PRIMARY KEY (tier, bucket, key_id, quantity)
  ) WITH (fillfactor = 70);
  CREATE TABLE tollkeeper_sources (
    source text PRIMARY KEY,
    last bigint NOT NULL DEFAULT 0,
    count bigint NOT NULL DEFAULT 0,
    closed boolean NOT NULL DEFAULT false,
    through_ms bigint,
    arrived jsonb NOT NULL DEFAULT '[]',
    excused jsonb NOT NULL DEFAULT '[]'
  ) WITH (fillfactor = 70);
  CREATE TABLE tollkeeper_ledger_state (name text PRIMARY KEY, value bigint NOT NULL);
  `,
];

/** The advisory lock under which partitions are made and dropped: the bytes of `part`. */
export const PARTITION_LOCK = 0x70617274;

/** Milliseconds of the first instant of a UTC month, from any instant in it; `offset` months on. */
export function monthStart(ms: number, offset = 0): number {
  const date = new Date(ms);
  return Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + offset, 1);
}

/** The name of a month's partition. */
export function partitionName(ms: number): string {
  return `tollkeeper_events_${new Date(ms).toISOString().slice(0, 7).replace('-', '_')}`;
}

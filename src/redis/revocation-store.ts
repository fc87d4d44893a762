import { randomUUID } from 'node:crypto';
import { OptionsParser } from '../errors/options-parser.js';
import type { RevocationEntry, RevocationPage, RevocationStore } from '../revocation/revocation-store.js';
import { isRedisClient, type RedisClient, redisCommand, redisScript, redisSubscribe } from './redis-client.js';

export interface RedisRevocationStoreOptions {
  /** Begins the names of keys and of the channel. Default `tollkeeper`. */
  readonly prefix?: string;
}

/** Entries that one read brings. */
const PAGE = 2_000;

/**
 * Keys: the head (`epoch`, `version`, `size`), the entries by key, the versions and the expiries of the keys. A version is
 * the server's time in microseconds, and at least one more than the last: so it grows also where a restart, a failover or
 * a flush has lost the last versions.
 */
const VERSIONED = `
local head, entries, versions, expiries = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local micros = tonumber(time[1]) * 1000000 + tonumber(time[2])
local function size() return redis.call('HLEN', entries) .. '/' .. redis.call('ZCARD', versions) end
-- A memory that was flushed or evicted, in whole or in part, begins a new epoch.
if redis.call('HGET', head, 'size') ~= size() then
  redis.call('HSET', head, 'epoch', ARGV[1], 'size', size())
end
`;

const APPEND = `${VERSIONED}
local key, before, expires_at = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local known = redis.call('HGET', entries, key)
if known then
  local known_before, known_expires_at = string.match(known, '^(%d+) (%d+) ')
  if tonumber(known_expires_at) > tonumber(time[1]) then
    before = math.max(before, tonumber(known_before))
    expires_at = math.max(expires_at, tonumber(known_expires_at))
  end
end
local version = math.max(micros, tonumber(redis.call('HGET', head, 'version') or 0) + 1)
redis.call('HSET', entries, key, string.format('%.0f %.0f %s', before, expires_at, ARGV[5]))
redis.call('ZADD', versions, string.format('%.0f', version), key)
redis.call('ZADD', expiries, string.format('%.0f', expires_at), key)
for _, expired in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', time[1], 'LIMIT', 0, 100)) do
  redis.call('HDEL', entries, expired)
  redis.call('ZREM', versions, expired)
  redis.call('ZREM', expiries, expired)
end
redis.call('HSET', head, 'version', string.format('%.0f', version), 'size', size())
redis.call('PUBLISH', ARGV[6], '')
`;

const READ = `${VERSIONED}
local epoch = redis.call('HGET', head, 'epoch') .. '/' .. string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local continued = ARGV[2] == epoch
local from = continued and ARGV[3] or '0'
local page = redis.call('ZRANGEBYSCORE', versions, '(' .. from, '+inf', 'WITHSCORES', 'LIMIT', 0, tonumber(ARGV[4]))
local keys, entries_read = {}, {}
for index = 1, #page, 2 do
  -- What was evicted of an entry is gone; a later denial of the same target is there again.
  local entry = redis.call('HGET', entries, page[index])
  if entry then
    keys[#keys + 1] = page[index]
    entries_read[#entries_read + 1] = entry
  end
  from = string.format('%.0f', page[index + 1])
end
local more = #page / 2 == tonumber(ARGV[4]) and 1 or 0
return { epoch, continued and 1 or 0, string.format('%.0f', math.floor(micros / 1000)), from, more, keys, entries_read }
`;

/**
 * Shares what is denied through Redis (6.2 or later), standalone or cluster, with an ioredis or node-redis client, which
 * stays the app's. Messages are hints, on a connection of its own; polling is the guarantee.
 *
 * Redis must not evict the keys (`maxmemory-policy noeviction`, or `volatile-…`: they have no time to live). What it loses
 * is noticed: the processes that know of a denial keep it, and whatever was decided before is verified anew.
 *
 * @throws TypeError for what is no client.
 */
export function redisRevocationStore(redis: RedisClient, options: RedisRevocationStoreOptions = {}): RevocationStore {
  const parser = new OptionsParser('redisRevocationStore');
  parser.check(isRedisClient(redis), 'redis must be an ioredis or node-redis client');
  const given = parser.known(options, ['prefix']).prefix;
  const prefix = given === undefined ? 'tollkeeper' : parser.string('prefix', given);
  parser.done();
  // The braces put the keys on one node of a cluster.
  const base = `${prefix}:{revocations}`;
  const keys = ['head', 'entries', 'versions', 'expiries'].map((name) => `${base}:${name}`);
  const command = redisCommand(redis);
  const append = redisScript(command, APPEND);
  const read = redisScript(command, READ);
  return {
    async append({ key, target, before, expiresAt, reason }) {
      const body = JSON.stringify({ target, reason });
      await append(keys, [randomUUID(), key, String(before), String(expiresAt), body, base]);
    },
    async read(cursor) {
      const [epoch = '', version = '0'] = cursor?.split(':') ?? [];
      return pageOf(await read(keys, [randomUUID(), epoch, /^\d+$/.test(version) ? version : '0', String(PAGE)]));
    },
    subscribe: (hint) => redisSubscribe(redis, base, hint),
  };
}

function pageOf(answer: unknown): RevocationPage {
  const [epoch, continued, asOf, version, more, keys, values] = answer as [
    string,
    number,
    string,
    string,
    number,
    string[],
    string[],
  ];
  return {
    entries: keys.map((key, index) => entryOf(key, values[index] as string)),
    cursor: `${epoch}:${version}`,
    more: Number(more) === 1,
    continued: Number(continued) === 1,
    asOf: Number(asOf),
  };
}

function entryOf(key: string, value: string): RevocationEntry {
  const [before, expiresAt] = value.split(' ', 2);
  const body = value.slice(`${before} ${expiresAt} `.length);
  return { key, ...(JSON.parse(body) as { target: string }), before: Number(before), expiresAt: Number(expiresAt) };
}

import { OptionsParser } from '../errors/options-parser.js';
import { type ReplayStore, replayEntry } from '../issuer/replay-store.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { isRedisClient, type RedisClient, redisCommand } from './redis-client.js';

export interface RedisReplayStoreOptions {
  /** Begins the names of keys. Default `tollkeeper`. */
  readonly prefix?: string;
  readonly clock?: Clock;
}

/**
 * Shares the ids of used assertions through Redis (2.6.12 or later), standalone or cluster, with an ioredis or node-redis
 * client, which stays the app's. One command takes an id; it is kept until 60 s after its expiry.
 *
 * Redis must not evict the keys (`maxmemory-policy noeviction`): a key that is evicted, lost in a failover or flushed lets an
 * assertion that has not expired be used once more.
 *
 * @throws TypeError for what is no client.
 */
export function redisReplayStore(redis: RedisClient, options: RedisReplayStoreOptions = {}): ReplayStore {
  const parser = new OptionsParser('redisReplayStore');
  parser.check(isRedisClient(redis), 'redis must be an ioredis or node-redis client');
  const { prefix: given, clock = systemClock } = parser.known(options, ['prefix', 'clock']);
  const prefix = given === undefined ? 'tollkeeper' : parser.string('prefix', given);
  parser.done();
  const command = redisCommand(redis);
  return {
    async take(id, expiresAt) {
      const { name, keepSeconds } = replayEntry(id, expiresAt, clock);
      const key = `${prefix}:replay:${name}`;
      return String(await command(['SET', key, '1', 'EX', String(keepSeconds), 'NX'], key)) === 'OK';
    },
  };
}

export { type RedisQuotaStoreOptions, redisQuotaStore } from './quota-store.js';
export type { IoredisClient, NodeRedisClient, NodeRedisCluster, RedisClient } from './redis-client.js';
export { type RedisReplayStoreOptions, redisReplayStore } from './replay-store.js';
export { type RedisRevocationStoreOptions, redisRevocationStore } from './revocation-store.js';

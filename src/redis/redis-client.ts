import { createHash } from 'node:crypto';

/** What is used of an ioredis client, standalone or cluster. */
export interface IoredisClient {
  call(command: string, ...args: (string | Buffer)[]): Promise<unknown>;
  duplicate(): unknown;
}

/** What is used of a node-redis client (package `redis`). */
export interface NodeRedisClient {
  sendCommand(args: (string | Buffer)[]): Promise<unknown>;
  duplicate(): unknown;
}

/** What is used of a node-redis cluster. */
export interface NodeRedisCluster {
  sendCommand(firstKey: string, isReadonly: boolean, args: (string | Buffer)[]): Promise<unknown>;
  readonly masters: unknown;
  duplicate(): unknown;
}

/** The app's own client: it is never closed here. */
export type RedisClient = IoredisClient | NodeRedisClient | NodeRedisCluster;

/**
 * Sends one command. `key` decides about the node of a cluster; ioredis finds it by itself.
 *
 * @throws what the client throws; the driver's error may hold the command's arguments.
 */
export type RedisCommand = (args: (string | Buffer)[], key?: string) => Promise<unknown>;

/** Whether a value is a client that `redisCommand` can use. */
export function isRedisClient(value: unknown): value is RedisClient {
  const client = value as Partial<IoredisClient & NodeRedisClient> | null | undefined;
  return typeof client?.call === 'function' || typeof client?.sendCommand === 'function';
}

/** One way to send a command, whichever client it is. */
export function redisCommand(client: RedisClient): RedisCommand {
  if ('call' in client) return (args) => client.call(...(args as [string]));
  if ('masters' in client) return async (args, key = '') => client.sendCommand(key, false, args);
  return async (args) => client.sendCommand(args);
}

/**
 * A Lua script that is sent once and then named by its hash. The keys of a call must live on one node of a cluster.
 *
 * @returns a function that runs it: atomic in Redis.
 */
export function redisScript(command: RedisCommand, source: string) {
  const sha = createHash('sha1').update(source).digest('hex');
  return (keys: readonly string[], args: readonly string[]): Promise<unknown> => {
    const rest = [String(keys.length), ...keys, ...args];
    return command(['EVALSHA', sha, ...rest], keys[0]).catch((error: unknown) => {
      // A restarted Redis has forgotten its scripts.
      if (!(error instanceof Error && error.message.startsWith('NOSCRIPT'))) throw error;
      return command(['EVAL', source, ...rest], keys[0]);
    });
  };
}

/** What is used of the connection that listens: the common part of both clients, and what each has of its own. */
interface Listening {
  on(event: string, listener: (...args: unknown[]) => void): unknown;
  subscribe?(channel: string, listener?: () => void): Promise<unknown>;
  connect?(): Promise<unknown>;
  /** ioredis. */
  disconnect?(): unknown;
  /** node-redis. */
  destroy?(): unknown;
}

/**
 * Calls `listener` for every message on the channel, and whenever the connection is there again, since messages may have
 * been lost meanwhile. On a connection of its own, a duplicate of the client, which reconnects as the client's settings
 * say; failures are swallowed: messages are hints.
 *
 * @returns a function that ends the connection.
 */
export function redisSubscribe(client: RedisClient, channel: string, listener: () => void): () => Promise<void> {
  const connection = client.duplicate() as Listening;
  let closed = false;
  const hint = (): void => {
    if (!closed) listener();
  };
  const ignore = (): void => {};
  connection.on('error', ignore);
  if ('call' in client) {
    // Subscribes again with every connection: one that failed is not among those that ioredis restores.
    const subscribe = (): void => {
      connection.subscribe?.(channel).then(hint, ignore);
    };
    connection.on('message', hint);
    connection.on('ready', subscribe);
    // A client with `lazyConnect` has a duplicate that waits to be told; any other refuses to be told twice.
    connection.connect?.().catch(ignore);
  } else {
    connection.on('ready', hint);
    const start = async (): Promise<void> => {
      await connection.connect?.();
      if (closed) return;
      await connection.subscribe?.(channel, hint);
      hint();
    };
    start().catch(ignore);
  }
  return async () => {
    if (closed) return;
    closed = true;
    try {
      if ('call' in client) connection.disconnect?.();
      else connection.destroy?.();
    } catch {
      // It was never connected, or is closed already.
    }
  };
}

import { OptionsParser } from '../errors/options-parser.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import type { ReplayStore } from './replay-store.js';

export interface MemoryReplayStoreOptions {
  /** Ids that are held at most. Default 100000. Beyond, nothing more is taken until some have expired: forgetting one early would let it be replayed. */
  readonly maxEntries?: number;
  readonly clock?: Clock;
}

/** A replay store for one process. Two processes behind one address need a shared one. */
export function memoryReplayStore(given: MemoryReplayStoreOptions = {}): ReplayStore {
  const parser = new OptionsParser('memoryReplayStore');
  const options = parser.known(given, ['maxEntries', 'clock']);
  const maxEntries = parser.number('maxEntries', options.maxEntries, 100_000, { min: 1, integer: true });
  parser.done();
  const { clock = systemClock } = options;
  const held = new Map<string, number>();
  let sweepAt = 0;

  return {
    take(id, expiresAt) {
      const now = clock.now() / 1_000;
      if ((held.get(id) ?? 0) > now) return false;
      if (held.size >= maxEntries && now >= sweepAt) {
        for (const [other, end] of held) if (end <= now) held.delete(other);
        // A full store that nothing has left is looked through once a second, not for every assertion.
        if (held.size >= maxEntries) sweepAt = now + 1;
      }
      if (held.size >= maxEntries) throw new Error('the replay store is full');
      held.set(id, expiresAt);
      return true;
    },
  };
}

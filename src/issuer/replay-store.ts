import { createHash } from 'node:crypto';
import type { Clock } from '../runtime/clock.js';
import { withDeadline } from '../runtime/deadline.js';

/** Remembers the ids of assertions, so that each is taken once. One process: in memory; several: a shared store. */
export interface ReplayStore {
  /**
   * Takes an id, atomically: of several processes that take it at once, one is told `true`.
   *
   * @param id any text; it may be stored as a hash.
   * @param expiresAt epoch seconds from which the id may be forgotten, because what carries it is refused anyway.
   * @param signal aborts when the answer is not waited for any longer.
   * @returns false when the id was taken before. A rejection is an outage: the assertion is then not accepted.
   */
  take(id: string, expiresAt: number, signal?: AbortSignal): boolean | Promise<boolean>;
}

const TAKE_MS = 5_000;

/** Whether this is the first time. Only `true` counts. @throws what the store throws, or after five seconds. */
export async function takeOnce(store: ReplayStore, id: string, expiresAt: number): Promise<boolean> {
  return (await withDeadline(TAKE_MS, async (signal) => store.take(id, expiresAt, signal))) === true;
}

/** Seconds that shared stores keep an id beyond its expiry: so much may the clocks of processes differ. */
const CLOCKS_DIFFER_SECONDS = 60;

/** What a shared store keeps of an id: a name of fixed length, and for how many seconds, whatever its own clock says. */
export function replayEntry(id: string, expiresAt: number, clock: Clock): { name: string; keepSeconds: number } {
  const keepSeconds = Math.ceil(Math.max(0, expiresAt - clock.now() / 1_000)) + CLOCKS_DIFFER_SECONDS;
  return { name: createHash('sha256').update(id).digest('base64url'), keepSeconds };
}

import { randomBytes } from 'node:crypto';

/** Where randomness comes from: a function that returns `size` bytes. */
export type Random = (size: number) => Uint8Array;

/** The operating system's generator. */
export const systemRandom: Random = (size) => randomBytes(size);

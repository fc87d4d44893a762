/** `FULL_SIZE=true npm test` runs the long tests at the size that the project promises; CI does so for the largest of them. */
const FULL_SIZE = process.env.FULL_SIZE === 'true';

/** How much of something a test does: usually, and at full size. */
export function sized(usual: number, full: number): number {
  return FULL_SIZE ? full : usual;
}

/** Remembers the ids of assertions, so that each is taken once. One process: in memory; several: a shared store. */
export interface ReplayStore {
  /**
   * Takes an id, atomically. The id is of the form `issuer jti`, and may be hashed.
   *
   * @param expiresAt epoch seconds from which the id may be forgotten, because what carries it is refused anyway.
   * @returns false when the id was taken before. A rejection is an outage: the assertion is then not accepted.
   */
  take(id: string, expiresAt: number): boolean | Promise<boolean>;
}

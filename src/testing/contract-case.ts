/**
 * One promise of a contract, as a case that any test runner can run: `it(name, run)`.
 *
 * A contract suite is a function that takes a factory of fresh implementations and returns its cases.
 */
export interface ContractCase {
  /** A sentence: what the implementation does. */
  readonly name: string;
  /** Resolves when the promise is kept; rejects with an `AssertionError` of `node:assert` when it is not. */
  run(): Promise<void>;
}

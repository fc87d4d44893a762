/** One acceptance run: each check is a line with its verdict, and any FAIL makes the process end with 1. */
export interface Acceptance {
  /**
   * @param requirements numbers of the requirements that the check covers, e.g. `S0.4, S0.13`.
   * @param body resolves when the behaviour is there, and throws when it is not.
   */
  check(requirements: string, title: string, body: () => Promise<void>): Promise<void>;
  /** Prints the sum and sets the exit code. */
  finish(): Promise<void>;
}

export function acceptance(name: string): Acceptance {
  let passed = 0;
  let failed = 0;
  return {
    async check(requirements, title, body) {
      try {
        await body();
        passed += 1;
        console.log(`PASS ${requirements}: ${title}`);
      } catch (error) {
        failed += 1;
        console.log(`FAIL ${requirements}: ${title}`);
        console.log(`     ${String((error as Error | undefined)?.message ?? error).replaceAll('\n', '\n     ')}`);
      }
    },
    async finish() {
      console.log(`${name}: ${passed} passed, ${failed} failed`);
      if (failed > 0) process.exitCode = 1;
    },
  };
}

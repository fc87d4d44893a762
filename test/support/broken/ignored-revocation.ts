/** The library with a fault: whatever is revoked counts as live. */
import * as real from '../../../src/index.js';

export * from '../../../src/index.js';

export function authenticate(options: real.AuthenticateOptions): real.Middleware {
  return real.authenticate({
    ...options,
    revocations: undefined,
    verifiers: options.verifiers.map((verifier) => ({
      name: verifier.name,
      issuers: verifier.issuers,
      catchAll: verifier.catchAll,
      dependsOnRequest: verifier.dependsOnRequest,
      accepts: (presented) => verifier.accepts(presented),
      verify: (presented, signal) => verifier.verify(presented, signal),
    })),
  });
}

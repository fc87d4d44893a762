import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Identity, IdentityInput } from 'tollkeeper';
import { asIdentity } from 'tollkeeper/testing';

/** An identity with what the test says about it, made as the package makes it. */
export function identity(facts: Partial<IdentityInput> = {}): Identity {
  const req = {} as IncomingMessage;
  asIdentity({ subject: { kind: 'user', id: 'u0' }, authId: 'a0', ...facts })(req, {} as ServerResponse, () => {});
  return req.identity as Identity;
}

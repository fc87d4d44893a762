/** What must not compile: each expectation guards a type of the public API. Compiled by `test/types.test.ts`, never run. */
import type { IncomingMessage } from 'node:http';
import {
  AccessError,
  authenticate,
  type Identity,
  identitiesOf,
  identityOf,
  requireNetwork,
  requireResource,
  requireScope,
  requireSubject,
  requireTenant,
  usageOf,
  type Verifier,
} from 'tollkeeper';

declare const req: IncomingMessage;
declare const verifier: Verifier;
declare const identity: Identity;

authenticate({ verifiers: [verifier], optional: true, errors: 'next' });
// @ts-expect-error: verifiers are required
authenticate({});
// @ts-expect-error: unknown option
authenticate({ verifiers: [verifier], realmm: 'x' });
// @ts-expect-error: 'respond' or 'next'
authenticate({ verifiers: [verifier], errors: 'throw' });
// @ts-expect-error: a boolean
authenticate({ verifiers: [verifier], optional: 'yes' });
// @ts-expect-error: synchronous
authenticate({ verifiers: [verifier], extractToken: async () => 'token' });
// @ts-expect-error: unknown option of the cache
authenticate({ verifiers: [verifier], cache: { maxEntires: 1 } });
// @ts-expect-error: true is no cache setting, only false is
authenticate({ verifiers: [verifier], cache: true });

// @ts-expect-error: not a string
requireScope(7);
// @ts-expect-error: unknown rule
requireScope({ some: ['a:read'] });
requireSubject('user', 'organization');
// @ts-expect-error: no such kind
requireSubject('admin');
// @ts-expect-error: a tenant's id is decided synchronously
requireTenant(async () => 'tenant');
// @ts-expect-error: a promise never permits
requireTenant(() => 'tenant', { crossTenant: async () => true });
// @ts-expect-error: a type and an id
requireResource(() => ({ id: 'r' }));
// @ts-expect-error: 'refuse' or 'allow'
requireResource(() => ({ type: 'model', id: 'r' }), { unconstrained: 'maybe' });
// @ts-expect-error: allow is required
requireNetwork({});
// @ts-expect-error: a list
requireNetwork({ allow: '10.0.0.0/8' });

// @ts-expect-error: may be absent
req.identity.authId;
identityOf(req).authId;
// @ts-expect-error: may be absent
identitiesOf(req, 'workload').authId;

// @ts-expect-error: immutable
identity.authId = 'other';
// @ts-expect-error: immutable
identity.subject.id = 'other';
// @ts-expect-error: immutable
identity.scopes.add('a:read');
// @ts-expect-error: immutable
identity.groups.push('admins');
// @ts-expect-error: immutable
identity.claims.sub = 'other';

usageOf(req).add('output_tokens', 512, { basis: 'reported' });
// @ts-expect-error: a number
usageOf(req).add('output_tokens', '512');
// @ts-expect-error: no such basis
usageOf(req).add('output_tokens', 512, { basis: 'guessed' });

new AccessError('invalid_token', { reason: 'expired' });
// @ts-expect-error: no such code
new AccessError('bad_token');
// @ts-expect-error: unknown option
new AccessError('invalid_token', { detail: 'free text' });

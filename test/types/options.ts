/** What must not compile: each expectation guards a type of the public API. Compiled by `test/types.test.ts`, never run. */
import type { webcrypto } from 'node:crypto';
import { createPublicKey } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { createLocalJWKSet, type JWK } from 'jose';
import {
  AccessError,
  authenticate,
  createKeyRing,
  createRevocations,
  edgeVerifier,
  type Identity,
  identitiesOf,
  identityOf,
  jwtVerifier,
  type KeyRing,
  memoryLedger,
  memoryRevocationStore,
  type JWK as OurJWK,
  requireNetwork,
  requireResource,
  requireScope,
  requireSubject,
  requireTenant,
  stripEdgeHeaders,
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

const issuer = 'https://issuer.example';
const audience = 'https://api.example';
const keys = { jwksUri: 'https://issuer.example/jwks' };
jwtVerifier({ issuer, audience, algorithms: ['ES256'], keys });
jwtVerifier({ issuer, audience: null, algorithms: ['ES256'], keys });
jwtVerifier({ issuers: [{ issuer, audience, algorithms: ['ES256'], keys }] });
// @ts-expect-error: the audience is required; only null waives it
jwtVerifier({ issuer, algorithms: ['ES256'], keys });
// @ts-expect-error: undefined waives nothing
jwtVerifier({ issuer, audience: undefined, algorithms: ['ES256'], keys });
// @ts-expect-error: the issuer is required
jwtVerifier({ audience, algorithms: ['ES256'], keys });
// @ts-expect-error: the algorithms are required
jwtVerifier({ issuer, audience, keys });
// @ts-expect-error: never without a signature
jwtVerifier({ issuer, audience, algorithms: ['none'], keys });
// @ts-expect-error: the key source is required
jwtVerifier({ issuer, audience, algorithms: ['ES256'] });
// @ts-expect-error: one key source, not two
jwtVerifier({ issuer, audience, algorithms: ['ES256'], keys: { jwksUri: 'https://a.example', discover: true } });
// @ts-expect-error: not a key source
jwtVerifier({ issuer, audience, algorithms: ['ES256'], keys: {} });
// @ts-expect-error: an inline set is not fetched, so it has no cooldown
jwtVerifier({ issuer, audience, algorithms: ['ES256'], keys: { jwks: { keys: [] }, cooldownSeconds: 30 } });
// @ts-expect-error: unknown option
jwtVerifier({ issuer, audience, algorithms: ['ES256'], keys, clockTolerance: 5 });
// @ts-expect-error: one issuer or several, not both
jwtVerifier({ issuer, audience, algorithms: ['ES256'], keys, issuers: [] });
// @ts-expect-error: each of several issuers needs its audience
jwtVerifier({ issuers: [{ issuer, algorithms: ['ES256'], keys }] });

edgeVerifier({ prefix: 'x-edge-', trust: { peers: ['10.0.0.0/8'] }, map: { authId: 'x-edge-auth-id' } });
// @ts-expect-error: whom to trust is required
edgeVerifier({ prefix: 'x-edge-', map: { authId: 'x-edge-auth-id' } });
// @ts-expect-error: nothing is attributed without an authId
edgeVerifier({ prefix: 'x-edge-', trust: { peers: ['10.0.0.0/8'] }, map: { tenant: 'x-edge-tenant' } });
// @ts-expect-error: no such field
edgeVerifier({ prefix: 'x-edge-', trust: { peers: [] }, map: { authId: 'x-edge-auth-id', user: 'x-edge-user' } });
// @ts-expect-error: whom to trust is required
stripEdgeHeaders({ prefix: 'x-edge-' });

const revocations = createRevocations({ store: memoryRevocationStore() });
// @ts-expect-error: the store is required
createRevocations({});
// @ts-expect-error: what to revoke is stated
revocations.revoke({});
// @ts-expect-error: a subject is unique within its issuer
revocations.revoke({ subject: 'u-1' });
// @ts-expect-error: the unit is in the name
revocations.revoke({ tokenId: 't-1' }, { expires: 1 });

createKeyRing({ algorithm: 'ES256' });
// @ts-expect-error: not a signing algorithm for others to verify
createKeyRing({ algorithm: 'HS256' });

const period = { from: new Date(0), to: new Date(1) };
memoryLedger().usage({ ...period, groupBy: ['tenant'] });
// @ts-expect-error: no such key
memoryLedger().usage({ ...period, groupBy: ['customer'] });
// @ts-expect-error: the period has an end
memoryLedger().usage({ from: new Date(0), groupBy: ['tenant'] });

// A JWK of ours is one of jose, Web Crypto and node:crypto, and theirs are ours.
declare const ring: KeyRing;
declare const theirs: JWK;
declare const exported: webcrypto.JsonWebKey;
createLocalJWKSet(ring.jwks());
for (const key of ring.jwks().keys) createPublicKey({ key, format: 'jwk' });
export const ours: OurJWK[] = [theirs, exported];
// @ts-expect-error: a member of another type
export const wrong: OurJWK = { kty: 5 };

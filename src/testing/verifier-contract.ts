import assert from 'node:assert/strict';
import type { Presented, Verified, Verifier } from '../authenticate/verifier.js';
import { isAccessError } from '../errors/access-error.js';
import type { Identity } from '../identity/ambient.cjs';
import { createIdentity, type IdentityInput } from '../identity/create-identity.js';
import type { ContractCase } from './contract-case.js';

/** A verifier with credentials to try it on. */
export interface VerifierUnderTest {
  readonly verifier: Verifier;
  /** Good at this moment, twice if asked twice. */
  readonly accepted: Presented;
  /** The verifier's own kind, and bad: expired, forged, unknown. At least one. */
  readonly refused: readonly Presented[];
  /** Another verifier's kind. None for a `catchAll`. */
  readonly foreign: readonly Presented[];
  end?(): Promise<void>;
}

const CLIENT_FAULTS: readonly string[] = ['invalid_token', 'invalid_request'];

/** What every verifier must do, as runner-neutral cases. */
export function verifierContract(make: () => Promise<VerifierUnderTest>): ContractCase[] {
  const test = (name: string, body: (given: VerifierUnderTest) => Promise<void> | void): ContractCase => ({
    name,
    async run() {
      const given = await make();
      try {
        await given.verifier.ready?.();
        await body(given);
      } finally {
        await given.verifier.close?.();
        await given.end?.();
      }
    },
  });

  return [
    test('has a name', ({ verifier }) => {
      assert.ok(typeof verifier.name === 'string' && verifier.name !== '', 'name must be a string that is not empty');
    }),
    test('accepts its own kind of credential, good or bad, and answers at once', ({ verifier, accepted, refused }) => {
      for (const presented of [accepted, ...refused]) assert.equal(verifier.accepts(presented), true);
      assert.ok(refused.length > 0, 'the contract needs a credential that is refused');
    }),
    test('leaves other kinds of credentials alone', ({ verifier, foreign }) => {
      for (const presented of foreign) assert.equal(verifier.accepts(presented), false);
      assert.ok(foreign.length > 0 || verifier.catchAll === true, 'only a catchAll takes every credential');
    }),
    test('makes an identity of a good credential, the same one every time', async ({ verifier, accepted }) => {
      const [first, second] = [await identityOf(verifier, accepted), await identityOf(verifier, accepted)];
      assert.deepEqual(second.subject, first.subject);
      assert.equal(second.authId, first.authId);
      assert.equal(second.issuer, first.issuer);
      assert.equal(first.verifier, verifier.name);
    }),
    test('states no expiry that has passed, and no time to cache that means nothing', async ({
      verifier,
      accepted,
    }) => {
      const verified = await verify(verifier, accepted);
      const { cacheSeconds } = verified as { cacheSeconds?: unknown };
      if (cacheSeconds !== undefined) assert.ok(typeof cacheSeconds === 'number' && cacheSeconds >= 0);
      const { expiresAt } = completed(verifier, verified);
      if (expiresAt !== undefined) assert.ok(expiresAt > 1e9 && expiresAt < 1e11, 'expiresAt is in seconds');
    }),
    test('finds a good credential good for the request that showed it', async ({ verifier, accepted }) => {
      const { checkRequest } = (await verify(verifier, accepted)) as { checkRequest?: unknown };
      if (typeof checkRequest === 'function') await checkRequest(accepted);
    }),
    test('refuses a bad credential with an AccessError that says nothing of it', async ({ verifier, refused }) => {
      for (const presented of refused) {
        const error = await failure(verifier, presented);
        assert.ok(isAccessError(error), 'a bad credential is refused with an AccessError; anything else is a 503');
        assert.ok(CLIENT_FAULTS.includes(error.code), `a bad credential is no ${error.code}`);
        assertSilent(error, presented);
      }
    }),
    test('never makes an identity of a good credential that was changed', async ({ verifier, accepted }) => {
      const { token } = accepted;
      if (token === undefined || verifier.catchAll === true) return;
      const middle = Math.floor(token.length / 2);
      const changes = [
        token.slice(0, -1),
        token.slice(1),
        `${token}x`,
        token.slice(0, middle) + token.slice(middle + 1),
        token.slice(0, middle) + (token[middle] === 'A' ? 'B' : 'A') + token.slice(middle + 1),
        token.toUpperCase() === token ? token.toLowerCase() : token.toUpperCase(),
      ];
      for (const changed of changes) {
        const presented = { ...accepted, token: changed };
        if (!verifier.accepts(presented)) continue;
        const error = await failure(verifier, presented);
        assert.ok(isAccessError(error), 'a malformed credential is refused with an AccessError');
        assertSilent(error, presented);
      }
    }),
    test('works for several requests at the same time', async ({ verifier, accepted, refused }) => {
      const [bad] = refused as [Presented];
      const outcomes = await Promise.allSettled(
        [accepted, bad, accepted, bad].map((presented) => identityOf(verifier, presented)),
      );
      assert.deepEqual(
        outcomes.map(({ status }) => status),
        ['fulfilled', 'rejected', 'fulfilled', 'rejected'],
      );
    }),
    test('gets ready and closes as often as it is told', async ({ verifier }) => {
      await verifier.ready?.();
      await verifier.close?.();
      await verifier.close?.();
    }),
  ];
}

async function verify(verifier: Verifier, presented: Presented): Promise<Verified> {
  assert.equal(verifier.accepts(presented), true);
  return verifier.verify(presented, new AbortController().signal);
}

async function identityOf(verifier: Verifier, presented: Presented): Promise<Identity> {
  return completed(verifier, await verify(verifier, presented));
}

/** The identity as `authenticate` would complete it. */
function completed(verifier: Verifier, verified: Verified): Identity {
  const stated = 'identity' in verified || 'attribution' in verified ? verified.identity : verified;
  assert.ok(stated !== undefined, 'a good credential has an identity');
  return createIdentity(stated as IdentityInput, verifier.name);
}

async function failure(verifier: Verifier, presented: Presented): Promise<unknown> {
  let verified: Verified;
  try {
    verified = await verifier.verify(presented, new AbortController().signal);
  } catch (error) {
    return error;
  }
  return assert.fail(`a bad credential became ${verified === undefined ? 'nothing' : 'an identity'}`);
}

/** Nothing out of a credential stands in what is thrown: neither the whole nor a part that could be looked for. */
function assertSilent(error: Error, { token }: Presented): void {
  if (token === undefined || token.length < 12) return;
  const { reason, cause } = error as { reason?: unknown; cause?: unknown };
  const told = [error.message, String(reason), cause instanceof Error ? `${cause.message}` : JSON.stringify(cause)];
  for (let start = 0; start + 12 <= token.length; start += 6) {
    const part = token.slice(start, start + 12);
    assert.ok(!told.some((text) => text?.includes(part)), 'the error holds a part of the credential');
  }
}

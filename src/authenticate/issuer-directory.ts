import { isDeepStrictEqual } from 'node:util';
import { LRUCache } from 'lru-cache';
import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Lifecycle } from '../runtime/lifecycle.js';
import type { DirectoryContext } from './directory-context.js';
import { ISSUER_OPTIONS, type JwtIssuerOptions, type ParsedIssuer, parseIssuer } from './jwt-issuer.js';
import { TrustedIssuer } from './trusted-issuer.js';

/** An issuer that is trusted, and how its claims become an identity. */
export interface ListedIssuer extends Pick<ParsedIssuer, 'mapClaims' | 'identify'> {
  readonly trusted: TrustedIssuer;
}

/** The issuers whose tokens are taken, by `iss`. */
export interface IssuerDirectory extends Lifecycle {
  /** @throws AccessError `verifier_unavailable` when it cannot be told whether the issuer is trusted. */
  find(issuer: string): ListedIssuer | undefined;
}

/** Answers who is trusted and how, per `iss`; undefined for an issuer that is not. Synchronous. */
export type IssuerResolver = (issuer: string) => JwtIssuerOptions | undefined;

/** Issuers that a function may bring in at most, the least recently used going first. */
const MAX_RESOLVED = 1_000;

/** Makes one issuer ready to verify. Nothing is fetched yet. */
export function trustIssuer(
  { rules, createKeys, keys }: Pick<ParsedIssuer, 'rules' | 'createKeys' | 'keys'>,
  { clock, fetch, onWithdrawn, onOutage }: DirectoryContext,
): TrustedIssuer {
  const hooks = { onWithdrawn, onOutage: (reason: string) => onOutage(rules.issuer, reason) };
  return new TrustedIssuer(rules, keys ?? createKeys({ clock, fetch, hooks }), clock);
}

/** Has the keys of every issuer. @throws AccessError `verifier_unavailable` that names all of those that have none. */
export async function loadKeys(issuers: Iterable<TrustedIssuer>, signal?: AbortSignal): Promise<void> {
  const failed: string[] = [];
  const load = async ({ keys, rules }: TrustedIssuer): Promise<void> => {
    try {
      await keys.ready(signal);
    } catch (error) {
      const { reason } = error as { reason?: unknown };
      failed.push(typeof reason === 'string' ? `${rules.issuer}: ${reason}` : rules.issuer);
    }
  };
  await Promise.all([...issuers].map(load));
  if (failed.length > 0) throw unavailable(`no keys of ${failed.sort().join('; ')}`);
}

/** Issuers that were listed at construction. */
export function fixedDirectory(parsed: readonly ParsedIssuer[], context: DirectoryContext): IssuerDirectory {
  const issuers = new Map(parsed.map((issuer) => [issuer.rules.issuer, listIssuer(issuer, context)]));
  const trusted = [...issuers.values()].map((issuer) => issuer.trusted);
  return {
    find: (issuer) => issuers.get(issuer),
    ready: (signal) => loadKeys(trusted, signal),
    async close(signal) {
      await Promise.all(trusted.map(({ keys }) => keys.close(signal)));
    },
  };
}

function listIssuer(parsed: ParsedIssuer, context: DirectoryContext): ListedIssuer {
  return { trusted: trustIssuer(parsed, context), mapClaims: parsed.mapClaims, identify: parsed.identify };
}

/** Issuers that a function answers for. A configuration that stays the same keeps its keys. */
export function resolvedDirectory(
  resolve: IssuerResolver,
  withDefaults: (options: JwtIssuerOptions) => JwtIssuerOptions,
  context: DirectoryContext,
): IssuerDirectory {
  const known = new LRUCache<string, { readonly given: JwtIssuerOptions; readonly listed: ListedIssuer }>({
    max: MAX_RESOLVED,
    noDisposeOnSet: true,
    dispose: ({ listed }) => void listed.trusted.keys.close(),
  });

  function ask(issuer: string): JwtIssuerOptions | undefined {
    try {
      return resolve(issuer) ?? undefined;
    } catch {
      throw unavailable('the issuers function threw');
    }
  }

  return {
    find(issuer) {
      const given = ask(issuer);
      const former = known.get(issuer);
      if (given === undefined) {
        known.delete(issuer);
        return undefined;
      }
      if (former !== undefined && isSame(former.given, given)) return former.listed;
      const parser = new OptionsParser('issuers');
      const options = withDefaults(parser.known(given, ISSUER_OPTIONS));
      const parsed = parseIssuer(parser, '', options);
      parser.check(parsed.rules.issuer === issuer, 'issuer is another than the one that was asked for');
      try {
        parser.done();
      } catch (error) {
        // Names of options and rules, no values.
        throw unavailable(`the issuers function returned a bad configuration: ${(error as Error).message}`);
      }
      const formerKeys = former?.listed.trusted.keys;
      const keys = former !== undefined && hasSameKeys(former.given, given) ? formerKeys : undefined;
      if (keys === undefined) void formerKeys?.close();
      const listed = listIssuer(keys === undefined ? parsed : { ...parsed, keys }, context);
      known.set(issuer, { given, listed });
      return listed;
    },
    async ready() {},
    async close(signal) {
      await Promise.all([...known.values()].map(({ listed }) => listed.trusted.keys.close(signal)));
    },
  };
}

function isSame(former: JwtIssuerOptions, given: JwtIssuerOptions): boolean {
  return former === given || (hasSameKeys(former, given) && isDeepStrictEqual(former, given));
}

function hasSameKeys(former: JwtIssuerOptions, given: JwtIssuerOptions): boolean {
  // Two key rings may look alike and be different ones.
  if (former.keys?.keyRing !== given.keys?.keyRing) return false;
  return isDeepStrictEqual(former.keys, given.keys) && isDeepStrictEqual(former.algorithms, given.algorithms);
}

function unavailable(reason: string): AccessError {
  return new AccessError('verifier_unavailable', { reason });
}

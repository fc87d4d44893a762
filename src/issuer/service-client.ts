import type { OptionsParser } from '../errors/options-parser.js';
import type { Resource, Scope } from '../identity/ambient.cjs';
import { isScopeToken, isWildcardScope } from '../identity/create-identity.js';
import type { JwtAlgorithm } from '../keys/jwt-algorithm.js';
import type { JwkSet } from '../keys/key-options.js';
import { type KeySet, readKeySet } from '../keys/key-set.js';
import { parseSecretHash, type SecretHash } from './client-secret.js';

/** A client that may ask for tokens. Nobody else becomes a service. */
export interface ServiceClientOptions {
  /** `client_id`: 1 to 200 visible ASCII characters without `:`. It is also the `sub` of the client's own tokens. */
  readonly id: string;
  /** For people. */
  readonly name?: string;
  /** One hash of `hashClientSecret`, or two while a secret is being replaced. */
  readonly secretHashes?: readonly string[];
  /** Public keys for `private_key_jwt` (RFC 7523). */
  readonly jwks?: JwkSet;
  /** Every scope that it may be granted. None listed, none granted. */
  readonly scopes: readonly Scope[];
  /** The only tenant that it acts for. */
  readonly tenant?: string;
  /** In place of `tenant`: it acts for any tenant, and for none in particular. */
  readonly crossTenant?: true;
  /** The only resources that its tokens may be for. A token that names none of them carries all of them. */
  readonly resources?: readonly Resource[];
  /** In place of `resources`: its tokens may come without any constraint. Without either, every request must name a resource. */
  readonly unconstrainedResources?: true;
  /** Seconds that its tokens live unless it asks for less, at most `maxTtlSeconds`. Default: the issuer's. */
  readonly ttlSeconds?: number;
  /**
   * Whose tokens it may introspect: `own`, those of its `tenant`, or `all`. Default `all` with `crossTenant`, else `own`. A
   * token of the registry counts as its own when it has the same tenant.
   */
  readonly introspects?: 'own' | 'tenant' | 'all';
}

/** An acting party, as `act` states it (RFC 8693 §4.1). */
export interface Actor {
  readonly iss: string;
  readonly sub: string;
  readonly kind: 'workload';
}

/** Within what tokens may be issued: a client's configuration, or a policy's grant. */
export interface Grantor {
  readonly clientId: string;
  readonly scopes: readonly string[];
  /** Absent with a client that acts for any tenant. */
  readonly tenant?: string;
  readonly resources?: readonly Resource[];
  /** Whether a token may come without a constraint. */
  readonly unconstrained: boolean;
  readonly defaultTtlSeconds: number;
  readonly maxTtlSeconds: number;
  /** Who acts for the client, where that is not the client itself. */
  readonly actor?: Actor;
}

/** A configured client, parsed. */
export interface ServiceClient extends Grantor {
  readonly secrets: readonly SecretHash[];
  readonly keys: KeySet | undefined;
  readonly introspects: 'own' | 'tenant' | 'all';
}

/** What client assertions may be signed with. */
export const ASSERTION_ALGORITHMS: readonly JwtAlgorithm[] = [
  'ES256',
  'ES384',
  'ES512',
  'Ed25519',
  'PS256',
  'PS384',
  'PS512',
  'RS256',
  'RS384',
  'RS512',
];

const OPTIONS: readonly (keyof ServiceClientOptions)[] = [
  'id',
  'name',
  'secretHashes',
  'jwks',
  'scopes',
  'tenant',
  'crossTenant',
  'resources',
  'unconstrainedResources',
  'ttlSeconds',
  'introspects',
];
/** RFC 7617 §2: a user-id holds no colon. */
const CLIENT_ID = /^[\x21-\x39\x3B-\x7E]{1,200}$/;

/** Bounds of every client. */
export interface ClientDefaults {
  readonly reservedClientIds: readonly string[];
  readonly defaultTtlSeconds: number;
  readonly maxTtlSeconds: number;
}

/** Parses the configured clients. Every problem of every client is noted: whoever deploys wants the whole list. */
export function parseClients(
  parser: OptionsParser,
  given: readonly ServiceClientOptions[],
  defaults: ClientDefaults,
): ReadonlyMap<string, ServiceClient> {
  const clients = new Map<string, ServiceClient>();
  if (!Array.isArray(given)) {
    parser.problem('clients must be an array');
    return clients;
  }
  for (const [index, item] of given.entries()) {
    const options: ServiceClientOptions = parser.known(item, OPTIONS, `clients[${index}]`);
    const { id } = options;
    if (!parser.check(isClientId(id), `clients[${index}].id must be 1 to 200 visible ASCII characters without ":"`)) {
      continue;
    }
    const where = `client "${id}"`;
    if (clients.has(id)) parser.problem(`${where} is configured twice`);
    if (defaults.reservedClientIds.includes(id)) parser.problem(`${where} has a reserved id`);
    clients.set(id, parseClient(parser, where, options, defaults));
  }
  return clients;
}

/** Whether a value can be a `client_id`. */
export function isClientId(value: unknown): value is string {
  return typeof value === 'string' && CLIENT_ID.test(value);
}

/** Notes every scope that must not be granted. */
export function checkScopes(parser: OptionsParser, where: string, scopes: unknown): readonly string[] {
  if (!Array.isArray(scopes)) {
    parser.problem(`${where}: scopes must be an array, which may be empty`);
    return [];
  }
  for (const scope of scopes) {
    if (!isScopeToken(scope)) parser.problem(`${where}: a scope must be visible ASCII without quotes and backslashes`);
    else if (isWildcardScope(scope)) parser.problem(`${where}: the scope "${scope}" is a wildcard`);
  }
  return Object.freeze([...new Set(scopes)]);
}

/** Notes what is wrong with a list of resources. */
export function checkResources(parser: OptionsParser, where: string, resources: unknown): readonly Resource[] {
  const valid = Array.isArray(resources) && resources.every((item) => isText(item?.type) && isText(item?.id));
  if (parser.check(valid, `${where}: resources must be an array of { type, id }`)) {
    return Object.freeze((resources as Resource[]).map(({ type, id }) => Object.freeze({ type, id })));
  }
  return [];
}

function parseClient(
  parser: OptionsParser,
  where: string,
  options: ServiceClientOptions,
  { defaultTtlSeconds, maxTtlSeconds }: ClientDefaults,
): ServiceClient {
  const { name, tenant, crossTenant, resources, unconstrainedResources } = options;
  if (name !== undefined) parser.string(`${where}: name`, name);
  if (tenant !== undefined) parser.string(`${where}: tenant`, tenant);
  parser.oneOf(`${where}: crossTenant`, crossTenant, [true], undefined);
  parser.oneOf(`${where}: unconstrainedResources`, unconstrainedResources, [true], undefined);
  if ((tenant === undefined) === (crossTenant === undefined)) {
    parser.problem(`${where} needs either a tenant or crossTenant: true`);
  }
  if (resources !== undefined && unconstrainedResources !== undefined) {
    parser.problem(`${where} has both resources and unconstrainedResources`);
  }
  const ttlSeconds = parser.number(`${where}: ttlSeconds`, options.ttlSeconds, defaultTtlSeconds, { min: 1 });
  const introspects = parser.oneOf(
    `${where}: introspects`,
    options.introspects,
    ['own', 'tenant', 'all'],
    crossTenant === true ? 'all' : 'own',
  );
  return Object.freeze({
    clientId: options.id,
    scopes: checkScopes(parser, where, options.scopes),
    ...(tenant === undefined ? {} : { tenant }),
    ...(resources === undefined ? {} : { resources: checkResources(parser, where, resources) }),
    unconstrained: unconstrainedResources === true,
    defaultTtlSeconds: Math.min(ttlSeconds, maxTtlSeconds),
    maxTtlSeconds,
    secrets: parseSecrets(parser, where, options.secretHashes),
    keys: parseKeys(parser, where, options.jwks),
    introspects,
  });
}

function parseSecrets(parser: OptionsParser, where: string, hashes: unknown): readonly SecretHash[] {
  if (hashes === undefined) return [];
  if (!Array.isArray(hashes) || hashes.length < 1 || hashes.length > 2) {
    parser.problem(`${where}: secretHashes must be an array of one hash, or of two while a secret is being replaced`);
    return [];
  }
  const parsed = hashes.map(parseSecretHash);
  // The hash is not quoted: what stands there by mistake may be the secret itself.
  parser.check(!parsed.includes(undefined), `${where}: secretHashes must come from hashClientSecret`);
  return parsed.filter((hash) => hash !== undefined);
}

function parseKeys(parser: OptionsParser, where: string, jwks: unknown): KeySet | undefined {
  if (jwks === undefined) return undefined;
  const read = readKeySet(jwks, ASSERTION_ALGORITHMS);
  if (read === undefined || (read.set.keys.length === 0 && read.problems.length === 0)) {
    parser.problem(`${where}: jwks must be a JWK set with at least one key`);
  }
  for (const problem of read?.problems ?? []) parser.problem(`${where}: jwks.${problem}`);
  return read?.set;
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

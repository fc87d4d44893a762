import type { IncomingMessage } from 'node:http';
import { parseWorkloadIssuers, type WorkloadIssuer } from '../authenticate/workload-issuers.js';
import { parseWorkloadPolicies, type WorkloadPolicy } from '../authenticate/workload-policy.js';
import type { OAuthError } from '../errors/oauth-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import { isChallengeText } from '../http/challenge.js';
import { type Fetch, systemFetch } from '../keys/fetch-json.js';
import { isFetchable } from '../keys/key-options.js';
import type { KeyRing } from '../keys/key-ring.js';
import type { Revocations } from '../revocation/revocations.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { type Random, systemRandom } from '../runtime/random.js';
import type { TokenRegistry } from '../tokens/token-registry.js';
import { type ClaimNames, parseClaimNames } from './claim-names.js';
import { isOwn } from './grant.js';
import { memoryReplayStore } from './memory-replay-store.js';
import type { ReplayStore } from './replay-store.js';
import { isClientId, parseClients, type ServiceClient, type ServiceClientOptions } from './service-client.js';

export interface IssuerOptions {
  /** The issuer's own URL, https (http on this machine), without query and fragment: `iss` of its tokens, byte for byte. */
  readonly issuer: string;
  /** Whom tokens are for: the `aud` of those that name no other. */
  readonly audience: string | readonly string[];
  readonly keyRing: KeyRing;
  /** The clients that may ask for tokens. */
  readonly clients: readonly ServiceClientOptions[];
  /** Ids that no client may have, because they mean something else. */
  readonly reservedClientIds?: readonly string[];
  /** Platforms whose workloads may exchange their tokens (RFC 8693). It needs `workloadPolicies`. */
  readonly workloadIssuers?: readonly WorkloadIssuer[];
  /** Which of their tokens are taken, and what for. What no policy matches is refused. */
  readonly workloadPolicies?: readonly WorkloadPolicy[];
  /** Opaque tokens that introspection and revocation answer for, too. */
  readonly registry?: TokenRegistry;
  /** What is denied. Default: the registry's, else in memory; see `issuer.revocations`. */
  readonly revocations?: Revocations;
  /** Ids of client assertions that were used. Default: in memory, for one process. */
  readonly replayStore?: ReplayStore;
  /** Other names for the claims of the issued tokens. */
  readonly map?: ClaimNames;
  /** What a bare `resource_id` is the id of, e.g. `repository`. Without it a request with a `resource_id` is refused. */
  readonly resourceType?: string;
  /** Seconds that a token lives at most. A longer wish is clamped, and the answer says so. */
  readonly maxTtlSeconds: number;
  /** Seconds that a token lives unless the client or its configuration states a number. Default 900, at most `maxTtlSeconds`. */
  readonly defaultTtlSeconds?: number;
  /** Bytes of a request's body at most. Default 65536. */
  readonly maxBodyBytes?: number;
  /** `realm` of the Basic challenge. Default `tokens`. */
  readonly realm?: string;
  /** Told of every refused request, with the precise `error.reason`. What it throws is swallowed. */
  readonly onReject?: (error: OAuthError, req: IncomingMessage) => void;
  readonly clock?: Clock;
  readonly random?: Random;
  /** What the keys of platforms are fetched with. Default: the platform's `fetch`. */
  readonly fetch?: Fetch;
}

const OPTIONS: readonly (keyof IssuerOptions)[] = [
  'issuer',
  'audience',
  'keyRing',
  'clients',
  'reservedClientIds',
  'workloadIssuers',
  'workloadPolicies',
  'registry',
  'revocations',
  'replayStore',
  'map',
  'resourceType',
  'maxTtlSeconds',
  'defaultTtlSeconds',
  'maxBodyBytes',
  'realm',
  'onReject',
  'clock',
  'random',
  'fetch',
];
const MAX_TTL_SECONDS = 31_536_000;

export type IssuerSettings = ReturnType<typeof parseIssuerOptions>;

/** @throws TypeError that lists every problem, of every client too. */
export function parseIssuerOptions(given: IssuerOptions) {
  const parser = new OptionsParser('createIssuer');
  const options = parser.known(given, OPTIONS);
  const { issuer, keyRing, revocations, resourceType, onReject } = options;
  // RFC 8414 §2.
  const isUrl = typeof issuer === 'string' && isFetchable(issuer, false) && !/[?#]/.test(issuer);
  parser.check(isUrl, 'issuer must be an https URL (http on this machine) without query and fragment');
  const listed: readonly unknown[] = Array.isArray(options.audience) ? options.audience : [options.audience];
  const audiences = listed.filter((audience) => typeof audience === 'string' && audience !== '') as string[];
  parser.check(
    audiences.length > 0 && audiences.length === listed.length,
    'audience must be a string or an array of strings',
  );
  const maxTtlSeconds = parser.number('maxTtlSeconds', options.maxTtlSeconds ?? Number.NaN, 1, {
    min: 1,
    max: MAX_TTL_SECONDS,
    integer: true,
  });
  const defaultTtlSeconds = Math.min(
    parser.number('defaultTtlSeconds', options.defaultTtlSeconds, 900, { min: 1, integer: true }),
    maxTtlSeconds,
  );
  if (typeof keyRing?.signer !== 'function' || typeof keyRing.jwks !== 'function') {
    parser.problem('keyRing must be a key ring (createKeyRing is asynchronous: await it)');
  }
  const reservedClientIds = options.reservedClientIds ?? [];
  const areIds = Array.isArray(reservedClientIds) && reservedClientIds.every((id) => typeof id === 'string');
  parser.check(areIds, 'reservedClientIds must be an array of strings');
  const clients = parseClients(parser, options.clients, {
    reservedClientIds: areIds ? reservedClientIds : [],
    defaultTtlSeconds,
    maxTtlSeconds,
  });
  const workloads = parseWorkloads(parser, options, clients, areIds ? reservedClientIds : []);
  if (options.registry !== undefined && typeof options.registry?.resolveToken !== 'function') {
    parser.problem('registry must come from createTokenRegistry');
  }
  parser.optionalFunction('fetch', options.fetch);
  if (revocations !== undefined && typeof revocations?.check !== 'function') {
    parser.problem('revocations must come from createRevocations');
  }
  if (options.replayStore !== undefined && typeof options.replayStore?.take !== 'function') {
    parser.problem('replayStore must have take');
  }
  const claimNames = parseClaimNames(parser, options.map);
  if (resourceType !== undefined) parser.string('resourceType', resourceType);
  const maxBodyBytes = parser.number('maxBodyBytes', options.maxBodyBytes, 65_536, { min: 1, integer: true });
  const { realm = 'tokens', clock = systemClock, random = systemRandom } = options;
  parser.check(isChallengeText(realm), 'realm must be printable ASCII without quotes and backslashes');
  parser.optionalFunction('onReject', onReject);
  parser.done();
  return {
    issuer,
    audiences,
    keyRing,
    clients,
    workloads,
    registry: options.registry,
    revocations,
    replayStore: options.replayStore ?? memoryReplayStore({ clock }),
    claimNames,
    resourceType,
    maxBodyBytes,
    realm,
    onReject,
    defaultTtlSeconds,
    maxTtlSeconds,
    clock,
    random,
    fetch: options.fetch ?? systemFetch,
  };
}

/** Policies make services, too: the same rules hold for the clients that they name. */
function parseWorkloads(
  parser: OptionsParser,
  { workloadIssuers, workloadPolicies }: IssuerOptions,
  clients: ReadonlyMap<string, ServiceClient>,
  reserved: readonly string[],
) {
  if (workloadIssuers === undefined && workloadPolicies === undefined) return undefined;
  if (workloadIssuers === undefined || workloadPolicies === undefined) {
    parser.problem('workloadIssuers and workloadPolicies need each other');
    return undefined;
  }
  const issuers = parseWorkloadIssuers(parser, 'workloadIssuers', workloadIssuers);
  const policies = parseWorkloadPolicies(parser, 'workloadPolicies', workloadPolicies, issuers.known);
  for (const { policy } of policies) {
    const { clientId, tenantId, scopes } = policy.grant;
    const where = `workload policy "${policy.id}"`;
    if (!isClientId(clientId)) parser.problem(`${where}: grant.clientId cannot be a client id`);
    else if (reserved.includes(clientId)) parser.problem(`${where} grants a reserved client id`);
    const client = clients.get(clientId);
    if (client === undefined) continue;
    // Two ways to one client must not lead to two sets of rights.
    if (client.tenant !== undefined && client.tenant !== tenantId) {
      parser.problem(`${where} grants the client "${clientId}" another tenant than its own`);
    }
    if (!scopes.every((scope) => client.scopes.includes(scope))) {
      parser.problem(`${where} grants the client "${clientId}" scopes that it has not`);
    }
    const { resources } = policy.grant;
    if (resources === undefined ? !client.unconstrained : !resources.every((resource) => isOwn(client, resource))) {
      parser.problem(`${where} grants the client "${clientId}" resources that it has not, or does not name any`);
    }
  }
  return { issuers, policies };
}

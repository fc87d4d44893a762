import type { OptionsParser } from '../errors/options-parser.js';
import type { Resource, Subject } from '../identity/ambient.cjs';
import { type IdentityInput, isSubjectKind } from '../identity/create-identity.js';
import { type ClaimReader, claimReader, isClaimPath } from './claim-at.js';
import { invalidToken } from './compact-jwt.js';

/** A claim's name or a JSON Pointer; several are tried in order; `null` takes the field from no claim at all. */
export type ClaimSource = string | readonly string[] | null;

/**
 * Which claims the identity's fields come from. A mapped claim of the wrong type refuses the token: where an issuer uses one
 * of these names for something else, map the field to another claim or to `null`. A claim that is `null` counts as absent.
 */
export interface ClaimMap {
  /** Default `sub`. A string. */
  readonly subject?: ClaimSource;
  /** Default `tenant_id`, else `org`. A string. */
  readonly tenant?: ClaimSource;
  /** Default `client_id`, else `azp`. A string. */
  readonly clientId?: ClaimSource;
  /** Default `jti`. A string. */
  readonly tokenId?: ClaimSource;
  /** Default `auth_id`; without it the client of a service, else the subject. A string. */
  readonly authId?: ClaimSource;
  /** Default `scope`, else `scp`. A string of scopes with spaces between them, or an array of strings. */
  readonly scopes?: ClaimSource;
  /** Default `plan`. A string. */
  readonly plan?: ClaimSource;
  /** Default `groups`. An array of strings, ranked. */
  readonly groups?: ClaimSource;
  /** Default `resources`. An array of `{ type, id }`. */
  readonly resources?: ClaimSource;
  /** Default `act` (RFC 8693 §4.1). An object with `sub`; its `kind`, if it is one of ours, is the actor's. */
  readonly actor?: ClaimSource;
  /** Default `is_service_account`. A boolean: true makes the subject a service, as an equal `sub` and client do. */
  readonly serviceAccount?: ClaimSource;
}

const DEFAULTS: Readonly<Record<keyof ClaimMap, readonly string[]>> = {
  subject: ['sub'],
  tenant: ['tenant_id', 'org'],
  clientId: ['client_id', 'azp'],
  tokenId: ['jti'],
  authId: ['auth_id'],
  scopes: ['scope', 'scp'],
  plan: ['plan'],
  groups: ['groups'],
  resources: ['resources'],
  actor: ['act'],
  serviceAccount: ['is_service_account'],
};

const FIELDS = Object.keys(DEFAULTS) as (keyof ClaimMap)[];

type Claims = Readonly<Record<string, unknown>>;
/** An identity in the making: the mapped fields are set. */
export type MappedClaims = { -readonly [K in keyof IdentityInput]: IdentityInput[K] };

/** Compiles a `map` option. @returns a function that throws AccessError `invalid_token` for claims of the wrong type. */
export function parseClaimMap(parser: OptionsParser, where: string, given: ClaimMap | undefined) {
  const map = given === undefined ? {} : parser.known(given, FIELDS, where);
  const readers = Object.fromEntries(
    FIELDS.map((field) => [field, readersOf(parser, `${where}.${field}`, map[field], DEFAULTS[field])]),
  ) as Readonly<Record<keyof ClaimMap, readonly NamedReader[]>>;

  return (claims: Claims): MappedClaims => {
    const id = first(claims, readers.subject, text);
    if (id === undefined) throw invalidToken('the token has no subject');
    const clientId = first(claims, readers.clientId, text);
    const isService = first(claims, readers.serviceAccount, flag) === true || id === clientId;
    return {
      subject: { kind: isService ? 'service' : 'user', id },
      authId: first(claims, readers.authId, text) ?? (isService && clientId !== undefined ? clientId : id),
      scopes: first(claims, readers.scopes, scopeList),
      groups: first(claims, readers.groups, textList),
      tenant: first(claims, readers.tenant, text),
      clientId,
      tokenId: first(claims, readers.tokenId, text),
      plan: first(claims, readers.plan, text) as IdentityInput['plan'],
      resources: first(claims, readers.resources, resourceList),
      actor: first(claims, readers.actor, party),
      issuer: undefined,
      claims: undefined,
      keyId: undefined,
      issuedAt: undefined,
      expiresAt: undefined,
    };
  };
}

interface NamedReader {
  readonly path: string;
  readonly read: ClaimReader;
}

function readersOf(
  parser: OptionsParser,
  where: string,
  source: ClaimSource | undefined,
  fallback: readonly string[],
): readonly NamedReader[] {
  const paths: readonly unknown[] =
    source === undefined ? fallback : source === null ? [] : Array.isArray(source) ? source : [source];
  if (!paths.every(isClaimPath)) {
    parser.problem(`${where} must be a claim's name, a JSON Pointer, an array of them, or null`);
    return [];
  }
  return paths.map((path) => ({ path, read: claimReader(path) }));
}

/** The first claim that is there. All of them are looked at: one of the wrong type refuses the token all the same. */
function first<T>(claims: Claims, readers: readonly NamedReader[], convert: (value: unknown) => T | undefined) {
  let found: T | undefined;
  for (const { path, read } of readers) {
    const value = read(claims);
    if (value === undefined || value === null) continue;
    const converted = convert(value);
    // The path comes from the configuration; the value stays out of the reason.
    if (converted === undefined) throw invalidToken(`the claim ${path} has the wrong type`);
    found ??= converted;
  }
  return found;
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined;
}

function flag(value: unknown): boolean | undefined {
  return typeof value === 'boolean' ? value : undefined;
}

function textList(value: unknown): string[] | undefined {
  return Array.isArray(value) && value.every((item) => typeof item === 'string' && item !== '') ? value : undefined;
}

/** RFC 6749 §3.3 and RFC 8693 §4.2: scopes with spaces between them; many issuers use an array. */
function scopeList(value: unknown): string[] | undefined {
  return typeof value === 'string' ? value.split(' ').filter((scope) => scope !== '') : textList(value);
}

function resourceList(value: unknown): Resource[] | undefined {
  const isResource = (item: unknown): item is Resource =>
    typeof item === 'object' &&
    item !== null &&
    text((item as Resource).type) !== undefined &&
    text((item as Resource).id) !== undefined;
  return Array.isArray(value) && value.every(isResource) ? value : undefined;
}

function party(value: unknown): Subject | undefined {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined;
  const { sub, kind, client_id: clientId, is_service_account: isService } = value as Record<string, unknown>;
  const id = text(sub);
  if (id === undefined || (isService != null && flag(isService) === undefined)) return undefined;
  if (isSubjectKind(kind)) return { kind, id };
  return { kind: isService === true || clientId === id ? 'service' : 'user', id };
}

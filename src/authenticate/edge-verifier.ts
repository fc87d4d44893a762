import { AccessError } from '../errors/access-error.js';
import type { BillingField } from '../errors/missing-field.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Subject } from '../identity/ambient.cjs';
import { type IdentityInput, isSubjectKind } from '../identity/create-identity.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import type { EdgeHeader } from './edge-signature.js';
import { type EdgeTrust, parseEdge } from './edge-trust.js';
import type { Presented, Verified, Verifier } from './verifier.js';

/** The headers under the prefix by lower-case name: one value as it is, repeated ones as a list. */
export type EdgeHeaders = Readonly<Record<string, string | readonly string[]>>;

/** What a header may be mapped to. `scopes` is split at spaces, `groups` at commas. */
export type EdgeField =
  | 'authId'
  | 'subject'
  | 'subject.kind'
  | 'tenant'
  | 'clientId'
  | 'tokenId'
  | 'plan'
  | 'scopes'
  | 'groups'
  | 'resource.type'
  | 'resource.id';

/** What a mapping function makes of the headers. Absent fields are absent. */
export interface EdgeMapping {
  readonly authId?: string;
  readonly subject?: Subject;
  readonly tenant?: string;
  readonly clientId?: string;
  readonly tokenId?: string;
  readonly plan?: string;
  readonly scopes?: Iterable<string>;
  readonly groups?: readonly string[];
  readonly resource?: { readonly type?: string; readonly id?: string };
}

export interface EdgeVerifierOptions {
  /** How the edge's headers begin, e.g. `x-saturn-`. Every header under it is captured verbatim as a claim. */
  readonly prefix: string;
  /** Who the edge is. The edge must overwrite or remove what its callers send under the prefix. */
  readonly trust: EdgeTrust;
  /** Which header states which field; `authId` is needed. Or a function of the headers. */
  readonly map:
    | ({ readonly authId: string } & Readonly<Partial<Record<EdgeField, string>>>)
    | ((headers: EdgeHeaders) => EdgeMapping);
  /** Default `edge`. It is also the issuer of the identities. */
  readonly name?: string;
  readonly clock?: Clock;
}

const FIELDS: readonly EdgeField[] = [
  'authId',
  'subject',
  'subject.kind',
  'tenant',
  'clientId',
  'tokenId',
  'plan',
  'scopes',
  'groups',
  'resource.type',
  'resource.id',
];

/** What is asked of the mapping, so that the one function of a request serves headers and callbacks alike. */
interface Mapped {
  readonly mapping: EdgeMapping;
  readonly claims: EdgeHeaders;
}

/**
 * The identity that a trusted edge states in headers: an explicit opt-in that names the edge. Never cached.
 *
 * The subject is the mapped one, else `{ kind: 'user', id: authId }`. A mapped resource is never a constraint: it is
 * `meter`'s resource where that states none. Blank headers count as absent. A mapped header that is sent twice is a 400,
 * others keep all values. Where the headers name no `authId`, no identity is attached: `meter` answers 400 with every
 * missing field, the gates answer 401.
 *
 * Put it behind token verifiers where callers may also come with tokens. Deployment precondition: nothing but the edge
 * reaches the app, or `stripEdgeHeaders` stands before it.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function edgeVerifier(options: EdgeVerifierOptions): Verifier {
  const parser = new OptionsParser('edgeVerifier');
  const given = parser.known(options, ['prefix', 'trust', 'map', 'name', 'clock']);
  const edge = parseEdge(given, given.clock ?? systemClock, parser);
  const name = given.name === undefined ? 'edge' : parser.string('name', given.name);
  const { map } = given;
  const mapped = new Map<EdgeField, string>();
  if (typeof map !== 'function') {
    for (const [field, header] of Object.entries(parser.known(map, FIELDS, 'map'))) {
      if (header === undefined) continue;
      const lower = parser.string(`map["${field}"]`, header).toLowerCase();
      parser.check(lower.startsWith(edge.prefix), `map["${field}"] must be a header under the prefix`);
      mapped.set(field as EdgeField, lower);
    }
    parser.check(mapped.has('authId'), 'map.authId is needed');
  }
  parser.done();
  const mappedHeaders = new Set(mapped.values());
  const headerOf = Object.freeze({
    ...headerEntry('authId'),
    ...headerEntry('tenant'),
    ...headerEntry('clientId'),
    ...headerEntry('resource.type'),
    ...headerEntry('resource.id'),
  });

  function headerEntry(field: BillingField): Partial<Record<BillingField, string>> {
    const header = mapped.get(field);
    return header === undefined ? {} : { [field]: header };
  }

  function read(headers: readonly EdgeHeader[]): Mapped {
    const values = new Map<string, string[]>();
    for (const [header, value] of headers) {
      const known = values.get(header);
      if (known === undefined) values.set(header, [value]);
      else if (mappedHeaders.has(header)) {
        throw new AccessError('invalid_request', { reason: `the edge header ${header} was sent twice` });
      } else known.push(value);
    }
    const claims: Record<string, string | readonly string[]> = {};
    for (const [header, list] of values) claims[header] = list.length === 1 ? (list[0] as string) : list;
    if (typeof map === 'function') return { mapping: map(Object.freeze({ ...claims })), claims };
    const text = (field: EdgeField): string | undefined => {
      const value = values.get(mapped.get(field) ?? '')?.[0]?.trim();
      return value === '' ? undefined : value;
    };
    const authId = text('authId');
    const subjectId = text('subject') ?? authId;
    const kind = text('subject.kind') ?? 'user';
    if (!isSubjectKind(kind))
      throw new AccessError('invalid_token', { reason: 'the edge states an unknown kind of subject' });
    return {
      claims,
      mapping: {
        authId,
        subject: subjectId === undefined ? undefined : { kind, id: subjectId },
        tenant: text('tenant'),
        clientId: text('clientId'),
        tokenId: text('tokenId'),
        plan: text('plan'),
        scopes: text('scopes')?.split(/\s+/),
        groups: text('groups')
          ?.split(',')
          .map((group) => group.trim())
          .filter((group) => group !== ''),
        resource: { type: text('resource.type'), id: text('resource.id') },
      },
    };
  }

  function verify({ req }: Presented): Verified {
    if (edge.standing(req) !== 'trusted') {
      throw new AccessError('invalid_token', { reason: 'the signature over the edge headers is wrong or too old' });
    }
    const { mapping, claims } = read(edge.headers(req));
    const { authId, subject, resource, ...rest } = mapping;
    const attribution = {
      fields: definite({
        authId,
        tenant: rest.tenant,
        clientId: rest.clientId,
        'resource.type': resource?.type,
        'resource.id': resource?.id,
      }),
      headers: headerOf,
    };
    if (authId === undefined || authId === '') return { attribution };
    const identity: IdentityInput = {
      ...rest,
      subject: subject ?? { kind: 'user', id: authId },
      authId,
      claims,
    };
    return { identity, attribution, cacheSeconds: 0 };
  }

  return {
    name,
    ignoresSignal: true,
    dependsOnRequest: true,
    // A wrong signature is a bad credential, not an absent one.
    accepts: ({ req }) => edge.standing(req) !== 'unsigned',
    verify,
  };
}

function definite(fields: Record<BillingField, string | undefined>): Partial<Record<BillingField, string>> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => typeof value === 'string' && value !== ''));
}

import type { OptionsParser } from '../errors/options-parser.js';

/**
 * The names of the claims that RFC 9068 leaves open, where whoever verifies the tokens expects others. The issuer reads its
 * own tokens by the same names; a `jwtVerifier` of yours takes them as its `map`.
 */
export interface ClaimNames {
  /** Default `tenant_id`. */
  readonly tenant?: string;
  /** Default `scope`. The value is the scopes with spaces between them (RFC 8693 §4.2). */
  readonly scopes?: string;
  /** Default `resources`. The value is an array of `{ type, id }`. */
  readonly resources?: string;
  /** Default `is_service_account`. The value is true. */
  readonly serviceAccount?: string;
}

const DEFAULTS: Readonly<Record<keyof ClaimNames, string>> = {
  tenant: 'tenant_id',
  scopes: 'scope',
  resources: 'resources',
  serviceAccount: 'is_service_account',
};

/** Claims that mean something already: RFC 7519 §4.1, RFC 9068 §2.2, RFC 8693 §4.1, RFC 7800 §3.1. */
const TAKEN: readonly string[] = [
  'iss',
  'sub',
  'aud',
  'exp',
  'nbf',
  'iat',
  'jti',
  'client_id',
  'act',
  'cnf',
  'auth_id',
  '__proto__',
];

/** Reads the `map` option of an issuer. */
export function parseClaimNames(
  parser: OptionsParser,
  given: ClaimNames | undefined,
): Readonly<Record<keyof ClaimNames, string>> {
  const fields = Object.keys(DEFAULTS) as (keyof ClaimNames)[];
  const options = given === undefined ? {} : parser.known(given, fields, 'map');
  const names = { ...DEFAULTS };
  for (const field of fields) {
    const name: unknown = options[field];
    if (name === undefined) continue;
    // A verifier reads what begins with a slash as a JSON Pointer.
    const usable = typeof name === 'string' && name !== '' && !name.startsWith('/') && !TAKEN.includes(name);
    if (parser.check(usable, `map.${field} must be a claim's name, and none that means something else`)) {
      names[field] = name as string;
    }
  }
  parser.check(new Set(Object.values(names)).size === fields.length, 'map gives two fields the same claim');
  return Object.freeze(names);
}

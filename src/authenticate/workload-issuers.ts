import type { OptionsParser } from '../errors/options-parser.js';
import { canonicalAlgorithm, isHmac, JWT_ALGORITHMS, type JwtAlgorithm } from '../keys/jwt-algorithm.js';
import { type KeyOptions, parseKeyOptions } from '../keys/key-options.js';
import type { Lifecycle } from '../runtime/lifecycle.js';
import { claimPointer, isClaimPath } from './claim-at.js';
import { invalidToken, peekJwt } from './compact-jwt.js';
import type { DirectoryContext } from './directory-context.js';
import { loadKeys, trustIssuer } from './issuer-directory.js';
import { parseAlgorithms } from './jwt-issuer.js';
import type { IssuerRules, VerifiedJwt } from './trusted-issuer.js';
import { WORKLOAD_KINDS, type WorkloadKind } from './workload-kind.js';
import type { CompiledPolicy, KnownWorkloadIssuer } from './workload-policy.js';

/** A platform that gives its workloads tokens. */
export interface WorkloadIssuer {
  /** Compared with `iss` byte for byte. */
  readonly issuer: string;
  readonly kind: WorkloadKind;
  /** Public keys: pinned (`jwks`), from a file (`jwksFile`), a URL or discovery. */
  readonly keys: KeyOptions;
  /** Default: every asymmetric algorithm, each for the keys that are made for it. */
  readonly algorithms?: readonly JwtAlgorithm[];
  /** `oidc`: claims beside `sub` that say who a workload is, by name or JSON Pointer, e.g. `['project_id']`. */
  readonly pins?: readonly string[];
}

/** A workload's token whose signature and times hold. Whether it is good for anything is up to the policies. */
export interface WorkloadToken extends VerifiedJwt {
  readonly issuer: string;
  readonly kind: WorkloadKind;
}

/** The platforms whose tokens are verified. */
export interface WorkloadIssuers extends Lifecycle {
  readonly listed: readonly string[];
  /** Whether a token names one of them: unverified, synchronous, without I/O. */
  accepts(token: string): boolean;
  /**
   * @throws AccessError `invalid_token`, or `verifier_unavailable` while there are no keys.
   */
  verify(token: string): Promise<WorkloadToken>;
}

export interface ParsedWorkloadIssuers {
  readonly known: readonly KnownWorkloadIssuer[];
  /** Made when the parser has no problem; the policies say which audiences are ours. Nothing is fetched yet. */
  create(policies: readonly CompiledPolicy[], context: DirectoryContext): WorkloadIssuers;
}

const ISSUER_OPTIONS: readonly (keyof WorkloadIssuer)[] = ['issuer', 'kind', 'keys', 'algorithms', 'pins'];
const ASYMMETRIC = JWT_ALGORITHMS.filter((name) => !isHmac(name));
/** Seconds by which a platform's clock may differ. */
export const WORKLOAD_TOLERANCE_SECONDS = 5;

/**
 * Reads a list of platforms and notes every problem.
 *
 * @param where the option's name in messages.
 */
export function parseWorkloadIssuers(parser: OptionsParser, where: string, given: unknown): ParsedWorkloadIssuers {
  const listed: readonly WorkloadIssuer[] = Array.isArray(given) ? given : [];
  if (listed.length === 0) parser.problem(`${where} must be an array with at least one issuer`);
  const known: KnownWorkloadIssuer[] = [];
  const parsed = listed.map((one, index) => {
    const name = `${where}[${index}]`;
    const options = parser.known(one, ISSUER_OPTIONS, name);
    const issuer = parser.string(`${name}.issuer`, options.issuer);
    if (!WORKLOAD_KINDS.includes(options.kind))
      parser.problem(`${name}.kind must be one of ${WORKLOAD_KINDS.join(', ')}`);
    if (known.some((other) => other.issuer === issuer)) parser.problem(`${name}.issuer is listed twice`);
    const { pins = [] } = options;
    const arePaths = Array.isArray(pins) && pins.every(isClaimPath);
    if (!arePaths) parser.problem(`${name}.pins must be an array of claims' names and JSON Pointers`);
    else if (pins.length > 0 && options.kind !== 'oidc') parser.problem(`${name}.pins is about the kind oidc`);
    known.push({ issuer, kind: options.kind, pins: arePaths ? pins.map(claimPointer) : [] });
    const algorithms =
      options.algorithms === undefined ? ASYMMETRIC : parseAlgorithms(parser, `${name}.algorithms`, options.algorithms);
    if (algorithms.some(isHmac)) parser.problem(`${name}.algorithms must be asymmetric: a platform shares no secret`);
    const createKeys = parseKeyOptions(parser, `${name}.keys`, options.keys, issuer, algorithms);
    return { issuer, kind: options.kind, algorithms: new Set(algorithms.map(canonicalAlgorithm)), createKeys };
  });

  return {
    known,
    create(policies, context) {
      const issuers = new Map(
        parsed.map(({ issuer, kind, algorithms, createKeys }) => {
          const ours = policies.filter(({ policy }) => policy.issuer === issuer).map(({ policy }) => policy.audience);
          const rules: IssuerRules = {
            issuer,
            algorithms,
            audience: ours,
            type: undefined,
            clockToleranceSeconds: WORKLOAD_TOLERANCE_SECONDS,
            maxTokenAgeSeconds: undefined,
          };
          return [issuer, { kind, trusted: trustIssuer({ rules, createKeys }, context) }];
        }),
      );
      const trusted = [...issuers.values()].map((issuer) => issuer.trusted);
      const read = (token: string) => {
        const jwt = peekJwt(token);
        const iss = jwt?.claims.iss;
        const found = typeof iss === 'string' ? issuers.get(iss) : undefined;
        return jwt === undefined || found === undefined ? undefined : { jwt, ...found };
      };
      return {
        listed: trusted.map(({ rules }) => rules.issuer),
        accepts: (token) => read(token) !== undefined,
        async verify(token) {
          const found = read(token);
          if (found === undefined) throw invalidToken('the token is no JWT of a listed issuer');
          const { kind, trusted, jwt } = found;
          return { ...(await trusted.verify(jwt)), issuer: trusted.rules.issuer, kind };
        },
        ready: (signal) => loadKeys(trusted, signal),
        async close(signal) {
          await Promise.all(trusted.map(({ keys }) => keys.close(signal)));
        },
      };
    },
  };
}

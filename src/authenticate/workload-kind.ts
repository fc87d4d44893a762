import type { ClaimMatcher } from './claim-match.js';

/** What kind of platform an issuer is: each has claims of its own. */
export type WorkloadKind = 'kubernetes' | 'github-actions' | 'oidc';

export const WORKLOAD_KINDS: readonly WorkloadKind[] = ['kubernetes', 'github-actions', 'oidc'];

type Claims = Readonly<Record<string, unknown>>;
type Matchers = ReadonlyMap<string, ClaimMatcher>;

/** What a kind of platform demands of policies and of tokens. */
interface KindRules {
  /** What makes a policy too loose; undefined when it pins down who the workload is. */
  looseness(match: Matchers): string | undefined;
  /** What is wrong with a token, whatever the policy says. */
  fault(claims: Claims, podWaived: boolean): string | undefined;
}

const NAMESPACE = '/kubernetes.io/namespace';
const ACCOUNT_NAME = '/kubernetes.io/serviceaccount/name';
const ACCOUNT_UID = '/kubernetes.io/serviceaccount/uid';

const kubernetes: KindRules = {
  looseness(match) {
    const isExact = (path: string): boolean => match.get(path)?.kind === 'exact';
    if (isExact('sub') || isExact(ACCOUNT_UID) || (isExact(NAMESPACE) && isExact(ACCOUNT_NAME))) return undefined;
    return `must name the service account: sub, ${ACCOUNT_UID}, or ${NAMESPACE} and ${ACCOUNT_NAME}, with a string or in`;
  },
  fault(claims, podWaived) {
    const subject = own(claims, 'sub');
    const names = isText(subject) ? /^system:serviceaccount:([^:]+):([^:]+)$/.exec(subject) : null;
    if (names === null) return 'its subject is no service account';
    const nested = object(own(claims, 'kubernetes.io'));
    const account = object(own(nested, 'serviceaccount'));
    if (own(nested, 'namespace') !== names[1] || own(account, 'name') !== names[2]) {
      return 'its subject and its nested claims disagree';
    }
    if (!isText(own(account, 'uid'))) return 'it does not say which service account of that name it is';
    const pod = own(nested, 'pod');
    if (pod === undefined ? !podWaived : !isObjectReference(pod)) return 'it is not bound to a pod';
    const node = own(nested, 'node');
    if (node !== undefined && !isObjectReference(node)) return 'its node has the wrong type';
    if (typeof own(claims, 'nbf') !== 'number') return 'it has no nbf';
    const jti = own(claims, 'jti');
    return jti === undefined || isText(jti) ? undefined : 'its jti has the wrong type';
  },
};

/** The string claims of a GitHub Actions token. Ids are strings too. */
const GITHUB_CLAIMS = [
  'sub',
  'repository',
  'repository_id',
  'repository_owner',
  'repository_owner_id',
  'repository_visibility',
  'ref',
  'ref_type',
  'ref_protected',
  'base_ref',
  'head_ref',
  'sha',
  'event_name',
  'environment',
  'workflow',
  'workflow_ref',
  'workflow_sha',
  'job_workflow_ref',
  'job_workflow_sha',
  'runner_environment',
  'run_id',
  'run_number',
  'run_attempt',
  'actor',
  'actor_id',
  'enterprise',
  'enterprise_id',
  'jti',
];
const GITHUB_REQUIRED = ['sub', 'repository', 'repository_id', 'repository_owner', 'repository_owner_id'];
/** Claims that say whose workflow it is. */
const GITHUB_PINS = [
  'repository_id',
  'repository_owner_id',
  'repository',
  'repository_owner',
  'sub',
  'job_workflow_ref',
  'workflow_ref',
];

const githubActions: KindRules = {
  looseness(match) {
    if (!GITHUB_PINS.some((name) => pins(match.get(name)))) {
      return `must pin one of ${GITHUB_PINS.join(', ')}: exactly, or up to a "/", ":" or "@"`;
    }
    const subject = match.get('sub');
    // The environment form of `sub` says nothing of the branch: whoever may deploy to it from any branch would match.
    if (subject?.key.includes(':environment:') === true && !match.has('ref')) {
      return 'matches a sub of the environment form, which hides the branch: match ref too';
    }
    return undefined;
  },
  fault(claims) {
    for (const name of GITHUB_CLAIMS) {
      const value = own(claims, name);
      if (value !== undefined && typeof value !== 'string') return `its ${name} has the wrong type`;
    }
    const missing = GITHUB_REQUIRED.find((name) => !isText(own(claims, name)));
    return missing === undefined ? undefined : `it has no ${missing}`;
  },
};

const oidc: KindRules = {
  looseness(match) {
    const exact = [...match].some(([path, { kind }]) => kind === 'exact' && path !== 'iss' && path !== 'aud');
    return exact || pins(match.get('sub')) ? undefined : 'must match one claim exactly, or sub up to a "/", ":" or "@"';
  },
  fault: (claims) => (isText(own(claims, 'sub')) ? undefined : 'it has no subject'),
};

const RULES: Readonly<Record<WorkloadKind, KindRules>> = { kubernetes, 'github-actions': githubActions, oidc };

export function kindRules(kind: WorkloadKind): KindRules {
  return RULES[kind];
}

/** A pattern that ends in the middle of a name would also match whoever registers a longer name. */
function pins(matcher: ClaimMatcher | undefined): boolean {
  return matcher !== undefined && (matcher.kind === 'exact' || /[/:@]$/.test(matcher.literal));
}

function own(value: Claims | undefined, name: string): unknown {
  return value !== undefined && Object.hasOwn(value, name) ? value[name] : undefined;
}

function object(value: unknown): Claims | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Claims) : undefined;
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

/** `{ name, uid }`: how Kubernetes refers to a pod and a node. */
function isObjectReference(value: unknown): boolean {
  const reference = object(value);
  return isText(own(reference, 'name')) && isText(own(reference, 'uid'));
}

import type { ClaimMatcher } from './claim-match.js';

/** What kind of platform an issuer is: each has claims of its own. */
export type WorkloadKind = 'kubernetes' | 'github-actions' | 'oidc';

export const WORKLOAD_KINDS: readonly WorkloadKind[] = ['kubernetes', 'github-actions', 'oidc'];

type Claims = Readonly<Record<string, unknown>>;
type Matchers = ReadonlyMap<string, ClaimMatcher>;

/** What a kind of platform demands of policies and of tokens. */
interface KindRules {
  /**
   * What makes a policy too loose; undefined when it pins down who the workload is.
   *
   * @param match by JSON Pointer.
   * @param pins claims of an `oidc` issuer that say who a workload is.
   */
  looseness(match: Matchers, pins: readonly string[]): string | undefined;
  /** What is wrong with a token, whatever the policy says. */
  fault(claims: Claims, podWaived: boolean): string | undefined;
}

const NAMESPACE = '/kubernetes.io/namespace';
const ACCOUNT_NAME = '/kubernetes.io/serviceaccount/name';
const ACCOUNT_UID = '/kubernetes.io/serviceaccount/uid';

const kubernetes: KindRules = {
  looseness(match) {
    const isExact = (path: string): boolean => match.get(path)?.kind === 'exact';
    if (isExact('/sub') || isExact(ACCOUNT_UID) || (isExact(NAMESPACE) && isExact(ACCOUNT_NAME))) return undefined;
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
/**
 * Claims that say whose workflow it is, and what they start with at least for that. `job_workflow_ref` is none of them: it
 * says where the code comes from, and anybody may call a public workflow, on a runner of their own. Nor is a customised `sub`
 * that names neither repository nor owner: every repository may have one.
 */
const GITHUB_PINS: readonly (readonly [claim: string, pin: RegExp])[] = [
  ['repository_id', /./],
  ['repository_owner_id', /./],
  ['repository', /^[^/]+\//],
  ['repository_owner', /./],
  ['workflow_ref', /^[^/]+\//],
  ['sub', /^(?:repo:[^/:]+\/|repository(?:_owner)?(?:_id)?:[^:]+(?::|$))/],
];

const githubActions: KindRules = {
  looseness(match) {
    if (!GITHUB_PINS.some(([claim, pin]) => pins(match.get(`/${claim}`), pin))) {
      const names = GITHUB_PINS.map(([claim]) => claim).join(', ');
      return `must pin one of ${names}: exactly, or up to a "/", ":" or "@" behind the owner`;
    }
    // The environment form of `sub` says nothing of the branch: whoever may deploy to it from any branch would match.
    const subject = match.get('/sub');
    const isOfEnvironment = [...(subject?.literals ?? []), subject?.text].some((text) =>
      text?.includes(':environment'),
    );
    return isOfEnvironment && !match.has('/ref')
      ? 'matches a sub of the environment form, which hides the branch: match ref too'
      : undefined;
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
  looseness(match, stated) {
    // A claim of which nothing is known may be the same in every token of the issuer.
    const isPinned = ['/sub', ...stated].some((pointer) => match.get(pointer)?.kind === 'exact');
    return isPinned || pins(match.get('/sub'), /[^/:@][/:@]+[^/:@]/)
      ? undefined
      : 'must pin sub, exactly or up to a "/", ":" or "@" behind two names, or exactly one of the issuer\'s pins';
  },
  fault: (claims) => (isText(own(claims, 'sub')) ? undefined : 'it has no subject'),
};

const RULES: Readonly<Record<WorkloadKind, KindRules>> = { kubernetes, 'github-actions': githubActions, oidc };

export function kindRules(kind: WorkloadKind): KindRules {
  return RULES[kind];
}

/**
 * Whether a match leaves no doubt who it is: exact, or a beginning that says it. A pattern whose literal part ends in the
 * middle of a name would also match whoever registers a longer name.
 */
function pins(matcher: ClaimMatcher | undefined, pin: RegExp): boolean {
  if (matcher === undefined) return false;
  return matcher.literals.every((text) => pin.test(text) && (matcher.kind === 'exact' || /[/:@]$/.test(text)));
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

import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Identity } from '../identity/ambient.cjs';
import { type BoundPlan, bindPlan, type Plan } from './bound-plan.js';
import { parsePolicies, type QuotaPolicy } from './quota-policy.js';

/** Whose plan it is: a plan's name, policies of the caller's own, or undefined for the identity's `plan`. */
export type PlanOf = (identity: Identity) => string | readonly QuotaPolicy[] | undefined;

/** The plans of one quota. A policy is never skipped: without a plan there is no answer but 503. */
export class PlanBook {
  readonly #plans = new Map<string, Plan>();
  readonly #own = new WeakMap<readonly QuotaPolicy[], Plan>();
  readonly #defaultPlan: string | undefined;
  readonly #planOf: PlanOf | undefined;
  readonly #byClient: boolean;

  constructor(
    plans: Readonly<Record<string, readonly QuotaPolicy[]>>,
    defaultPlan: string | undefined,
    planOf: PlanOf | undefined,
    parser: OptionsParser,
  ) {
    if (typeof plans !== 'object' || plans === null || Array.isArray(plans)) parser.problem('plans must be an object');
    else
      for (const [name, policies] of Object.entries(plans))
        this.#plans.set(name, planMade(parser, `plans.${name}`, policies));
    if (defaultPlan !== undefined && !this.#plans.has(defaultPlan)) parser.problem('defaultPlan must name a plan');
    parser.optionalFunction('planOf', planOf);
    this.#defaultPlan = defaultPlan;
    this.#planOf = planOf;
    // With policies that are known only later, the counters of a client must live together from the beginning.
    this.#byClient =
      planOf !== undefined ||
      [...this.#plans.values()].some(({ policies }) => policies.some(({ per }) => per === 'client'));
  }

  /** The policies of a caller, on the caller's counters. @throws AccessError `quota_unavailable` when there is no plan. */
  of(identity: Identity): BoundPlan {
    return bindPlan(this.#plan(identity), identity, this.#byClient);
  }

  #plan(identity: Identity): Plan {
    const stated = this.#planOf?.(identity);
    if (Array.isArray(stated)) return this.#ownPlan(stated);
    const name = stated === undefined || stated === null ? identity.plan : stated;
    const plan = typeof name === 'string' ? this.#plans.get(name) : undefined;
    const found = plan ?? (this.#defaultPlan === undefined ? undefined : this.#plans.get(this.#defaultPlan));
    if (found !== undefined && (name === undefined || typeof name === 'string')) return found;
    throw new AccessError('quota_unavailable', {
      reason: 'quota: the caller has no known plan, and there is no default',
    });
  }

  #ownPlan(policies: readonly QuotaPolicy[]): Plan {
    let plan = this.#own.get(policies);
    if (plan === undefined) {
      const parser = new OptionsParser('planOf');
      plan = planMade(parser, 'policies', policies);
      parser.done();
      this.#own.set(policies, plan);
    }
    return plan;
  }
}

function planMade(parser: OptionsParser, where: string, policies: unknown): Plan {
  return { policies: parsePolicies(parser, where, policies), bound: new WeakMap() };
}

import { createHash } from 'node:crypto';
import type { Identity } from '../identity/ambient.cjs';
import type { ParsedPolicy } from './quota-policy.js';
import type { QuotaOp } from './quota-store.js';

/** The policies of a plan, and what each known caller's counters are called. */
export interface Plan {
  readonly policies: readonly ParsedPolicy[];
  /** By identity: a known caller's keys are hashed once. */
  readonly bound: WeakMap<Identity, BoundPlan>;
}

/** A plan's policies on the counters of one caller. */
export interface BoundPlan {
  readonly policies: readonly ParsedPolicy[];
  /** All counters of the plan live together, so that one step decides about them. */
  readonly slot: string;
  readonly keys: readonly string[];
  /** What a request that states no cost asks for. */
  readonly plainOps: readonly QuotaOp[];
}

/**
 * @param byClient whether some policy counts per client. Where there is no tenant, the counters of a client must live
 *   together; without such policies those of a subject do.
 */
export function bindPlan(plan: Plan, identity: Identity, byClient: boolean): BoundPlan {
  const known = plan.bound.get(identity);
  if (known !== undefined) return known;
  const { tenant, clientId, issuer, subject } = identity;
  const home =
    tenant !== undefined
      ? ['tenant', issuer, tenant]
      : clientId !== undefined && byClient
        ? ['client', issuer, clientId]
        : ['subject', issuer, subject.kind, subject.id];
  const slot = hashOf(home);
  const keys = plan.policies.map((policy) => {
    // Within the slot, so that a key is never the same in two of them.
    const scope = hashOf([slot, policy.unit, ...scopeOf(policy, identity)]);
    return `${policy.name}:${scope}:${policy.windowId}`;
  });
  const plainOps = plan.policies.map((policy, index) => opOf(policy, keys[index] as string, {}, undefined));
  const bound: BoundPlan = { policies: plan.policies, slot, keys, plainOps };
  plan.bound.set(identity, bound);
  return bound;
}

/** One policy's counter, and what a request asks of it. */
export function opOf(
  { unit, limit, window }: ParsedPolicy,
  key: string,
  costs: Readonly<Record<string, number>>,
  reserve: Readonly<Record<string, number>> | undefined,
): QuotaOp {
  if (reserve !== undefined && Object.hasOwn(reserve, unit)) {
    return { key, window, limit, cost: reserve[unit] as number, need: undefined, reserved: true };
  }
  if (Object.hasOwn(costs, unit)) {
    return { key, window, limit, cost: costs[unit] as number, need: undefined, reserved: false };
  }
  // A quantity that is known only afterwards is booked then: until its limit is reached.
  const isRequest = unit === 'requests';
  return { key, window, limit, cost: isRequest ? 1 : 0, need: isRequest ? undefined : 1, reserved: false };
}

/** What stands for whom the policy counts. It is never nobody: without a tenant or a client it is the authId. */
function scopeOf({ per }: ParsedPolicy, identity: Identity): string[] {
  const { issuer, tenant, clientId, subject, authId } = identity;
  if (per === 'tenant' && tenant !== undefined) return ['tenant', issuer, tenant];
  if (per === 'client' && clientId !== undefined) return ['client', issuer, clientId];
  if (per === 'subject') return ['subject', issuer, subject.kind, subject.id, tenant ?? ''];
  return ['authId', issuer, authId];
}

/** 128 bits. Callers choose their ids: `{`, `:` and the like must neither collide nor name another slot. */
export function hashOf(parts: readonly string[]): string {
  return createHash('sha256').update(JSON.stringify(parts)).digest('base64url').slice(0, 22);
}

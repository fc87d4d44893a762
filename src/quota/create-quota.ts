import { channel } from 'node:diagnostics_channel';
import type { IncomingMessage } from 'node:http';
import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import type { Middleware } from '../http/middleware.js';
import { answerJson } from '../http/problem.js';
import type { Identity } from '../identity/ambient.cjs';
import { refuse } from '../request/refuse.js';
import { knownRequestState } from '../request/request-state.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import type { Lifecycle } from '../runtime/lifecycle.js';
import type { BoundPlan } from './bound-plan.js';
import { PlanBook, type PlanOf } from './plan-book.js';
import { attachDesk, QuotaDesk } from './quota-desk.js';
import type { QuotaPolicy } from './quota-policy.js';
import type { QuotaOp, QuotaStore, TakeResult } from './quota-store.js';
import { remainingUnits } from './rate-limit-headers.js';

export interface QuotaOptions {
  /** Where counters live: `memoryQuotaStore()` for one process, `redisQuotaStore(redis)` for many. */
  readonly store: QuotaStore;
  /** Plans by name. A request is admitted only if all policies of its plan admit it; denied requests consume nothing. */
  readonly plans: Readonly<Record<string, readonly QuotaPolicy[]>>;
  /** For callers without a plan, and with an unknown one. Default: they are answered with 503. */
  readonly defaultPlan?: string;
  /** Overrides the identity's `plan`. Synchronous. What it throws is a 503. */
  readonly planOf?: PlanOf;
  /** Processes that share the limits, for `onStoreError: 'local'`: each falls back to ⌈limit / replicas⌉. Default 1. */
  readonly replicas?: number;
  readonly clock?: Clock;
}

/** Where a caller stands with one policy. */
export interface QuotaStanding {
  readonly policy: string;
  readonly unit: string;
  readonly limit: number;
  readonly used: number;
  readonly remaining: number;
  /** Seconds until everything is free again without further use. */
  readonly resetSeconds: number;
  /** Seconds until one unit would fit: 0 when it fits now, null when waiting does not help. */
  readonly retrySeconds: number | null;
}

/** Plans and their counters. `enforceQuota` holds requests to them. */
export interface Quota extends Lifecycle {
  /** Where a caller stands. Nothing is consumed. @throws AccessError `quota_unavailable`. */
  peek(identity: Identity): Promise<readonly QuotaStanding[]>;
  /** Forgets what a caller has used, of one policy or of all. @throws AccessError `quota_unavailable`. */
  reset(identity: Identity, options?: { policy?: string }): Promise<void>;
  /** A middleware behind `authenticate` that answers GET with where the caller stands, as JSON. */
  handler(): Middleware;
}

const failures = channel('tollkeeper:quota');

/**
 * Limits per identity, from the caller's plan, decided atomically.
 *
 * @example
 * const quota = createQuota({
 *   store: memoryQuotaStore(),
 *   plans: { free: [{ name: 'burst', per: 'subject', unit: 'requests', limit: 60, window: { kind: 'gcra', periodSeconds: 60 } }] },
 *   defaultPlan: 'free',
 * })
 * app.use(authenticate({ verifiers }), enforceQuota({ quota }))
 * @throws TypeError that lists every problem of the options.
 */
export function createQuota(options: QuotaOptions): Quota {
  const parser = new OptionsParser('createQuota');
  const given = parser.known(options, ['store', 'plans', 'defaultPlan', 'planOf', 'replicas', 'clock']);
  const { store, defaultPlan, planOf, clock = systemClock } = given;
  if (typeof store?.take !== 'function' || typeof store.settle !== 'function') {
    parser.problem('store must be a quota store (did you call its factory?)');
  }
  const book = new PlanBook(given.plans, defaultPlan, planOf, parser);
  const replicas = parser.number('replicas', given.replicas, 1, { min: 1, integer: true });
  if (store?.leased === true) {
    for (const [name, policies] of Object.entries(given.plans ?? {})) {
      if (!Array.isArray(policies) || policies.every((policy) => policy?.window?.kind === 'calendar')) continue;
      parser.problem(`plans.${name}: leases need calendar windows`);
    }
  }
  parser.done();
  const desk = new QuotaDesk({ store, book, replicas, clock });

  async function peek(identity: Identity): Promise<readonly QuotaStanding[]> {
    const { bound, result, ops } = await standing(identity);
    return bound.policies.map((policy, index) => {
      const op = ops[index] as QuotaOp;
      const standingOf = result.ops[index] as TakeResult['ops'][number];
      return {
        policy: policy.name,
        unit: policy.unit,
        limit: policy.limit,
        used: standingOf.used,
        remaining: remainingUnits(op, standingOf),
        resetSeconds: Math.ceil(standingOf.resetMs / 1_000),
        retrySeconds: standingOf.retryMs === null ? null : Math.ceil(standingOf.retryMs / 1_000),
      };
    });
  }

  async function standing(identity: Identity): Promise<{ bound: BoundPlan; result: TakeResult; ops: QuotaOp[] }> {
    return guarded(async () => {
      const bound = book.of(identity);
      const ops = bound.plainOps.map((op) => ({ ...op, cost: Math.max(op.cost, 1) }));
      return { bound, ops, result: await store.take(bound.slot, ops, { mode: 'peek' }) };
    });
  }

  async function guarded<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (cause) {
      if (cause instanceof AccessError) throw cause;
      if (failures.hasSubscribers) failures.publish({ type: 'store_error', cause });
      throw new AccessError('quota_unavailable', { reason: 'quota: the store failed' });
    }
  }

  const quota: Quota = {
    peek,
    async reset(identity, { policy } = {}) {
      await guarded(async () => {
        const bound = book.of(identity);
        const ops = bound.plainOps.filter((_, index) => policy === undefined || bound.policies[index]?.name === policy);
        if (policy !== undefined && ops.length === 0) throw new TypeError('reset: the plan has no policy of this name');
        await store.reset(bound.slot, ops);
      });
    },
    handler() {
      return function quotaHandler(req, res, next) {
        const identity = identityFor(req);
        if (identity === undefined) {
          return refuse(req, res, next, new AccessError('missing_credentials'), 'missing_credentials');
        }
        peek(identity).then(
          (policies) => answerJson(res, 200, { 'cache-control': 'no-store' }, { policies }),
          (error) => refuse(req, res, next, error, 'quota_unavailable'),
        );
      };
    },
    async ready(signal) {
      await store.ready?.(signal);
    },
    async close(signal) {
      await store.close?.(signal);
    },
  };
  return attachDesk(quota, desk);
}

function identityFor(req: IncomingMessage): Identity | undefined {
  return knownRequestState(req)?.identity;
}

import type { Plan } from '../identity/ambient.cjs';

/** A registered API client: it groups tokens (a customer, an instance). Instants are whole epoch seconds. */
export interface ClientRecord {
  readonly id: string;
  /** Counted up with every change, from 1: whoever writes names the version that was read. */
  readonly version: number;
  /** Unique within the tenant; among clients without a tenant, unique too. */
  readonly name: string;
  readonly tenant?: string;
  readonly plan?: Plan;
  readonly description?: string;
  /** The app's own data: JSON. */
  readonly metadata?: Readonly<Record<string, unknown>>;
  readonly createdAt: number;
  readonly updatedAt: number;
}

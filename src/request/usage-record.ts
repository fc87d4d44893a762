/** Where an amount comes from, from the strongest to the weakest; mixed bases become the weakest. */
export type Basis = 'reported' | 'measured' | 'estimated';

/** An amount that was used. `value` is a safe integer of at least 0; fractions are counted in micro-units. */
export interface Quantity {
  value: number;
  basis: Basis;
}

/** What `meter()` knows about the request, for the usage handle. */
export interface UsageAdmission {
  /** The usage event's id. */
  readonly id: string;
  /** Makes what was used so far durable. */
  checkpoint(): void;
  /** Something was reported after the end: it is ignored and counted. */
  late(): void;
}

/** What was used for one request so far. Plain data on the request's state. */
export interface UsageRecord {
  quantities: Record<string, Quantity> | undefined;
  dimensions: Record<string, string | number | boolean> | undefined;
  /** Set at admission. */
  admission: UsageAdmission | undefined;
  /** The response is over: what comes now is ignored and counted. */
  closed: boolean;
}

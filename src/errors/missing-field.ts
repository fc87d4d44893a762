/** A field that billing may require of a request. */
export type BillingField = 'authId' | 'tenant' | 'clientId' | 'resource.type' | 'resource.id';

/** A field that is missing, and the header that would supply it where the caller comes through an edge. */
export interface MissingField {
  readonly field: BillingField;
  readonly header?: string;
}

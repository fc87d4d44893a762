/**
 * The types that users augment and the ambient types of `req`, in one types-only file that the ESM and the CJS build share:
 * an augmentation of `Register` is seen by both.
 */

/**
 * Augment this interface to type scopes, plans and dimensions through the whole library.
 *
 * @example
 * declare module 'tollkeeper' {
 *   interface Register {
 *     scope: 'reports:read' | 'reports:write'
 *     plan: 'free' | 'pro'
 *     dimensions: { model: string }
 *   }
 * }
 * // requireScope('reports:raed') does not compile any more
 */
// biome-ignore lint/suspicious/noEmptyInterface: it is empty until a user augments it.
export interface Register {}

/** A scope, `resource:action` (RFC 6749 §3.3): opaque, matched exactly. Narrowed by `Register['scope']`. */
export type Scope = Register extends { scope: infer S extends string } ? S : string;

/** A plan's name. Narrowed by `Register['plan']`. */
export type Plan = Register extends { plan: infer P extends string } ? P : string;

/** What a usage event can be broken down by. Narrowed by `Register['dimensions']`. */
export type Dimensions = Register extends { dimensions: infer D } ? D : Record<string, string | number | boolean>;

/** What kind of party the subject is. The kind never implies a privilege. */
export type SubjectKind = 'user' | 'service' | 'workload' | 'organization';

/** A party: a kind, and an id that is unique within its issuer. */
export interface Subject {
  readonly kind: SubjectKind;
  readonly id: string;
}

/** A resource, by its type and its id within the type. */
export interface Resource {
  readonly type: string;
  readonly id: string;
}

/** Who is calling: normalised from whatever credential was shown, and deeply immutable. */
export interface Identity {
  /** The party that the credential speaks for (`sub`). */
  readonly subject: Subject;
  /** Who vouches for it: the JWT's `iss`, or the verifier's name. */
  readonly issuer: string;
  /** The stable key that usage is attributed to; unique per issuer, kept when a credential is rotated. */
  readonly authId: string;
  /** The account or organization whose boundary applies. */
  readonly tenant?: string;
  /** The registered API client (`client_id`, RFC 6749 §2.2). */
  readonly clientId?: string;
  /** The id of this one token (`jti`, RFC 7519 §4.1.7). */
  readonly tokenId?: string;
  /** The key that authenticated the credential: a JWS `kid`, or a pepper's id. */
  readonly keyId?: string;
  /** What the caller may do: a set without mutators. */
  readonly scopes: ReadonlySet<Scope>;
  /** The name of the caller's plan. */
  readonly plan?: Plan;
  /** The only resources that this identity may touch. Absent: no constraint is stated. Empty: nothing. */
  readonly resources?: readonly Resource[];
  /** Ranked: the first wins. */
  readonly groups: readonly string[];
  /** Who acts on the subject's behalf (`act`, RFC 8693 §4.1). */
  readonly actor?: Subject;
  /** What the credential is bound to (`cnf`, RFC 7800): a DPoP key's thumbprint, a client certificate's. */
  readonly confirmation?: { readonly jkt?: string; readonly x5tS256?: string };
  /** Seconds since the epoch. */
  readonly issuedAt?: number;
  /** Seconds since the epoch. */
  readonly expiresAt?: number;
  /** The name of the verifier that accepted the credential. */
  readonly verifier: string;
  /** The JWT's claims or the edge's headers, verbatim. */
  readonly claims: Readonly<Record<string, unknown>>;
}

declare global {
  namespace Express {
    interface Request {
      /** Who is calling, attached by `authenticate()`. */
      identity?: Identity;
    }
  }
}

declare module 'node:http' {
  interface IncomingMessage {
    /** Who is calling, attached by `authenticate()`. */
    identity?: Identity;
  }
}

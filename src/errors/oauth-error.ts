/** What an authorization server answers: RFC 6749 §5.2, RFC 7009 §2.2.1, RFC 8707 §2, and two of ours. */
const STATUS = {
  /** The request is malformed, or a subject token is refused (RFC 8693 §2.2.2). */
  invalid_request: 400,
  /** The client is unknown, or its authentication failed. */
  invalid_client: 401,
  invalid_grant: 400,
  /** The client may not do that: this grant, or something with another client's token. */
  unauthorized_client: 400,
  unsupported_grant_type: 400,
  /** A scope is malformed, or more than the client has. */
  invalid_scope: 400,
  /** The resource or audience is unknown, or must be named and is not. */
  invalid_target: 400,
  unsupported_token_type: 400,
  /** The client may not act for this tenant. */
  tenant_mismatch: 403,
  /** Try again: a key, a store or the server is out of reach. */
  temporarily_unavailable: 503,
} as const;

export type OAuthErrorCode = keyof typeof STATUS;

export interface OAuthErrorOptions {
  /** The HTTP status. Default: by the code; 400 for one that is not ours. */
  readonly status?: number;
  /** For operators. It must hold nothing out of a credential. */
  readonly reason?: string;
  readonly cause?: unknown;
}

/**
 * What went wrong when a token was asked for: thrown by the issuer, and by the token client with the server's own code.
 * Recognise it by `code`.
 */
export class OAuthError extends Error {
  override readonly name: string = 'OAuthError';
  /** A code of OAuth. Servers may have further ones. */
  readonly code: OAuthErrorCode | (string & {});
  readonly status: number;
  /** The precise reason, for operators. Not enumerable. */
  declare readonly reason: string | undefined;

  constructor(code: OAuthErrorCode | (string & {}), description: string, options: OAuthErrorOptions = {}) {
    super(description, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.status = options.status ?? (Object.hasOwn(STATUS, code) ? STATUS[code as OAuthErrorCode] : 400);
    Object.defineProperty(this, 'reason', { value: options.reason, enumerable: false });
  }
}

/** Whether a value is an OAuth error, of whichever copy of this package. */
export function isOAuthError(value: unknown): value is OAuthError {
  return value instanceof Error && value.name === 'OAuthError' && typeof (value as OAuthError).code === 'string';
}

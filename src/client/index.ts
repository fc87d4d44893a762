export { isOAuthError, OAuthError, type OAuthErrorCode, type OAuthErrorOptions } from '../errors/oauth-error.js';
export type { ClientCredentials } from './client-credentials.js';
export { createTokenClient, type TokenClient, type TokenClientOptions } from './create-token-client.js';

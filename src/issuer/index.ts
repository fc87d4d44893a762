export { type ProtectedResourceOptions, protectedResourceMetadata } from '../http/protected-resource-metadata.js';
export { hashClientSecret } from './client-secret.js';
export { createIssuer, type Issuer, type IssueServiceToken } from './create-issuer.js';
export type { IssuerHandler } from './issuer-handler.js';
export type { IssuerOptions } from './issuer-options.js';
export { type MemoryReplayStoreOptions, memoryReplayStore } from './memory-replay-store.js';
export type { ReplayStore } from './replay-store.js';
export type { ServiceClientOptions } from './service-client.js';
export type { ServiceToken } from './service-token-endpoint.js';

export { type AuthenticateOptions, authenticate } from './authenticate/authenticate.js';
export type { ClaimMap, ClaimSource } from './authenticate/claim-map.js';
export type { ClaimMatch } from './authenticate/claim-match.js';
export type { CacheOptions } from './authenticate/credential-cache.js';
export { type EdgeHeader, type SignedRequest, signEdgeHeaders } from './authenticate/edge-signature.js';
export type { EdgeTrust } from './authenticate/edge-trust.js';
export {
  type EdgeField,
  type EdgeHeaders,
  type EdgeMapping,
  type EdgeVerifierOptions,
  edgeVerifier,
} from './authenticate/edge-verifier.js';
export {
  type IntrospectionCredentials,
  type IntrospectionVerifierOptions,
  introspectionVerifier,
} from './authenticate/introspection-verifier.js';
export type { IssuerResolver } from './authenticate/issuer-directory.js';
export type { JwtIssuerDefaults, JwtIssuerOptions } from './authenticate/jwt-issuer.js';
export { type JwtVerifierOptions, jwtVerifier } from './authenticate/jwt-verifier.js';
export { type OpaqueTokenVerifierOptions, opaqueTokenVerifier } from './authenticate/opaque-token-verifier.js';
export {
  type StaticToken,
  type StaticTokenVerifierOptions,
  staticTokenVerifier,
} from './authenticate/static-token-verifier.js';
export { type StripEdgeHeadersOptions, stripEdgeHeaders } from './authenticate/strip-edge-headers.js';
export type { Identify } from './authenticate/token-identity.js';
export type {
  IncompleteResult,
  Presented,
  Scheme,
  Verified,
  VerifiedResult,
  Verifier,
} from './authenticate/verifier.js';
export type { WorkloadIssuer } from './authenticate/workload-issuers.js';
export type { WorkloadKind } from './authenticate/workload-kind.js';
export type { WorkloadGrant, WorkloadPolicy } from './authenticate/workload-policy.js';
export { type WorkloadVerifierOptions, workloadVerifier } from './authenticate/workload-verifier.js';
export { type RequireNetworkOptions, requireNetwork } from './authorize/require-network.js';
export { type RequireResourceOptions, requireResource } from './authorize/require-resource.js';
export { requireScope, type ScopeRule } from './authorize/require-scope.js';
export { requireSubject } from './authorize/require-subject.js';
export { type RequireTenantOptions, requireTenant } from './authorize/require-tenant.js';
export { AccessError, type AccessErrorCode, type AccessErrorOptions, isAccessError } from './errors/access-error.js';
export type { BillingField, MissingField } from './errors/missing-field.js';
export { isOAuthError, OAuthError, type OAuthErrorCode, type OAuthErrorOptions } from './errors/oauth-error.js';
export { isRegistryError, RegistryError, type RegistryErrorCode } from './errors/registry-error.js';
export { isSinkError, type SinkAction, SinkError, type SinkErrorOptions } from './errors/sink-error.js';
export type { Middleware, Next } from './http/middleware.js';
export { type ProtectedResourceOptions, protectedResourceMetadata } from './http/protected-resource-metadata.js';
export type * from './identity/ambient.cjs';
export type { IdentityInput } from './identity/create-identity.js';
export type { Fetch } from './keys/fetch-json.js';
export type { JWK } from './keys/jwk.js';
export type { JwtAlgorithm } from './keys/jwt-algorithm.js';
export type { JwkSet, KeyOptions, RemoteKeyOptions } from './keys/key-options.js';
export { createKeyRing, type KeyInfo, type KeyRing } from './keys/key-ring.js';
export type { PublishedKeys } from './keys/key-ring-keys.js';
export type { KeyRingOptions, KeyRingSource } from './keys/key-ring-options.js';
export { type KeyRecord, type KeyState, type KeyStore, memoryKeyStore, type StoredKeyRing } from './keys/key-store.js';
export type { RefreshSettings } from './keys/refreshed-keys.js';
export type { ExternalKey, Signer, SigningAlgorithm } from './keys/signing-key.js';
export type { FinishedEvent } from './meter/admission.js';
export { type CloudEventsSinkOptions, cloudEventsSink } from './meter/cloud-events-sink.js';
export type { LogStats } from './meter/event-log.js';
export { jsonlSink } from './meter/jsonl-sink.js';
export type { Measured } from './meter/measure-bytes.js';
export { type MemorySink, memorySink, type SinkOptions } from './meter/memory-sink.js';
export { type MeterOptions, meter, type Quantities } from './meter/meter.js';
export { type OpenMeterSinkOptions, openMeterSink } from './meter/open-meter-sink.js';
export {
  type CloseOptions,
  createPipeline,
  type Pipeline,
  type PipelineOptions,
  type PipelineStats,
} from './meter/pipeline.js';
export type { ReplayResult } from './meter/replay.js';
export { replayDeadLetters } from './meter/replay-dead-letters.js';
export { type ClosablePart, type ShutdownOptions, shutdown } from './meter/shutdown.js';
export type { Sink, SinkLimits, SourceNote, Verdict } from './meter/sink.js';
export type { SinkStats } from './meter/sink-worker.js';
export type { SpoolOptions } from './meter/spool-options.js';
export type { FsyncPolicy } from './meter/spool-writer.js';
export { type CloudEvent, toCloudEvent } from './meter/to-cloud-event.js';
export type { StatedQuantities, UsageDraft } from './meter/usage-draft.js';
export type { UsageEvent } from './meter/usage-event.js';
export { createQuota, type Quota, type QuotaOptions, type QuotaStanding } from './quota/create-quota.js';
export { type EnforceQuotaOptions, enforceQuota, type QuotaCosts } from './quota/enforce-quota.js';
export { type LimitAddressOptions, limitAddress } from './quota/limit-address.js';
export { type MemoryQuotaStore, type MemoryQuotaStoreOptions, memoryQuotaStore } from './quota/memory-quota-store.js';
export type { PlanOf } from './quota/plan-book.js';
export type { QuotaPolicy, QuotaScope, QuotaWindow } from './quota/quota-policy.js';
export type {
  Charge,
  OpResult,
  QuotaOp,
  QuotaStore,
  StoreWindow,
  TakeOptions,
  TakeResult,
} from './quota/quota-store.js';
export type { HeadersForm } from './quota/rate-limit-headers.js';
export { identitiesOf, identityOf } from './request/identity-of.js';
export type { AnswerSettings, Attribution, Outcome } from './request/request-state.js';
export { type Usage, usageOf } from './request/usage-of.js';
export type { Basis, Quantity } from './request/usage-record.js';
export { createRevocations, type RevocationsOptions } from './revocation/create-revocations.js';
export { type LocalRevocationStore, memoryRevocationStore } from './revocation/memory-revocation-store.js';
export type { RevocationEntry, RevocationPage, RevocationStore } from './revocation/revocation-store.js';
export type {
  ChangeTarget,
  RevocationAnswer,
  Revocations,
  RevocationTarget,
  RevokeOptions,
} from './revocation/revocations.js';
export type { Clock } from './runtime/clock.js';
export type { ClientRecord } from './tokens/client-record.js';
export { createTokenRegistry, type TokenRegistryOptions } from './tokens/create-token-registry.js';
export { memoryTokenStore } from './tokens/memory-token-store.js';
export type { Pepper, Peppers } from './tokens/pepper-ring.js';
export type { TokenEnv, TokenKind } from './tokens/token-format.js';
export type { StoredToken, TokenRecord } from './tokens/token-record.js';
export type {
  ClientInput,
  ClientPatch,
  IssuedToken,
  ListQuery,
  Page,
  PepperCount,
  RotateOptions,
  TokenInput,
  TokenPatch,
  TokenRegistry,
} from './tokens/token-registry.js';
export type { TokenAnswer } from './tokens/token-resolver.js';
export type { PageQuery, StoredPage, TokenLookup, TokenStore } from './tokens/token-store.js';
export { type CsvOptions, eventsToCsv, eventsToJsonl } from './usage/export-events.js';
export type {
  EventFilter,
  Ledger,
  LedgerDifference,
  SourceAudit,
  UsageFilter,
  UsageKey,
  UsageQuery,
  UsageReport,
  UsageRow,
  UsageTotal,
} from './usage/ledger.js';
export { memoryLedger } from './usage/memory-ledger.js';

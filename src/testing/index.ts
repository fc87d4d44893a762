export { asIdentity } from './as-identity.js';
export type { ContractCase } from './contract-case.js';
export { type LedgerUnderTest, ledgerContract, usageEvent } from './ledger-contract.js';
export { type ManualClock, manualClock } from './manual-clock.js';
export { type QuotaStoreUnderTest, quotaStoreContract } from './quota-store-contract.js';
export { type RevocationStoresUnderTest, revocationStoreContract } from './revocation-contract.js';
export { type TestAlgorithm, type TestIssuer, type TestIssuerOptions, testIssuer } from './test-issuer.js';
export { type TokenStoreUnderTest, tokenStoreContract } from './token-store-contract.js';
export { type VerifierUnderTest, verifierContract } from './verifier-contract.js';

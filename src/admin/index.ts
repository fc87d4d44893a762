export { type AdminHandler, type AdminRouterOptions, adminRouter } from './admin-router.js';
export type { Guard } from './run-guard.js';

import { RegistryError } from '../errors/registry-error.js';

/** How often a change is tried again when somebody else changed the record at the same time. */
const MAX_ATTEMPTS = 5;

/** A record with other fields: what is undefined stays as it was, `null` takes a field away. */
export function changedRecord<T extends object>(record: T, fields: object): T {
  const changed = { ...record } as Record<string, unknown>;
  for (const [name, value] of Object.entries(fields)) {
    if (value === null) delete changed[name];
    else if (value !== undefined) changed[name] = value;
  }
  return changed as T;
}

/**
 * Makes a change that names the version it read, again while it answers undefined: somebody else was faster.
 *
 * @throws RegistryError `conflict` when somebody else is always faster.
 */
export async function retryChange<T>(what: string, attempt: () => Promise<T | undefined>): Promise<T> {
  for (let count = 0; count < MAX_ATTEMPTS; count++) {
    const result = await attempt();
    if (result !== undefined) return result;
  }
  throw new RegistryError('conflict', [`the ${what} was changed by somebody else at the same time`]);
}

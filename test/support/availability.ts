import { accessSync, constants, readdirSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { describe, it } from 'vitest';

export type ServerName = 'redis' | 'postgres' | 'nats';

/** Debian keeps the server's own programs out of the PATH. */
const DEBIAN_POSTGRES = '/usr/lib/postgresql';

/** The full path of a program, or undefined when it is not installed. */
export function findBinary(name: string): string | undefined {
  return binaryFolders()
    .map((folder) => join(folder, name))
    .find(isExecutable);
}

export const hasRedis = findBinary('redis-server') !== undefined;
export const hasPostgres = findBinary('postgres') !== undefined && findBinary('initdb') !== undefined;
export const hasNats = findBinary('nats-server') !== undefined;

const available: Record<ServerName, boolean> = { redis: hasRedis, postgres: hasPostgres, nats: hasNats };

/**
 * `describe` for tests that need a real server (or several). Where one is not installed the tests are skipped with a
 * warning; with `CI=true` they fail, so that nothing is skipped unseen.
 */
export function describeWith(servers: ServerName | readonly ServerName[], name: string, fn: () => void): void {
  const missing = [servers].flat().filter((server) => !available[server]);
  if (missing.length === 0) {
    describe(name, fn);
  } else if (process.env.CI === 'true') {
    it(`${name}: needs ${missing.join(' and ')}`, () => {
      throw new Error(`not installed: ${missing.join(', ')}`);
    });
  } else {
    console.warn(`SKIPPED: "${name}", because ${missing.join(' and ')} is not installed`);
    describe.skip(name, fn);
  }
}

function binaryFolders(): string[] {
  const folders = (process.env.PATH ?? '').split(delimiter).filter((folder) => folder !== '');
  return [...folders, '/usr/local/sbin', '/usr/sbin', '/sbin', ...debianPostgres()];
}

function debianPostgres(): string[] {
  try {
    const versions = readdirSync(DEBIAN_POSTGRES).sort((a, b) => Number(b) - Number(a));
    return versions.map((version) => join(DEBIAN_POSTGRES, version, 'bin'));
  } catch {
    return [];
  }
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

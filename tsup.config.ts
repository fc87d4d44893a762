import { copyFile, mkdir } from 'node:fs/promises';
import { defineConfig } from 'tsup';

/** The ambient types: one types-only file that the ESM and the CJS build share, so that an augmentation holds for both. */
const AMBIENT = 'identity/ambient.d.cts';

export default defineConfig(({ outDir = 'dist' }) => ({
  // One entry per public folder: a subpath export is a `src/` folder.
  entry: {
    index: 'src/index.ts',
    admin: 'src/admin/index.ts',
    client: 'src/client/index.ts',
    issuer: 'src/issuer/index.ts',
    postgres: 'src/postgres/index.ts',
    redis: 'src/redis/index.ts',
    sqlite: 'src/sqlite/index.ts',
    testing: 'src/testing/index.ts',
  },
  format: ['esm', 'cjs'],
  target: 'node20',
  platform: 'node',
  dts: true,
  // Shared code lies in shared chunks: without it every CJS subpath would have a copy of its own.
  splitting: true,
  treeshake: false,
  sourcemap: false,
  clean: true,
  // Left out of every bundled declaration, and copied to the same relative place instead.
  external: [/\/ambient\.cjs$/],
  onSuccess: async () => {
    await mkdir(`${outDir}/identity`, { recursive: true });
    await copyFile(`src/${AMBIENT}`, `${outDir}/${AMBIENT}`);
  },
}));

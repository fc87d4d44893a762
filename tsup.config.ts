import { copyFileSync, mkdirSync, rmSync } from 'node:fs';
import { defineConfig } from 'tsup';

/** The ambient types: one types-only file that the ESM and the CJS build share, so that an augmentation holds for both. */
const AMBIENT = 'identity/ambient.d.cts';

export default defineConfig(({ outDir = 'dist' }) => {
  // Not by `clean: true`: that one also removes declarations while the build runs, the copied one too.
  rmSync(outDir, { recursive: true, force: true });
  return {
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
    // `node:sqlite` has no other name.
    removeNodeProtocol: false,
    dts: true,
    // Shared code lies in shared chunks: without it every CJS subpath would have a copy of its own.
    splitting: true,
    treeshake: false,
    sourcemap: false,
    // Left out of every bundled declaration, and copied to the same relative place instead.
    external: [/\/ambient\.cjs$/],
    onSuccess: async () => {
      mkdirSync(`${outDir}/identity`, { recursive: true });
      copyFileSync(`src/${AMBIENT}`, `${outDir}/${AMBIENT}`);
    },
  };
});

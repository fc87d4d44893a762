import { defineConfig } from 'tsup';

/** One entry per public folder: a subpath export is a `src/` folder. */
export default defineConfig({
  entry: {
    index: 'src/index.ts',
  },
  format: ['esm', 'cjs'],
  target: 'node20',
  platform: 'node',
  dts: true,
  splitting: true,
  treeshake: false,
  sourcemap: false,
  clean: true,
});

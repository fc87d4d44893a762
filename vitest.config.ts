import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

const src = fileURLToPath(new URL('./src', import.meta.url));

/** Set by CI: the same command, with coverage and with a report that can be counted. */
const { COVERAGE, TEST_REPORT } = process.env;

export default defineConfig({
  resolve: {
    // Tests import the package by its public names and run its sources.
    alias: [
      { find: /^tollkeeper$/, replacement: `${src}/index.ts` },
      { find: /^tollkeeper\/(.+)$/, replacement: `${src}/$1/index.ts` },
    ],
  },
  test: {
    include: ['test/**/*.test.ts'],
    testTimeout: 30_000,
    hookTimeout: 60_000,
    // Many tests wait for a server or a process of their own: two files at a time are faster on one core too.
    maxWorkers: 2,
    reporters: TEST_REPORT ? ['default', ['json', { outputFile: TEST_REPORT }]] : ['default'],
    coverage: {
      enabled: COVERAGE === 'true',
      provider: 'v8',
      include: ['src/**/*.ts'],
      thresholds: { lines: 95, branches: 95 },
      reporter: ['text', 'json-summary'],
    },
  },
});

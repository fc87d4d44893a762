import { readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { compile, RESOLUTIONS } from './package/compile.js';
import { ROOT } from './package/packed.js';
import { tempFolder } from './support/index.js';

const TYPES = join(ROOT, 'test/types');
const EXPECTATION = /^[ \t]*\/\/ @ts-expect-error.*$/gm;

/** Each program by itself: an augmentation of `Register` holds in a whole program. */
const PROGRAMS = {
  'without an augmentation': ['options.ts'],
  'with a registered scope': ['register.ts', 'registered.ts'],
};

const sources = {
  paths: { tollkeeper: [`${ROOT}/src/index.ts`], 'tollkeeper/*': [`${ROOT}/src/*/index.ts`] },
  // The sources are written for the compiler's default.
  exactOptionalPropertyTypes: false,
  skipLibCheck: true,
  ...RESOLUTIONS.nodenext,
};

/** The library's own sources are not written for an augmented program; a user compiles against declarations. */
const isTheirs = (problem: string) => !/^(\.\.\/)*[^ ]*\bsrc\//.test(problem);

describe('the types of the public API', () => {
  it('are all tried', () => {
    expect(Object.values(PROGRAMS).flat().sort()).toEqual(readdirSync(TYPES).sort());
  });

  it.each(Object.entries(PROGRAMS))(
    'refuse what is wrong and nothing else, %s',
    (_name, files) => {
      const paths = files.map((file) => join(TYPES, file));
      expect(compile(ROOT, paths, sources).filter(isTheirs)).toEqual([]);
    },
    300_000,
  );

  it.each(Object.entries(PROGRAMS))(
    'are really what refuses it, %s',
    (_name, files) => {
      const folder = tempFolder('types');
      symlinkSync(join(ROOT, 'node_modules'), join(folder.path, 'node_modules'), 'dir');
      writeFileSync(join(folder.path, 'package.json'), '{ "type": "module" }');
      const expected: string[] = [];
      const paths = files.map((file) => {
        const text = readFileSync(join(TYPES, file), 'utf8');
        for (const [index, line] of text.split('\n').entries()) {
          // The error stands on the next line, and the lines count from 1.
          if (/^\s*\/\/ @ts-expect-error/.test(line)) expected.push(`${file}:${index + 2}`);
        }
        writeFileSync(join(folder.path, file), text.replace(EXPECTATION, '//'));
        return join(folder.path, file);
      });
      const found = compile(folder.path, paths, sources)
        .filter(isTheirs)
        .map((problem) => problem.split(' ')[0]);
      expect([...new Set(found)].sort()).toEqual(expected.sort());
      expect(expected.length).toBeGreaterThan(5);
      folder.remove();
    },
    300_000,
  );
});

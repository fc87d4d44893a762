import { copyFileSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, relative, sep } from 'node:path';
import { gzipSync } from 'node:zlib';
import { checkPackage, createPackageFromTarballData } from '@arethetypeswrong/core';
import { build, type Metafile } from 'esbuild';
import { publint } from 'publint';
import ts from 'typescript';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import tsupConfig from '../tsup.config.js';
import { compile, RESOLUTIONS } from './package/compile.js';
import { consumerProgram, FRAMEWORKS, LANGUAGES } from './package/consumer-program.js';
import { link, type Packed, pack, ROOT, runProgram } from './package/packed.js';
import { tempFolder } from './support/index.js';

const SUBPATHS = ['admin', 'client', 'issuer', 'postgres', 'redis', 'sqlite', 'testing'];
/** So that growth is noticed. The aim of 40 KB is not reached: the whole pipeline, its spool included, is in the root. */
const MAX_ROOT_BYTES = 80 * 1024;

const manifest = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));

let packed: Packed;

beforeAll(async () => {
  packed = await pack();
}, 180_000);

afterAll(() => packed?.remove());

describe('the tarball', () => {
  it('has only the built code, the manifest and the documents', () => {
    const files = filesIn(packed.folder).filter((file) => !file.startsWith('dist/'));
    expect(files.sort()).toEqual(['CHANGELOG.md', 'LICENSE', 'README.md', 'SECURITY.md', 'package.json']);
    expect(filesIn(packed.folder).filter((file) => /stray|\.test\.|\.tsbuildinfo|metafile|\.map$/.test(file))).toEqual(
      [],
    );
  });

  it('satisfies publint', async () => {
    const { messages } = await publint({ pkgDir: packed.folder, strict: true, pack: false });
    expect(messages).toEqual([]);
  });

  it('has the right types for every entry and module system', async () => {
    const data = new Uint8Array(readFileSync(packed.tarball));
    const result = await checkPackage(createPackageFromTarballData(data));
    if (!result.types) throw new Error('the package has no types');
    expect(Object.keys(result.entrypoints).sort()).toEqual(Object.keys(manifest.exports).sort());
    // node10 knows no exports map; nothing that the package runs on resolves like it.
    const problems = result.problems.filter(
      (problem) => !('resolutionKind' in problem && problem.resolutionKind === 'node10'),
    );
    expect(problems).toEqual([]);
  });

  it('supports the oldest Node that it names, and has no side effects', () => {
    expect(manifest.engines).toEqual({ node: '>=20.19' });
    expect(manifest.sideEffects).toBe(false);
    expect(manifest.type).toBe('module');
  });
});

describe('the entries', () => {
  it('are the same in the exports map, in tsup and among the public folders', () => {
    // Its own output folder, because the configuration empties it.
    const scratch = tempFolder('tsup');
    const config = typeof tsupConfig === 'function' ? tsupConfig({ outDir: join(scratch.path, 'dist') }) : tsupConfig;
    const entry = 'entry' in config ? config.entry : {};
    expect(entry).toEqual({
      index: 'src/index.ts',
      ...Object.fromEntries(SUBPATHS.map((name) => [name, `src/${name}/index.ts`])),
    });
    const folders = readdirSync(join(ROOT, 'src'), { withFileTypes: true })
      .filter((folder) => folder.isDirectory() && readdirSync(join(ROOT, 'src', folder.name)).includes('index.ts'))
      .map(({ name }) => name);
    expect(folders.sort()).toEqual(SUBPATHS);
    const targets = (name: string) => ({
      import: { types: `./dist/${name}.d.ts`, default: `./dist/${name}.js` },
      require: { types: `./dist/${name}.d.cts`, default: `./dist/${name}.cjs` },
    });
    expect(manifest.exports).toEqual({
      '.': targets('index'),
      ...Object.fromEntries(SUBPATHS.map((name) => [`./${name}`, targets(name)])),
      './package.json': './package.json',
    });
    scratch.remove();
  });

  it('export the same names to import and to require', async () => {
    const program = (load: string) => `const names = {};
for (const entry of ${JSON.stringify(['tollkeeper', ...SUBPATHS.map((name) => `tollkeeper/${name}`)])}) {
  const module = ${load};
  names[entry] = Object.keys(module).filter((name) => module[name] !== undefined && !['default', 'module.exports'].includes(name)).sort();
}
console.log(JSON.stringify(names));
`;
    const [esm, cjs] = await Promise.all(
      [
        ['names.mjs', 'await import(entry)'],
        ['names.cjs', 'require(entry)'],
      ].map(async ([file = '', load = '']) => {
        writeFileSync(join(packed.consumers, file), program(load));
        return JSON.parse(await runProgram(join(packed.consumers, file)));
      }),
    );
    expect(esm).toEqual(cjs);
    expect(esm.tollkeeper).toContain('authenticate');
    for (const name of SUBPATHS)
      expect({ name, exports: esm[`tollkeeper/${name}`] }).not.toEqual({ name, exports: [] });
  });

  it('import nothing but Node and the runtime dependencies', () => {
    const wrong = filesIn(packed.folder)
      .filter((file) => /\.[cm]?(js|d\.ts|ts)$/.test(file))
      .flatMap((file) =>
        ts
          .preProcessFile(readFileSync(join(packed.folder, file), 'utf8'), true, true)
          .importedFiles.map(({ fileName }) => fileName)
          .filter((name) => !/^(\.{1,2}\/|node:)/.test(name) && !Object.hasOwn(manifest.dependencies, name))
          .map((name) => `${file} → ${name}`),
      );
    expect(wrong).toEqual([]);
  });

  it('declare their types without any other package, so that a CommonJS project needs none that is ESM alone', () => {
    const wrong = filesIn(packed.folder)
      .filter((file) => /\.d\.c?ts$/.test(file))
      .filter((file) => /from '(?!node:|\.{1,2}\/)/.test(readFileSync(join(packed.folder, file), 'utf8')));
    expect(wrong).toEqual([]);
  });

  it('read nothing from the environment', () => {
    const code = filesIn(packed.folder).filter((file) => /\.c?js$/.test(file));
    expect(code.length).toBeGreaterThan(SUBPATHS.length * 2);
    expect(code.filter((file) => readFileSync(join(packed.folder, file), 'utf8').includes('process.env'))).toEqual([]);
  });
});

describe('the root bundle', () => {
  it.each(['esm', 'cjs'] as const)('has no code of a subpath (%s)', (format) => {
    const { outputs } = JSON.parse(readFileSync(packed.metafile[format], 'utf8')) as Metafile;
    const inputs = inputsOf(outputs, format === 'esm' ? 'index.js' : 'index.cjs');
    expect(inputs).toContain('src/authenticate/authenticate.ts');
    expect(inputs.filter((input) => SUBPATHS.some((name) => input.startsWith(`src/${name}/`)))).toEqual([]);
    expect(inputs.filter((input) => !input.startsWith('src/'))).toEqual([]);
  });

  it(`is at most ${MAX_ROOT_BYTES / 1024} KB, minified and compressed`, async () => {
    const { outputFiles } = await build({
      entryPoints: [join(packed.folder, 'dist/index.js')],
      bundle: true,
      minify: true,
      write: false,
      format: 'esm',
      platform: 'node',
      external: Object.keys(manifest.dependencies),
    });
    const bytes = gzipSync(outputFiles[0]?.contents ?? '').length;
    console.log(`root bundle: ${(bytes / 1024).toFixed(1)} KB (minified, gzip, without lru-cache)`);
    expect(bytes).toBeGreaterThan(1024);
    expect(bytes).toBeLessThanOrEqual(MAX_ROOT_BYTES);
  });
});

describe('the ambient types', () => {
  it('lie in one file that every build shares', () => {
    const holding = filesIn(packed.folder)
      .filter((file) => /\.d\.c?ts$/.test(file))
      .filter((file) => /interface Register\b/.test(readFileSync(join(packed.folder, file), 'utf8')));
    expect(holding).toEqual(['dist/identity/ambient.d.cts']);
    for (const entry of ['dist/index.d.ts', 'dist/index.d.cts']) {
      expect(readFileSync(join(packed.folder, entry), 'utf8')).toContain("export * from './identity/ambient.cjs'");
    }
  });

  beforeAll(() => {
    link(packed.consumers, '@types/express');
    for (const [build, extension] of [
      ['esm', 'mts'],
      ['cjs', 'cts'],
    ]) {
      copyFileSync(join(ROOT, 'test/types/register.ts'), join(packed.consumers, `register.${extension}`));
      copyFileSync(join(ROOT, 'test/types/registered.ts'), join(packed.consumers, `use-${build}.${extension}`));
    }
  });

  it.each(Object.keys(RESOLUTIONS) as (keyof typeof RESOLUTIONS)[])(
    'hold in ESM, in CJS and in one program that sees both (%s)',
    (resolution) => {
      const at = (...files: string[]) => files.map((file) => join(packed.consumers, file));
      const check = (...files: string[]) => compile(packed.consumers, at(...files), RESOLUTIONS[resolution]);
      expect(check('use-esm.mts', 'register.mts')).toEqual([]);
      expect(check('use-cjs.cts', 'register.cts')).toEqual([]);
      expect(check('use-esm.mts', 'use-cjs.cts', 'register.mts')).toEqual([]);
      expect(check('use-esm.mts', 'use-cjs.cts', 'register.cts')).toEqual([]);
      // Without the augmentation every string is a scope: the expected errors do not come.
      // And a plan is any string, which is more than the function says that it returns.
      expect(check('use-esm.mts').filter((problem) => !/TS2578|TS2322/.test(problem))).toEqual([]);
      expect(check('use-esm.mts').length).toBeGreaterThan(3);
    },
    120_000,
  );
});

describe('the declarations of every entry', () => {
  it.each(Object.keys(RESOLUTIONS) as (keyof typeof RESOLUTIONS)[])(
    'compile where they are imported, in ESM and in CJS, with every library checked (%s)',
    (resolution) => {
      const entries = ['tollkeeper', ...SUBPATHS.map((name) => `tollkeeper/${name}`)];
      const text = entries.map((name, index) => `export type * as entry${index} from '${name}';`).join('\n');
      const files = ['mts', 'cts'].map((extension) => join(packed.consumers, `entries.${extension}`));
      for (const file of files) writeFileSync(file, text);
      expect(compile(packed.consumers, files, RESOLUTIONS[resolution])).toEqual([]);
    },
    120_000,
  );
});

describe('the packed package in a consumer', () => {
  const EXPECTED = {
    answers: [
      { status: 401, challenge: 'Bearer realm="consumer"', body: 'missing_credentials' },
      { status: 401, challenge: expect.stringContaining('error="invalid_token"'), body: 'invalid_token' },
      { status: 403, challenge: expect.stringContaining('scope="reports:read"'), body: 'insufficient_scope' },
      { status: 200, challenge: null, body: 'reader reader' },
    ],
    events: [
      {
        type: 'report.read',
        authId: 'reader',
        quantities: { requests: { value: 1, basis: 'measured' }, rows: { value: 3, basis: 'reported' } },
      },
    ],
  };

  beforeAll(() => {
    const typescript: string[] = [];
    for (const [name, { packages, module }] of Object.entries(FRAMEWORKS)) {
      const folder = join(packed.consumers, name);
      for (const [source, as] of Object.entries(packages)) link(folder, source, as);
      for (const language of Object.keys(LANGUAGES) as (keyof typeof LANGUAGES)[]) {
        const file = join(folder, `${language}-app.${language}`);
        writeFileSync(file, consumerProgram(module, language));
        if (language.endsWith('ts')) typescript.push(file);
      }
    }
    // Every TypeScript consumer in one program, which so sees both builds. The JavaScript is written beside.
    expect(compile(packed.consumers, typescript, { ...RESOLUTIONS.nodenext, emit: true })).toEqual([]);
    const esm = typescript.filter((file) => file.endsWith('.mts'));
    expect(compile(packed.consumers, esm, { ...RESOLUTIONS.bundler, esModuleInterop: true })).toEqual([]);
  }, 120_000);

  it.each(
    Object.keys(FRAMEWORKS).flatMap((framework) =>
      Object.entries(LANGUAGES).map(([language, name]) => ({ framework, language, name })),
    ),
  )('authenticates, authorises and meters: $name, $framework', async ({ framework, language }) => {
    const file = `${language}-app.${language.replace('ts', 'js')}`;
    const output = await runProgram(join(packed.consumers, framework, file));
    expect(JSON.parse(output)).toEqual(EXPECTED);
  });

  it('shares identities, errors and usage between its ESM and its CJS copy in one process', async () => {
    const file = join(packed.consumers, 'both.mjs');
    writeFileSync(
      file,
      `import { createRequire } from 'node:module';
import { createServer } from 'node:http';
import * as esm from 'tollkeeper';
const cjs = createRequire(import.meta.url)('tollkeeper');
const identity = { subject: { kind: 'user', id: 'u' }, authId: 'a', scopes: ['x:read'] };
const sink = esm.memorySink();
const pipeline = esm.createPipeline({ sinks: [sink], spool: 'memory', source: 'both' });
const verifier = cjs.staticTokenVerifier({ tokens: [{ token: 'both-0123456789-0123456789-0123456789', identity }] });
const gates = [esm.authenticate({ verifiers: [verifier] }), cjs.requireScope('x:read'), cjs.meter({ pipeline, type: 'both' })];
const server = createServer((req, res) => {
  const next = (index) => (error) => (gates[index] ? gates[index](req, res, next(index + 1)) : done(error));
  const done = () => {
    esm.usageOf(req).add('rows', 3);
    res.end(JSON.stringify([esm.identityOf(req) === cjs.identityOf(req), esm.isAccessError(new cjs.AccessError('invalid_token')), esm.AccessError !== cjs.AccessError]));
  };
  next(0)();
}).listen(0, '127.0.0.1', async () => {
  const headers = { authorization: 'Bearer both-0123456789-0123456789-0123456789' };
  const seen = await (await fetch(\`http://127.0.0.1:\${server.address().port}\`, { headers })).json();
  server.close();
  await new Promise((resolve) => setTimeout(resolve, 50));
  await pipeline.close();
  console.log(JSON.stringify([...seen, sink.events[0].quantities.rows.value]));
});
`,
    );
    expect(JSON.parse(await runProgram(file))).toEqual([true, true, true, 3]);
  });
});

function filesIn(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(folder, join(entry.parentPath, entry.name)).split(sep).join('/'));
}

/** The sources in an output and in every output that it imports. */
function inputsOf(outputs: Metafile['outputs'], entry: string): string[] {
  const start = Object.keys(outputs).find((path) => path.endsWith(`dist/${entry}`));
  if (!start) throw new Error(`no output ${entry}`);
  const seen = new Set([start]);
  for (const path of seen) {
    for (const { path: next, external } of outputs[path]?.imports ?? []) if (!external) seen.add(next);
  }
  return [...seen].flatMap((path) => Object.keys(outputs[path]?.inputs ?? {}));
}

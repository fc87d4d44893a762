import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, dirname, join, relative, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const SRC = join(ROOT, 'src');

/** A folder imports only from folders to its left. Siblings that share a place never import each other. */
const ROOMS: readonly (string | readonly string[])[] = [
  'errors',
  'runtime',
  'identity',
  'http',
  'request',
  'revocation',
  'tokens',
  'keys',
  'authenticate',
  'authorize',
  'quota',
  'meter',
  'issuer',
  'usage',
  'admin',
  ['redis', 'postgres', 'sqlite', 'client'],
  'testing',
  'index',
];

/** The folders that are subpath exports: the root bundle contains none of them. */
const SUBPATHS = ['admin', 'client', 'issuer', 'postgres', 'redis', 'sqlite', 'testing'];

/** Names that say nothing about what is inside. */
const STRAY = /(^|-)(utils?|helpers?|common|types?|misc|shared|constants|interfaces|base|lib)(-|$)/;

interface Source {
  /** Relative to `src/`, with slashes: `http/problem.ts`. */
  readonly path: string;
  readonly text: string;
  readonly room: string;
  /** The module specifiers of every import, export-from, `import()` and type import. */
  readonly specifiers: readonly string[];
  readonly tree: ts.SourceFile;
}

const sources = filesUnder(SRC).map(load);
const byPath = new Map(sources.map((source) => [source.path, source]));

/** Test files that reach what has no public name: the spool's file format, whose damage is tested byte by byte. */
const NAMELESS = ['test/meter/spool-fixture.ts'];

describe('the architecture', () => {
  it('reads every file of the house', () => {
    expect(sources.length).toBeGreaterThan(30);
    expect(sources.find(({ path }) => path === 'request/gate.ts')?.specifiers).toContain('./request-state.js');
  });

  it('gives every folder of src a place in the order of rooms', () => {
    const rooms = ROOMS.flat();
    expect(readdirSync(SRC).filter((entry) => entry !== 'index.ts' && !rooms.includes(entry))).toEqual([]);
  });

  it('lets a folder import only from folders to its left, types too', () => {
    const place = (room: string) => ROOMS.findIndex((entry) => [entry].flat().includes(room));
    const wrong = edges().filter(({ from, to }) => from.room !== to.room && place(from.room) <= place(to.room));
    expect(wrong.map(arrow)).toEqual([]);
  });

  it('has no cycle between files, types too', () => {
    expect(cycles()).toEqual([]);
  });

  it('keeps the subpath folders out of the root', () => {
    const wrong = edges().filter(({ from, to }) => from.path === 'index.ts' && SUBPATHS.includes(to.room));
    expect(wrong.map(arrow)).toEqual([]);
  });

  it('imports no barrel from within', () => {
    expect(
      edges()
        .filter(({ to }) => basename(to.path) === 'index.ts')
        .map(arrow),
    ).toEqual([]);
  });

  it('imports only existing files, Node itself and the runtime dependencies', () => {
    const { dependencies } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
    const wrong = sources.flatMap((from) =>
      from.specifiers
        .filter((specifier) =>
          specifier.startsWith('.')
            ? target(from, specifier) === undefined
            : !specifier.startsWith('node:') && !Object.hasOwn(dependencies, specifier),
        )
        .map((specifier) => `${from.path} → ${specifier}`),
    );
    expect(wrong).toEqual([]);
  });

  it('has only named re-exports in its barrels, save the ambient types', () => {
    const ambient = "export type * from './identity/ambient.cjs';";
    const barrels = sources.filter(({ path }) => basename(path) === 'index.ts');
    expect(barrels.map(({ room }) => room).sort()).toEqual(['index', ...SUBPATHS].sort());
    for (const { path, tree } of barrels) {
      const wrong = tree.statements
        .filter((statement) => !isNamedReExport(statement))
        .map((node) => node.getText(tree));
      expect({ path, wrong }).toEqual({ path, wrong: path === 'index.ts' ? [ambient] : [] });
    }
  });

  it('re-exports nothing anywhere else, and has no default exports', () => {
    const wrong = sources
      .filter(({ path }) => basename(path) !== 'index.ts')
      .flatMap(({ path, tree }) =>
        tree.statements
          .filter(
            (node) =>
              ts.isExportAssignment(node) ||
              (ts.isExportDeclaration(node) && (node.moduleSpecifier !== undefined || !node.exportClause)) ||
              hasModifier(node, ts.SyntaxKind.DefaultKeyword),
          )
          .map((node) => `${path}: ${node.getText(tree).split('\n')[0]}`),
      );
    expect(wrong).toEqual([]);
  });

  it('names every file in kebab-case, after what it exports', () => {
    const wrong = sources
      .filter(({ path }) => basename(path) !== 'index.ts' && path !== 'identity/ambient.d.cts')
      .filter(({ path, tree }) => {
        const name = basename(path, '.ts');
        // `response-over.ts` exports `whenResponseIsOver`, `discovery.ts` exports `discoverJwksUri`.
        const stems = name.split('-').map((word) => word.replace(/(ed|s|y)$/, ''));
        const namesIt = (exportName: string) => stems.some((stem) => exportName.toLowerCase().includes(stem));
        return (
          !/^[a-z0-9]+(-[a-z0-9]+)*$/.test(name) ||
          STRAY.test(name) ||
          path.split('/').length !== 2 ||
          !exportsOf(tree).some(namesIt)
        );
      });
    expect(wrong.map(({ path, tree }) => `${path} exports ${exportsOf(tree).join(', ')}`)).toEqual([]);
  });

  it('keeps no state in a module: its ESM and CJS copies may coexist', () => {
    const wrong = sources.flatMap(({ path, tree }) =>
      tree.statements
        .filter((node) => ts.isVariableStatement(node) && !(node.declarationList.flags & ts.NodeFlags.Const))
        .map((node) => `${path}: ${node.getText(tree)}`),
    );
    expect(wrong).toEqual([]);
  });

  it('reads nothing from the environment, and silences no check', () => {
    const forbidden =
      /process\.env|process\[|@ts-ignore|@ts-nocheck|@ts-expect-error|\bTODO\b|\bFIXME\b|istanbul ignore|v8 ignore|c8 ignore/;
    const wrong = sources.flatMap(({ path, text }) =>
      text
        .split('\n')
        .filter((line) => forbidden.test(line))
        .map((line) => `${path}: ${line.trim()}`),
    );
    expect(wrong).toEqual([]);
  });

  it('lets tests and examples reach the library only by its public names', () => {
    // What lies on the disk is a format: its tests cut and flip its bytes. And the broken libraries are made of the real one.
    const mayReachIn = (file: string): boolean => /^test\/(meter\/spool|support\/broken\/)/.test(relative(ROOT, file));
    const files = ['test', 'examples', 'bench']
      .flatMap((folder) => filesUnder(join(ROOT, folder)))
      .filter((file) => !mayReachIn(file));
    const wrong = files.flatMap((file) =>
      specifiersOf(readFileSync(file, 'utf8'))
        .filter((specifier) => specifier.startsWith('.') && inside(SRC, resolve(dirname(file), specifier)))
        .filter(() => !NAMELESS.includes(relative(ROOT, file)))
        .map((specifier) => `${relative(ROOT, file)} → ${specifier}`),
    );
    expect(wrong).toEqual([]);
  });

  it('states the same order of rooms in CONTRIBUTING.md', () => {
    const line = ROOMS.map((entry) => (typeof entry === 'string' ? entry : `{${entry.join(' | ')}}`)).join(' · ');
    expect(readFileSync(join(ROOT, 'CONTRIBUTING.md'), 'utf8')).toContain(line);
  });
});

function load(file: string): Source {
  const path = relative(SRC, file).split(sep).join('/');
  const text = readFileSync(file, 'utf8');
  const room = path.includes('/') ? (path.split('/')[0] as string) : 'index';
  const tree = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true);
  return { path, text, room, specifiers: specifiersOf(text), tree };
}

function specifiersOf(text: string): string[] {
  return ts.preProcessFile(text, true, true).importedFiles.map(({ fileName }) => fileName);
}

function filesUnder(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && /\.[cm]?ts$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((file) => !file.includes(`${sep}node_modules${sep}`));
}

function inside(folder: string, file: string): boolean {
  return file === folder || file.startsWith(folder + sep);
}

/** `./ambient.cjs` is written `ambient.d.cts`, `./gate.js` is written `gate.ts`. */
function target(from: Source, specifier: string): Source | undefined {
  const path = join(dirname(from.path), specifier).split(sep).join('/');
  return byPath.get(path.replace(/\.js$/, '.ts')) ?? byPath.get(path.replace(/\.cjs$/, '.d.cts'));
}

function edges(): { from: Source; to: Source }[] {
  return sources.flatMap((from) => targetsOf(from).map((to) => ({ from, to })));
}

function targetsOf(from: Source): Source[] {
  return from.specifiers
    .map((specifier) => (specifier.startsWith('.') ? target(from, specifier) : undefined))
    .filter((to) => to !== undefined);
}

function arrow({ from, to }: { from: Source; to: Source }): string {
  return `${from.path} → ${to.path}`;
}

function cycles(): string[] {
  const found: string[] = [];
  const done = new Set<Source>();
  const visit = (source: Source, trail: Source[]): void => {
    const start = trail.indexOf(source);
    if (start >= 0) {
      found.push([...trail.slice(start), source].map(({ path }) => path).join(' → '));
      return;
    }
    if (done.has(source)) return;
    for (const next of targetsOf(source)) visit(next, [...trail, source]);
    done.add(source);
  };
  for (const source of sources) visit(source, []);
  return found;
}

function isNamedReExport(node: ts.Statement): boolean {
  if (!ts.isExportDeclaration(node) || !node.exportClause || !ts.isNamedExports(node.exportClause)) return false;
  // `export {}` stands in a subpath that has nothing yet.
  return node.moduleSpecifier !== undefined || node.exportClause.elements.length === 0;
}

function hasModifier(node: ts.Node, kind: ts.SyntaxKind): boolean {
  return ts.canHaveModifiers(node) && (ts.getModifiers(node) ?? []).some((modifier) => modifier.kind === kind);
}

function exportsOf(tree: ts.SourceFile): string[] {
  return tree.statements.flatMap((node) => {
    if (ts.isExportDeclaration(node) && node.exportClause && ts.isNamedExports(node.exportClause)) {
      return node.exportClause.elements.map((element) => element.name.text);
    }
    if (!hasModifier(node, ts.SyntaxKind.ExportKeyword)) return [];
    if (ts.isVariableStatement(node)) return node.declarationList.declarations.map(({ name }) => name.getText(tree));
    const { name } = node as ts.Statement & { name?: ts.Identifier };
    return name ? [name.text] : [];
  });
}

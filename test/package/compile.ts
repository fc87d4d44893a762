import { relative } from 'node:path';
import ts from 'typescript';

/** The ways in which today's TypeScript projects resolve packages; `node16` lets no CommonJS file see an ESM declaration. */
export const RESOLUTIONS = {
  node16: { module: ts.ModuleKind.Node16, moduleResolution: ts.ModuleResolutionKind.Node16 },
  nodenext: { module: ts.ModuleKind.NodeNext, moduleResolution: ts.ModuleResolutionKind.NodeNext },
  bundler: { module: ts.ModuleKind.Preserve, moduleResolution: ts.ModuleResolutionKind.Bundler },
} as const satisfies Record<string, ts.CompilerOptions>;

/** A strict user's settings. Declarations are checked too: no `skipLibCheck`. */
const STRICT: ts.CompilerOptions = {
  strict: true,
  exactOptionalPropertyTypes: true,
  target: ts.ScriptTarget.ES2022,
  lib: ['lib.es2023.d.ts'],
  types: ['node'],
  skipLibCheck: false,
};

/** Compiles files as one program; emits JavaScript beside them when `emit` is set. Returns what the compiler complains about. */
export function compile(
  folder: string,
  files: readonly string[],
  { emit = false, ...options }: ts.CompilerOptions & { emit?: boolean },
): string[] {
  const program = ts.createProgram(files, {
    ...STRICT,
    // Where `types` are looked for.
    typeRoots: [`${folder}/node_modules/@types`],
    ...options,
    noEmit: !emit,
  });
  const diagnostics = [...ts.getPreEmitDiagnostics(program), ...(emit ? program.emit().diagnostics : [])];
  return diagnostics.map(({ file, start, messageText, code }) => {
    const text = ts.flattenDiagnosticMessageText(messageText, '\n');
    if (!file) return `TS${code}: ${text}`;
    const { line } = file.getLineAndCharacterOfPosition(start ?? 0);
    return `${relative(folder, file.fileName)}:${line + 1} TS${code}: ${text}`;
  });
}

/** The web frameworks that the packed package is tried with. */
export const FRAMEWORKS = {
  express4: { packages: { express4: 'express', '@types/express4': '@types/express' }, module: 'express' },
  express5: { packages: { express: 'express', '@types/express': '@types/express' }, module: 'express' },
  connect: { packages: { connect: 'connect', '@types/connect': '@types/connect' }, module: 'connect' },
} as const;

/** The languages and module systems of a consumer, by the extension of its file. */
export const LANGUAGES = { mjs: 'JS and ESM', cjs: 'JS and CJS', mts: 'TS and ESM', cts: 'TS and CJS' } as const;

const NAMES = [
  'authenticate',
  'createPipeline',
  'identityOf',
  'memorySink',
  'meter',
  'requireScope',
  'staticTokenVerifier',
  'usageOf',
];

/**
 * A small user's program: an app with a protected, metered route. It uses itself over real HTTP and prints the answers
 * and the usage events as JSON.
 */
export function consumerProgram(framework: string, language: keyof typeof LANGUAGES): string {
  const names = NAMES.join(', ');
  const http = `{ createServer }`;
  const imports = {
    mjs: `import ${framework} from '${framework}';\nimport ${http} from 'node:http';\nimport { ${names} } from 'tollkeeper';`,
    mts: `import ${framework} from '${framework}';\nimport ${http} from 'node:http';\nimport type { AddressInfo } from 'node:net';\nimport { ${names} } from 'tollkeeper';`,
    cjs: `const ${framework} = require('${framework}');\nconst ${http} = require('node:http');\nconst { ${names} } = require('tollkeeper');`,
    cts: `import ${framework} = require('${framework}');\nimport ${http} from 'node:http';\nimport type { AddressInfo } from 'node:net';\nimport { ${names} } from 'tollkeeper';`,
  }[language];
  const typed = language.endsWith('ts');
  return `${imports}

const READER = 'reader-0123456789-0123456789-0123456789';
const WRITER = 'writer-0123456789-0123456789-0123456789';
const caller = (id${typed ? ': string' : ''}, scope${typed ? ': string' : ''}) => ({ subject: { kind: 'service'${typed ? ' as const' : ''}, id }, authId: id, scopes: [scope] });
const sink = memorySink();
const pipeline = createPipeline({ sinks: [sink], spool: 'memory', source: 'consumer' });
const verifier = staticTokenVerifier({
  tokens: [
    { token: READER, identity: caller('reader', 'reports:read') },
    { token: WRITER, identity: caller('writer', 'reports:write') },
  ],
});

const app = ${framework}();
app.use(authenticate({ verifiers: [verifier], realm: 'consumer' }));
app.use('/reports', requireScope('reports:read'));
app.use('/reports', meter({ pipeline, type: 'report.read' }));
app.use('/reports', (req, res) => {
  usageOf(req).add('rows', 3);
  res.end(\`\${identityOf(req).authId} \${req.identity?.subject.id}\`);
});

async function main() {
  const server = createServer(app);
  await new Promise${typed ? '<void>' : ''}((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address()${typed ? ' as AddressInfo' : ''};
  const answers = [];
  for (const token of [undefined, 'nonsense', WRITER, READER]) {
    const headers = token === undefined ? undefined : { authorization: \`Bearer \${token}\` };
    const response = await fetch(\`http://127.0.0.1:\${port}/reports\`, headers ? { headers } : {});
    const text = await response.text();
    answers.push({
      status: response.status,
      challenge: response.headers.get('www-authenticate'),
      body: response.headers.get('content-type') === 'application/problem+json' ? JSON.parse(text).code : text,
    });
  }
  server.close();
  await pipeline.close();
  const events = sink.events.map(({ type, authId, quantities }) => ({ type, authId, quantities }));
  console.log(JSON.stringify({ answers, events }));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
`;
}

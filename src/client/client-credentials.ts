import { readFile } from 'node:fs/promises';
import { OAuthError } from '../errors/oauth-error.js';
import type { OptionsParser } from '../errors/options-parser.js';
import type { JWK } from '../keys/jwk.js';
import { createJwtSigner } from '../keys/jwt-signer.js';
import { importSigningKey, type Signer } from '../keys/signing-key.js';
import type { Clock } from '../runtime/clock.js';
import type { Random } from '../runtime/random.js';

/** What a client shows to the token endpoint. */
export type ClientCredentials =
  /** A secret, sent by HTTP Basic (RFC 6749 §2.3.1). */
  | { readonly clientId: string; readonly clientSecret: string }
  /** A private key, PKCS#8 PEM or JWK, that signs an assertion for every request (RFC 7523). `keyId`: default the JWK's `kid`, else its thumbprint. */
  | { readonly clientId: string; readonly privateKey: string | JWK; readonly keyId?: string }
  /** A file with the platform's token, e.g. a Kubernetes projected one: read anew for every request, and exchanged (RFC 8693). */
  | { readonly subjectTokenFile: string; readonly clientId?: string };

/** What one request carries. */
export interface Shown {
  readonly headers: Readonly<Record<string, string>>;
  readonly params: Readonly<Record<string, string>>;
}

/** Makes what one request carries. */
export type Show = () => Shown | Promise<Shown>;

export interface CredentialContext {
  /** `aud` of assertions. */
  readonly issuer: string;
  readonly clock: Clock;
  readonly random: Random;
}

/** All of the kinds, each with what it may have. */
interface Given {
  readonly clientId?: string;
  readonly clientSecret?: string;
  readonly privateKey?: string | JWK;
  readonly keyId?: string;
  readonly subjectTokenFile?: string;
}

const OPTIONS: readonly (keyof Given)[] = ['clientId', 'clientSecret', 'privateKey', 'keyId', 'subjectTokenFile'];
const KINDS = ['clientSecret', 'privateKey', 'subjectTokenFile'] as const;
/** Seconds that an assertion lives: one request. */
const ASSERTION_SECONDS = 60;

/** Reads the `credentials` option. The result may be used only when the parser has no problem. */
export function parseCredentials(parser: OptionsParser, given: ClientCredentials, context: CredentialContext): Show {
  const credentials: Given = parser.known(given as Given, OPTIONS, 'credentials');
  const stated = KINDS.filter((kind) => credentials[kind] !== undefined);
  if (stated.length !== 1) parser.problem(`credentials must have one of ${KINDS.join(', ')}`);
  const { clientId, clientSecret, privateKey, keyId, subjectTokenFile } = credentials;
  if (stated[0] !== 'subjectTokenFile' || clientId !== undefined) parser.string('credentials.clientId', clientId);
  if (keyId !== undefined) parser.string('credentials.keyId', keyId);
  const id = String(clientId);
  if (stated[0] === 'clientSecret') {
    return bySecret(id, parser.string('credentials.clientSecret', clientSecret));
  }
  if (stated[0] === 'privateKey') {
    const named = keyId ?? (typeof privateKey === 'object' ? privateKey?.kid : undefined);
    try {
      const { signer } = importSigningKey(privateKey as string | JWK);
      return byAssertion(id, named === undefined ? signer : Object.freeze({ ...signer, kid: named }), context);
    } catch (error) {
      // Fixed text: it quotes nothing of the key.
      parser.problem(`credentials.privateKey: ${(error as Error).message}`);
    }
  }
  return byFile(parser.string('credentials.subjectTokenFile', subjectTokenFile ?? 'none'), clientId);
}

function bySecret(clientId: string, secret: string): Show {
  const pair = Buffer.from(`${formEncode(clientId)}:${formEncode(secret)}`).toString('base64');
  const shown = { headers: { authorization: `Basic ${pair}` }, params: { grant_type: 'client_credentials' } };
  return () => shown;
}

function byAssertion(clientId: string, signer: Signer, { issuer, clock, random }: CredentialContext): Show {
  const sign = createJwtSigner('client-authentication+jwt');
  return async () => {
    const iat = Math.floor(clock.now() / 1_000);
    const jti = Buffer.from(random(16)).toString('base64url');
    const claims = { iss: clientId, sub: clientId, aud: issuer, jti, iat, exp: iat + ASSERTION_SECONDS };
    return {
      headers: {},
      params: {
        grant_type: 'client_credentials',
        client_id: clientId,
        client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
        client_assertion: await sign(claims, signer),
      },
    };
  };
}

function byFile(path: string, clientId: string | undefined): Show {
  return async () => {
    let token: string;
    try {
      token = (await readFile(path, 'utf8')).trim();
    } catch (error) {
      const { code } = error as { code?: unknown };
      throw new OAuthError('invalid_request', `the subject token file cannot be read (${String(code)})`);
    }
    if (token === '') throw new OAuthError('invalid_request', 'the subject token file is empty');
    return {
      headers: {},
      params: {
        grant_type: 'urn:ietf:params:oauth:grant-type:token-exchange',
        subject_token: token,
        subject_token_type: 'urn:ietf:params:oauth:token-type:jwt',
        ...(clientId === undefined ? {} : { client_id: clientId }),
      },
    };
  };
}

/** RFC 6749 appendix B. */
function formEncode(text: string): string {
  return new URLSearchParams([['', text]]).toString().slice(1);
}

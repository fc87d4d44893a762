/**
 * A JSON Web Key (RFC 7517 §4; RFC 7518 §6, RFC 8037 §2): the members of RSA, EC and OKP keys. As a type it stands for that
 * of jose and for the `JsonWebKey` of Node and of browsers; it is no import from jose, whose declarations a CommonJS
 * project cannot read.
 */
export type JWK = {
  kty?: string;
  kid?: string;
  alg?: string;
  use?: string;
  key_ops?: string[];
  ext?: boolean;
  x5c?: string[];
  x5t?: string;
  'x5t#S256'?: string;
  x5u?: string;
  crv?: string;
  x?: string;
  y?: string;
  n?: string;
  e?: string;
  d?: string;
  p?: string;
  q?: string;
  dp?: string;
  dq?: string;
  qi?: string;
  k?: string;
};

import { AccessError } from '../errors/access-error.js';
import { OptionsParser } from '../errors/options-parser.js';
import { type AddressList, createAddressList } from '../http/address-list.js';
import { clientAddress } from '../http/client-address.js';
import type { Middleware } from '../http/middleware.js';
import { orderError } from '../request/gate.js';
import { refuse } from '../request/refuse.js';
import { knownRequestState } from '../request/request-state.js';

export interface RequireNetworkOptions {
  /** Addresses and CIDR blocks that may use the route, e.g. `['10.0.0.0/8', 'fd00::/8']`. At least one. */
  readonly allow: readonly string[];
  /** The proxies whose `X-Forwarded-For` is believed. Default: none, and the connection's peer counts. */
  readonly trustedProxies?: readonly string[];
}

/**
 * Lets only callers from these networks through. It needs no identity, so that it can also stand before a token endpoint.
 *
 * Answers: 403 `network_not_allowed`, 500 `middleware_order` behind `meter`.
 *
 * @throws TypeError for entries that are neither addresses nor CIDR blocks.
 */
export function requireNetwork(options: RequireNetworkOptions): Middleware {
  const parser = new OptionsParser('requireNetwork');
  const { allow, trustedProxies } = parser.known(options, ['allow', 'trustedProxies']);
  const allowed = createAddressList(allow, (text) => parser.problem(`allow: ${text}`));
  if (Array.isArray(allow) && allow.length === 0) parser.problem('allow: an empty list lets nobody through');
  let proxies: AddressList | undefined;
  if (trustedProxies !== undefined) {
    proxies = createAddressList(trustedProxies, (text) => parser.problem(`trustedProxies: ${text}`));
  }
  parser.done();
  return function requireNetwork(req, res, next) {
    if (knownRequestState(req)?.admitted === true) {
      return refuse(req, res, next, orderError('requireNetwork'), 'middleware_order');
    }
    if (allowed.has(clientAddress(req, proxies))) return next();
    const error = new AccessError('network_not_allowed', {
      reason: 'the address of the caller is on no allowed network',
    });
    refuse(req, res, next, error, 'network_not_allowed');
  };
}

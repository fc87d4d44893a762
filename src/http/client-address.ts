import type { IncomingMessage } from 'node:http';
import { isIP } from 'node:net';
import { type AddressList, ipv6Groups, unmapped } from './address-list.js';

/**
 * The address of the caller. `X-Forwarded-For` is read only as far as trusted proxies wrote it: from the right, each hop
 * that is a trusted proxy is passed, and the first one that is not is the caller. Without trusted proxies it is the peer
 * of the connection, and no header matters.
 *
 * @returns undefined when the connection is gone or a trusted proxy forwarded something that is no address.
 */
export function clientAddress(req: IncomingMessage, trustedProxies: AddressList | undefined): string | undefined {
  const peer = peerAddress(req);
  if (trustedProxies === undefined || !trustedProxies.has(peer)) return peer;
  let address = peer;
  const hops = forwardedFor(req);
  for (let index = hops.length - 1; index >= 0; index--) {
    const hop = unmapped(stripPort(hops[index] as string));
    if (isIP(hop) === 0) return undefined;
    address = hop;
    if (!trustedProxies.has(hop)) break;
  }
  return address;
}

/** The address of the connection's other end; IPv4-mapped addresses as IPv4. */
export function peerAddress(req: IncomingMessage): string | undefined {
  const address = req.socket?.remoteAddress;
  return address === undefined ? undefined : unmapped(address);
}

/** The key under which an address is counted: IPv4 whole, IPv6 by its /64, since that is what one subscriber is given. */
export function addressKey(address: string): string {
  const groups = ipv6Groups(address);
  if (groups === undefined) return address;
  return `${groups
    .slice(0, 4)
    .map((group) => group.toString(16))
    .join(':')}::/64`;
}

function forwardedFor(req: IncomingMessage): string[] {
  // Node joins repeated X-Forwarded-For headers with a comma, in order.
  const header = req.headers['x-forwarded-for'];
  const text = Array.isArray(header) ? header.join(',') : header;
  return text === undefined || text.trim() === '' ? [] : text.split(',').map((hop) => hop.trim());
}

/** `1.2.3.4:80`, `[::1]:80` and `[::1]` without port and brackets. */
function stripPort(hop: string): string {
  const bracketed = /^\[([^\]]+)\](?::\d+)?$/.exec(hop);
  if (bracketed?.[1] !== undefined) return bracketed[1];
  const dotted = /^(\d{1,3}(?:\.\d{1,3}){3}):\d+$/.exec(hop);
  return dotted?.[1] ?? hop;
}

import { BlockList, isIP } from 'node:net';

/** More than any address with a zone has. */
const MAX_ADDRESS_LENGTH = 128;

/** Answers whether an address is on a list of addresses and CIDR blocks. */
export interface AddressList {
  /** An IPv4-mapped IPv6 address counts as IPv4. Whatever is no address is not on the list. */
  has(address: string | undefined): boolean;
}

/**
 * A list of addresses and CIDR blocks, e.g. `['10.0.0.0/8', '::1', 'fd00::/8']`. An empty list has nobody.
 *
 * @param problem is told of every entry that is neither an address nor a CIDR block.
 */
export function createAddressList(entries: readonly string[], problem: (text: string) => void): AddressList {
  const list = new BlockList();
  if (!Array.isArray(entries)) {
    problem('must be an array of addresses and CIDR blocks');
    return { has: () => false };
  }
  for (const entry of entries) {
    const [given = '', prefix, ...rest] = typeof entry === 'string' ? entry.split('/') : [];
    const address = unmapped(given);
    const family = isIP(address);
    const bits = family === 6 ? 128 : 32;
    const mapped = family === 4 && isIP(given) === 6;
    const stated = prefix === undefined ? undefined : /^\d{1,3}$/.test(prefix) ? Number(prefix) : Number.NaN;
    const length = stated === undefined ? bits : mapped ? stated - 96 : stated;
    if (family === 0 || rest.length > 0 || !(length >= 0 && length <= bits)) {
      problem(`"${String(entry)}" is neither an address nor a CIDR block`);
      continue;
    }
    list.addSubnet(address, length, family === 6 ? 'ipv6' : 'ipv4');
  }
  return {
    has(address) {
      if (address === undefined) return false;
      const plain = unmapped(address);
      const family = isIP(plain);
      return family !== 0 && list.check(plain, family === 6 ? 'ipv6' : 'ipv4');
    },
  };
}

/** The IPv4 address inside an IPv4-mapped IPv6 one (RFC 4291 §2.5.5.2), without a zone; any other address as it is. */
export function unmapped(address: string): string {
  // What a caller forwards may be of any length, and the patterns below are not linear.
  if (address.length > MAX_ADDRESS_LENGTH) return address;
  const zone = address.indexOf('%');
  const bare = zone === -1 ? address : address.slice(0, zone);
  const dotted = /^(?:0*:)*:?(?:0*:)*ffff:(\d{1,3}(?:\.\d{1,3}){3})$/i.exec(bare);
  if (dotted?.[1] !== undefined && isIP(dotted[1]) === 4) return dotted[1];
  if (bare.includes(':')) {
    const groups = ipv6Groups(bare);
    if (groups?.slice(0, 5).every((group) => group === 0) === true && groups[5] === 0xffff) {
      const [high = 0, low = 0] = groups.slice(6);
      return `${high >> 8}.${high & 255}.${low >> 8}.${low & 255}`;
    }
  }
  return bare;
}

/** The eight 16-bit groups of an IPv6 address; undefined for anything else. */
export function ipv6Groups(address: string): number[] | undefined {
  if (isIP(address) !== 6) return undefined;
  let text = address;
  const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
  if (dotted !== null) {
    const [, head = '', a, b, c, d] = dotted;
    text = `${head}${((Number(a) << 8) | Number(b)).toString(16)}:${((Number(c) << 8) | Number(d)).toString(16)}`;
  }
  const [left = '', right] = text.split('::');
  const parse = (part: string): number[] =>
    part === '' ? [] : part.split(':').map((group) => Number.parseInt(group, 16));
  const before = parse(left);
  if (right === undefined) return before;
  const after = parse(right);
  return [...before, ...new Array<number>(8 - before.length - after.length).fill(0), ...after];
}

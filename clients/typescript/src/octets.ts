/** Octets, and their forms as text: hex and base64url. */

/** Octets in their own memory, because WebCrypto, fetch and WebSocket need this. */
export type Octets = Uint8Array<ArrayBuffer>;

export const NO_OCTETS: Octets = new Uint8Array();

export function concat(...parts: readonly Uint8Array[]): Octets {
  const all = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

export function equal(one: Uint8Array, other: Uint8Array): boolean {
  return one.length === other.length && one.every((octet, at) => octet === other[at]);
}

export function toHex(octets: Uint8Array): string {
  return Array.from(octets, (octet) => octet.toString(16).padStart(2, "0")).join("");
}

/** Reads hex digits without spaces; throws for anything else. */
export function fromHex(text: string): Octets {
  if (text.length % 2 || !/^[0-9a-fA-F]*$/.test(text)) throw new Error("not hex digits");
  return Uint8Array.from({ length: text.length / 2 }, (_, at) => parseInt(text.slice(2 * at, 2 * at + 2), 16));
}

/** Base64url without padding (RFC 4648 section 5). */
export function toBase64url(octets: Uint8Array): string {
  return toBase64(octets).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** Reads base64url with or without padding; throws for anything else. */
export function fromBase64url(text: string): Octets {
  const bare = text.replace(/={1,2}$/, "");
  if (text.length !== bare.length && text.length % 4) throw new Error("not base64url");
  if (!/^[A-Za-z0-9_-]*$/.test(bare) || bare.length % 4 === 1) throw new Error("not base64url");
  const octets = fromBase64(bare.replaceAll("-", "+").replaceAll("_", "/"));
  if (toBase64url(octets) !== bare) throw new Error("not base64url");
  return octets;
}

export function toBase64(octets: Uint8Array): string {
  let binary = "";
  for (let at = 0; at < octets.length; at += 0x8000) {
    binary += String.fromCharCode(...octets.subarray(at, at + 0x8000));
  }
  return btoa(binary);
}

export function fromBase64(text: string): Octets {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

export function toUtf8(text: string): Octets {
  return new TextEncoder().encode(text);
}

export function fromUtf8(octets: Uint8Array): string {
  return new TextDecoder().decode(octets);
}

/** The identifiers of the protocol. */

import type { Octets } from "./octets.js";


/** 16 octets that the members of an epoch export; a device that knows them may use the epoch's partition. */
export type PartitionKey = Octets;

/** A partition key is `MLS-Exporter(EXPORTER_LABEL, "", PARTITION_KEY_OCTETS)` of its epoch. */
export const EXPORTER_LABEL = "mimids partition key";
export const PARTITION_KEY_OCTETS = 16;

/** Returns Hash(key) under SHA-256, SHA-384 and SHA-512: the partition is stored under one of these. */
export async function masksOf(key: PartitionKey): Promise<Octets[]> {
  const digests = ["SHA-256", "SHA-384", "SHA-512"].map((hash) => crypto.subtle.digest(hash, key));
  return (await Promise.all(digests)).map((digest) => new Uint8Array(digest));
}

/** Whether a text is a lower-case LDH domain name: no port, no address literal. */
export function isProviderId(text: string): boolean {
  return text.length <= 253 && DOMAIN.test(text);
}

/** Returns what is wrong with the spelling of a user id, `mimi://PROVIDER/u/NAME`; null if the spelling is normal. */
export function userIdFault(userId: string): string | null {
  const found = /^mimi:\/\/([^/]*)\/u\/((?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)$/.exec(userId);
  if (found === null) return "a user id is written as mimi://PROVIDER/u/NAME";
  const [, provider, name] = found as unknown as [string, string, string];
  if (!isProviderId(provider)) return "the provider in the user id is not a lower-case domain name";
  if (name === "." || name === "..") return "a name must not be a dot segment (RFC 3986 section 6.2.2.3)";
  for (const encoded of name.match(/%[0-9A-Fa-f]{2}/g) ?? []) {
    const code = parseInt(encoded.slice(1), 16);
    if (encoded !== encoded.toUpperCase()) return `${encoded} must be written in upper case`;
    if (/[A-Za-z0-9._~-]/.test(String.fromCharCode(code))) return `${encoded} must not be percent-encoded`;
    if (code < 0x20 || code === 0x7f) return "a name must not have control characters";
  }
  return null;
}

const LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?";
const DOMAIN = new RegExp(`^(?:${LABEL}\\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$)${LABEL}$`);

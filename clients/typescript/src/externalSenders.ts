/**
 * The signature keys of the device's provider, for the `external_senders` of a group that the device creates.
 *
 * A group that lists the key lets the provider propose to remove members. The provider does this for the leaves of
 * devices that were removed from their accounts. The creator of the group decides whether to list the key.
 */

import { vector } from "./codec.js";
import { ExternalSender } from "./mls.js";
import { equal, fromBase64url, type Octets } from "./octets.js";

/** A key of a provider: `identity` is in its BasicCredential, `externalSender` is an encoded ExternalSender. */
export interface ProviderSignatureKey {
  scheme: string;
  cipherSuites: number[];
  signatureKey: Octets;
  identity: Octets;
  externalSender: Octets;
}

/** A key as `me` and a directory have it. */
export interface ProviderSignatureKeyJson {
  scheme: string;
  cipher_suites: number[];
  signature_key: string;
  credential: string;
  external_sender: string;
}

/** Reads a key from the JSON of `me` or of a directory; throws if its parts do not fit together. */
export function readSignatureKey(members: ProviderSignatureKeyJson): ProviderSignatureKey {
  const signatureKey = fromBase64url(members.signature_key);
  const identity = fromBase64url(members.credential);
  const externalSender = fromBase64url(members.external_sender);
  const sender = ExternalSender.decode(externalSender);
  const { content } = sender.credential;
  if (Array.isArray(content) || !equal(content, identity) || !equal(sender.signatureKey, signatureKey)) {
    throw new Error("external_sender does not contain the key and the credential beside it");
  }
  return { scheme: members.scheme, cipherSuites: members.cipher_suites, signatureKey, identity, externalSender };
}

/**
 * Returns the extension_data of `external_senders` (type 0x0005) with these keys (RFC 9420 section 12.1.8.1).
 *
 * With `bare`, the result is one ExternalSender without the vector around it. ts-mls (1.6.4) reads and writes only this
 * form, and members with other libraries cannot be in such a group. With `bare`, throws for more than one key.
 */
export function externalSendersData(keys: readonly ProviderSignatureKey[], { bare = false } = {}): Octets {
  const senders = keys.map(({ externalSender }) => ExternalSender.decode(externalSender));
  if (!bare) return vector(ExternalSender).encode(senders);
  const [sender] = senders;
  if (senders.length !== 1 || sender === undefined) throw new Error("the bare form has exactly one key");
  return ExternalSender.encode(sender);
}

/** Contact cards: a user, the user's provider, and what is needed to fetch KeyPackages. */

import { fromBase64url, toBase64url, toUtf8, type Octets } from "./octets.js";
import { isProviderId, userIdFault } from "./ids.js";

/** A contact card, as a discovery service hands it out. */
export interface Contact {
  userId: Octets;
  provider: string;
  bearerToken: Octets;
  /** The Ed25519 key, of 32 octets, that signs the keys of the provider's OHTTP gateway. */
  ohttpIdentity: Octets;
}

/** Reads a card; throws if it is not valid. */
export function contactFromJson(card: string | Readonly<Record<string, unknown>>): Contact {
  const members: unknown = typeof card === "string" ? JSON.parse(card) : card;
  if (typeof members !== "object" || members === null) throw new Error("this is not a contact card");
  const [userId, provider, bearerToken, ohttpIdentity] = [
    "user_id",
    "provider",
    "bearer_token",
    "ohttp_identity",
  ].map((name) => {
    const value = (members as Record<string, unknown>)[name];
    if (typeof value !== "string") throw new Error(`this is not a contact card: ${name} is missing or no text`);
    return value;
  }) as [string, string, string, string];
  const fault = userIdFault(userId);
  if (fault !== null) throw new Error(`the contact card's user_id: ${fault}`);
  if (!isProviderId(provider)) throw new Error("the contact card's provider is not a lower-case domain name");
  return {
    userId: toUtf8(userId),
    provider,
    bearerToken: fromBase64url(bearerToken),
    ohttpIdentity: fromBase64url(ohttpIdentity),
  };
}

/** Writes a card, for `contactFromJson` of either library. */
export function contactToJson(contact: Contact): string {
  return JSON.stringify({
    user_id: new TextDecoder().decode(contact.userId),
    provider: contact.provider,
    bearer_token: toBase64url(contact.bearerToken),
    ohttp_identity: toBase64url(contact.ohttpIdentity),
  });
}

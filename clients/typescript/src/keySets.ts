/**
 * The key sets of gateways that a device has seen (docs/ohttp-keys.md).
 *
 * A gateway that gave every client a key of its own could tell clients apart by the key that a request is sealed to
 * (RFC 9458 section 7). So a device remembers the sets that it was given, and refuses a second set for the same time.
 * An application may keep the sets across restarts.
 */

import type { Contact } from "./contacts.js";
import { KeysDiffer } from "./keysRefused.js";
import { equal, fromBase64url, toBase64url } from "./octets.js";
import { checkedConfig, type KeyConfig, notAfterOf, type SignedKeys } from "./ohttp/keys.js";

const APART_SECONDS = 3600; // between the not_after of two key sets of one provider, at least

export class KeySets {
  private readonly sets = new Map<string, SignedKeys[]>(); // by provider and identity; the oldest first

  /** @internal Returns a configuration of the newest set that may still be used; null if there is none. */
  async config(contact: Contact, nowSeconds: number): Promise<KeyConfig | null> {
    const newest = this.live(contact, nowSeconds).at(-1);
    return newest === undefined ? null : checked(contact, newest, nowSeconds);
  }

  /**
   * @internal Remembers a set and returns a configuration of it; throws `KeysRefused` if the set is not authentic, and
   * `KeysDiffer` if the provider showed another set for this time.
   */
  async add(contact: Contact, keys: SignedKeys, nowSeconds: number): Promise<KeyConfig> {
    const config = await checked(contact, keys, nowSeconds);
    const live = this.live(contact, nowSeconds);
    if (live.some((other) => conflict(keys, other))) {
      throw new KeysDiffer("the provider has shown other key configurations for the same time");
    }
    this.sets.set(nameOf(contact), [...live.filter((each) => !equal(each.body, keys.body)), keys]);
    return config;
  }

  /** @internal Tells whether a set that another relay gave is one of these sets; throws as `add` does. */
  async agrees(contact: Contact, keys: SignedKeys, nowSeconds: number): Promise<boolean> {
    await checked(contact, keys, nowSeconds);
    const live = this.live(contact, nowSeconds);
    if (live.some((other) => conflict(keys, other))) {
      throw new KeysDiffer("the provider shows this relay other key configurations for the same time");
    }
    return live.some((each) => equal(each.body, keys.body));
  }

  /** Returns all sets as text, for `fromJson` of either library; the text shows which providers the device asked. */
  asJson(): string {
    const written = [...this.sets].map(([name, sets]) => [
      name,
      sets.map(({ body, signature }) => [toBase64url(body), signature]),
    ]);
    return JSON.stringify(Object.fromEntries(written));
  }

  /** Reads what `asJson` returned; throws for anything else. */
  static fromJson(text: string): KeySets {
    const made = new KeySets();
    try {
      for (const [name, sets] of Object.entries(JSON.parse(text) as Record<string, [string, string][]>)) {
        made.sets.set(
          name,
          sets.map(([body, signature]) => ({ body: fromBase64url(body), signature: String(signature) })),
        );
      }
    } catch (error) {
      throw new Error("these are not key sets", { cause: error });
    }
    return made;
  }

  private live(contact: Contact, nowSeconds: number): SignedKeys[] {
    const all = this.sets.get(nameOf(contact)) ?? [];
    const live = all.filter(({ signature }) => notAfterOf(signature) >= nowSeconds);
    if (live.length) this.sets.set(nameOf(contact), live);
    else this.sets.delete(nameOf(contact));
    return live;
  }
}

function checked(contact: Contact, keys: SignedKeys, nowSeconds: number): Promise<KeyConfig> {
  return checkedConfig(contact.provider, keys, contact.ohttpIdentity, nowSeconds);
}

function nameOf(contact: Contact): string {
  return `${contact.provider} ${toBase64url(contact.ohttpIdentity)}`;
}

function conflict(keys: SignedKeys, other: SignedKeys): boolean {
  const apart = Math.abs(notAfterOf(keys.signature) - notAfterOf(other.signature));
  return !equal(keys.body, other.body) && apart < APART_SECONDS;
}

/** Fetching KeyPackages of other users over OHTTP. */

import type { Connection } from "./connection.js";
import type { Contact } from "./contacts.js";
import type { KeySets } from "./keySets.js";
import type { KeyPackageResult } from "./messages.js";
import { fromUtf8, toHex } from "./octets.js";
import { blurred, DATE_SHIFTS } from "./ohttp/date.js";
import type { KeyConfig, SignedKeys } from "./ohttp/keys.js";
import { seal, WrongDate } from "./ohttp/sealing.js";
import { problemFromJson } from "./problem.js";

const BUNDLE_REQUESTS = 64; // in one sealed request: what a gateway takes by default (bundle_max_requests)
const OHTTP_REQUEST = "message/ohttp-req";
const GATEWAY_STATUSES = [400, 422]; // refusals by the gateway itself, which the relay passes on unchanged

export class KeyPackageFetcher {
  /** `clock` gives seconds since 1970. */
  constructor(
    private readonly connection: Connection,
    private readonly keySets: KeySets,
    private readonly clock: () => number,
  ) {}

  /**
   * Returns one result for each contact, in order; sends each provider a sealed request for each 64 contacts.
   *
   * Contacts of the same user share a sealed request if possible: only within one sealed request does the gateway answer
   * with KeyPackages of different devices.
   */
  async fetch(contacts: readonly Contact[], cipherSuite: number): Promise<KeyPackageResult[]> {
    const byProvider = grouped([...contacts.keys()], (index) => contacts[index]!.provider);
    const results: KeyPackageResult[] = [];
    for (const indices of byProvider.values()) {
      for (const bundle of bundles(indices, contacts)) {
        const found = await this.fetchFromOne(bundle.map((index) => contacts[index]!), cipherSuite);
        if (found.length !== bundle.length) {
          throw new Error(`the gateway sent ${found.length} results for ${bundle.length} requests`);
        }
        bundle.forEach((index, place) => (results[index] = found[place]!));
      }
    }
    return results;
  }

  /**
   * Asks one provider. Tries again once with the newest key if the provider no longer has the key (RFC 9458 section
   * 5.3), and once with the gateway's time if our clock is wrong (section 6.5.2).
   */
  private async fetchFromOne(contacts: readonly Contact[], cipherSuite: number): Promise<KeyPackageResult[]> {
    const contact = contacts[0]!;
    const requests = contacts.map(({ userId, bearerToken }) => ({ userId, bearerToken, version: 1, cipherSuite }));
    let now = Math.floor(this.clock());
    let config = (await this.keySets.config(contact, now)) ?? (await this.newestConfig(contact, now));
    for (let renewed = false, corrected = false; ; ) {
      const sealed = await seal(config, contact.provider, requests, blurred(now, randomBelow(DATE_SHIFTS)));
      const path = `providers/${contact.provider}/ohttp`;
      const reply = await this.connection.exchange("POST", path, sealed.message, {
        mediaType: OHTTP_REQUEST,
        expected: GATEWAY_STATUSES,
      });
      if (reply.status !== 200) {
        const problem = problemFromJson(reply.status, fromUtf8(reply.body));
        if (renewed || problem.code !== "ohttp-key") throw problem;
        config = await this.newestConfig(contact, now);
        renewed = true;
        continue;
      }
      try {
        return await sealed.open(reply.body);
      } catch (error) {
        if (!(error instanceof WrongDate) || corrected || error.seconds === null) throw error;
        now = error.seconds;
        corrected = true;
      }
    }
  }

  private async newestConfig(contact: Contact, now: number): Promise<KeyConfig> {
    return this.keySets.add(contact, await this.keySet(contact.provider), now);
  }

  /** Returns the key set of a provider as our relay gives it now; its signature is not checked. */
  private async keySet(provider: string): Promise<SignedKeys> {
    const reply = await this.connection.exchange("GET", `providers/${provider}/ohttp-keys`);
    return { body: reply.body, signature: reply.headers.get("mimids-keys-signature") ?? "" };
  }

  /** Tells whether another relay gives the same key set; see `Device.compareKeys`. */
  async compareKeys(contact: Contact, other: KeyPackageFetcher): Promise<boolean> {
    const now = Math.floor(this.clock());
    if ((await this.keySets.config(contact, now)) === null) await this.newestConfig(contact, now);
    return this.keySets.agrees(contact, await other.keySet(contact.provider), now);
  }
}

/** Splits requests into bundles; the requests for one user share a bundle if they fit into one. */
function bundles(indices: readonly number[], contacts: readonly Contact[]): number[][] {
  const made: number[][] = [[]];
  for (const own of grouped(indices, (index) => toHex(contacts[index]!.userId)).values()) {
    for (let start = 0; start < own.length; start += BUNDLE_REQUESTS) {
      const part = own.slice(start, start + BUNDLE_REQUESTS);
      if (made.at(-1)!.length + part.length > BUNDLE_REQUESTS) made.push([]);
      made.at(-1)!.push(...part);
    }
  }
  return made;
}

function grouped(indices: readonly number[], nameOf: (index: number) => string): Map<string, number[]> {
  const groups = new Map<string, number[]>();
  for (const index of indices) {
    const name = nameOf(index);
    const group = groups.get(name);
    if (group === undefined) groups.set(name, [index]);
    else group.push(index);
  }
  return groups;
}

function randomBelow(bound: number): number {
  const most = 256 - (256 % bound); // larger octets are dropped, because they would make small numbers more likely
  for (;;) {
    const octet = crypto.getRandomValues(new Uint8Array(1))[0]!;
    if (octet < most) return octet % bound;
  }
}

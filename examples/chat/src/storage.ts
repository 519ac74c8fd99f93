/**
 * What the page keeps across reloads: JSON in IndexedDB, encrypted with an AES-GCM key that scripts can use but not read.
 * That protects against somebody who copies the browser's files, and not against a script that runs in this page.
 */

import { fromBase64url, toBase64url } from "mimids-client";

const KEY = "key";

export class Storage {
  private constructor(
    private readonly database: IDBDatabase,
    private readonly key: CryptoKey,
  ) {}

  /** Opens the storage of one device. */
  static async open(device: string): Promise<Storage> {
    const opening = indexedDB.open(`mimids-chat ${device}`, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("kept");
    const database = await result(opening);
    let key = (await result(database.transaction("kept").objectStore("kept").get(KEY))) as CryptoKey | undefined;
    if (key === undefined) {
      key = await crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);
      await put(database, [[KEY, key]]);
    }
    return new Storage(database, key);
  }

  /** Stores values in one transaction, so that all or none of them are there after a crash; undefined deletes. */
  async set(values: Readonly<Record<string, unknown>>): Promise<void> {
    const sealed: [string, unknown][] = [];
    for (const [name, value] of Object.entries(values)) {
      sealed.push([name, value === undefined ? undefined : await this.seal(value)]);
    }
    await put(this.database, sealed);
  }

  /** Returns all values whose name begins like this, by name. */
  async all<T>(prefix: string): Promise<Map<string, T>> {
    const store = this.database.transaction("kept").objectStore("kept");
    const range = IDBKeyRange.bound(prefix, `${prefix}\uffff`);
    const [names, sealed] = await Promise.all([result(store.getAllKeys(range)), result(store.getAll(range))]);
    const values = await Promise.all(sealed.map((each) => this.open(each as Sealed)));
    return new Map(names.map((name, at) => [String(name), values[at] as T]));
  }

  private async seal(value: unknown): Promise<Sealed> {
    const iv = crypto.getRandomValues(new Uint8Array(12));
    const json = new TextEncoder().encode(JSON.stringify(value, toJson));
    return { iv, data: await crypto.subtle.encrypt({ name: "AES-GCM", iv }, this.key, json) };
  }

  private async open({ iv, data }: Sealed): Promise<unknown> {
    const json = await crypto.subtle.decrypt({ name: "AES-GCM", iv }, this.key, data);
    return JSON.parse(new TextDecoder().decode(json), fromJson);
  }
}

interface Sealed {
  iv: Uint8Array<ArrayBuffer>;
  data: ArrayBuffer;
}

function toJson(_: string, value: unknown): unknown {
  return value instanceof Uint8Array ? { octets: toBase64url(value) } : value;
}

function fromJson(_: string, value: unknown): unknown {
  const octets = (value as { octets?: unknown } | null)?.octets;
  return typeof octets === "string" ? fromBase64url(octets) : value;
}

function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function put(database: IDBDatabase, values: readonly [string, unknown][]): Promise<void> {
  const transaction = database.transaction("kept", "readwrite", { durability: "strict" });
  const store = transaction.objectStore("kept");
  for (const [name, value] of values) value === undefined ? store.delete(name) : store.put(value, name);
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
}

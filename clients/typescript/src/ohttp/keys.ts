/** The key configurations of a gateway (RFC 9458 section 3), and their signature (docs/ohttp-keys.md). */

import { at, OPAQUE, Reader, struct, UINT64, WireError } from "../codec.js";
import { KeysRefused } from "../keysRefused.js";
import { fromBase64, type Octets, toBase64, toUtf8 } from "../octets.js";

export const KEM_X25519 = 0x0020;
export const KDF_SHA256 = 0x0001;
export const AES_128_GCM = 0x0001;

const KEYS_OCTETS = 65536;
const PUBLIC_KEY_OCTETS: Readonly<Record<number, number>> = {
  0x0010: 65,
  0x0011: 97,
  0x0012: 133,
  [KEM_X25519]: 32,
  0x0021: 56,
};

/** A public key of a gateway. */
export interface KeyConfig {
  keyId: number;
  kemId: number;
  publicKey: Octets;
  /** Whether we can use this key: X25519 with HKDF-SHA256 and AES-128-GCM. */
  usable: boolean;
}

/** An `application/ohttp-keys` body with its `Mimids-Keys-Signature`. */
export interface SignedKeys {
  body: Octets;
  signature: string;
}

const KeysToBeSigned = struct<{ label: Octets; provider: Octets; keys: Octets; notAfter: bigint }>("KeysToBeSigned", {
  label: OPAQUE,
  provider: OPAQUE,
  keys: OPAQUE,
  notAfter: UINT64,
});

/**
 * Returns the first key configuration that we can use; throws `KeysRefused` if the keys are not authentic, or expired.
 *
 * Our own provider passes the keys on. Without this check, it could replace them with its own and read every request
 * (RFC 9458 section 6.1). The signature is checked before anything in the keys is read.
 */
export async function checkedConfig(
  provider: string,
  keys: SignedKeys,
  identity: Octets,
  nowSeconds: number,
): Promise<KeyConfig> {
  const { notAfter, signature } = parseSignature(keys.signature);
  const covered = KeysToBeSigned.encode({
    label: toUtf8("mimids ohttp keys 1"),
    provider: toUtf8(provider),
    keys: keys.body,
    notAfter: BigInt(notAfter),
  });
  if (!(await verifies(identity, signature, covered))) {
    throw new KeysRefused("the key configurations are not signed by this provider");
  }
  if (nowSeconds > notAfter) throw new KeysRefused("the key configurations have expired");
  const config = decodeKeys(keys.body).find((each) => each.usable);
  if (config === undefined) throw new KeysRefused("no key configuration has a KEM and suite that we support");
  return config;
}

/** Returns the `not_after` of a signature, in seconds; throws `KeysRefused` if it has an unknown form. */
export function notAfterOf(signature: string): number {
  return parseSignature(signature).notAfter;
}

function parseSignature(header: string): { notAfter: number; signature: Octets } {
  const found = /^not_after=(0|[1-9][0-9]{0,14}), signature=:([A-Za-z0-9+/]{86}==):$/.exec(header);
  const signature = found?.[2] === undefined ? undefined : fromBase64(found[2]);
  if (!found || signature === undefined || toBase64(signature) !== found[2]) {
    throw new KeysRefused("the Mimids-Keys-Signature header is missing or has an unknown form");
  }
  return { notAfter: Number(found[1]), signature };
}

async function verifies(identity: Octets, signature: Octets, covered: Octets): Promise<boolean> {
  try {
    const key = await crypto.subtle.importKey("raw", identity, { name: "Ed25519" }, false, ["verify"]);
    return await crypto.subtle.verify({ name: "Ed25519" }, key, signature, covered);
  } catch (error) {
    if (error instanceof DOMException && error.name === "NotSupportedError") throw error; // a runtime without Ed25519
    return false; // the identity is no key
  }
}

/** Returns the configurations of an `application/ohttp-keys`, without those of unknown KEMs. */
export function decodeKeys(body: Octets): KeyConfig[] {
  if (body.length > KEYS_OCTETS) throw new KeysRefused(`OhttpKeys: longer than ${KEYS_OCTETS} octets`);
  const reader = new Reader(body);
  const configs: KeyConfig[] = [];
  let index = 0;
  try {
    for (; reader.pos < reader.end; index++) {
      const config = at(`OhttpKeys.${index}`, () => readConfig(new Reader(reader.take(reader.uint(2)))));
      if (config !== null) configs.push(config);
    }
  } catch (error) {
    // A client MUST discard the whole collection (RFC 9458 section 3.2).
    throw error instanceof WireError ? new KeysRefused(error.message) : error;
  }
  if (!index) throw new KeysRefused("OhttpKeys: empty");
  return configs;
}

function readConfig(reader: Reader): KeyConfig | null {
  const [keyId, kemId] = [reader.uint(1), reader.uint(2)];
  const size = PUBLIC_KEY_OCTETS[kemId];
  if (size === undefined) return null; // without the size of its keys the rest cannot be read
  const publicKey = reader.take(size);
  const octets = reader.uint(2);
  if (octets === 0 || octets % 4) throw new WireError("not a whole number of algorithms", ["algorithms"]);
  const pairs = new Reader(reader.take(octets));
  reader.finish();
  let usable = false;
  while (pairs.pos < pairs.end) {
    const [kdfId, aeadId] = [pairs.uint(2), pairs.uint(2)];
    usable ||= kemId === KEM_X25519 && kdfId === KDF_SHA256 && aeadId === AES_128_GCM;
  }
  return { keyId, kemId, publicKey, usable };
}

/** The client's side of OHTTP (RFC 9458): encapsulate a request, and decrypt the response to it. */

import { Aes128Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";
import { Writer } from "../codec.js";
import { concat, fromBase64url, fromHex, type Octets, toUtf8 } from "../octets.js";
import { AES_128_GCM, KDF_SHA256, type KeyConfig } from "./keys.js";

const KEY_OCTETS = 16; // max(Nn, Nk) of AES-128-GCM
const NONCE_OCTETS = 12;
const PKCS8_OF_X25519 = "302e020100300506032b656e04220420"; // before the 32 octets of the private key (RFC 8410)

/** A `message/ohttp-req`, and the function that decrypts its `message/ohttp-res`. */
export interface Encapsulated {
  message: Octets;
  open: (answer: Octets) => Promise<Octets>;
}

/**
 * Encapsulates a Binary HTTP request for the gateway of `config` (RFC 9458 section 4.3).
 *
 * `ephemeral` (32 octets, used only once) is for tests; without it, the function makes a random key.
 */
export async function encapsulate(config: KeyConfig, request: Octets, ephemeral?: Octets): Promise<Encapsulated> {
  const head = new Writer();
  head.uint(config.keyId, 1);
  for (const id of [config.kemId, KDF_SHA256, AES_128_GCM]) head.uint(id, 2);
  const header = head.octets();
  const suite = new CipherSuite({ kem: new DhkemX25519HkdfSha256(), kdf: new HkdfSha256(), aead: new Aes128Gcm() });
  const context = await suite.createSenderContext({
    recipientPublicKey: await suite.kem.deserializePublicKey(config.publicKey),
    info: concat(toUtf8("message/bhttp request"), new Uint8Array(1), header),
    ...(ephemeral === undefined ? {} : { ekm: await keyPair(ephemeral) }),
  });
  const enc = new Uint8Array(context.enc);
  const sealed = new Uint8Array(await context.seal(request));
  const open = async (answer: Octets): Promise<Octets> => {
    if (answer.length < KEY_OCTETS) throw new Error("too short for an encapsulated response");
    const secret = await context.export(toUtf8("message/bhttp response"), KEY_OCTETS);
    return decryptResponse(new Uint8Array(secret), enc, answer);
  };
  return { message: concat(header, enc, sealed), open };
}

/** Decrypts a response (RFC 9458 section 4.4), whose nonce has as many octets as the key. */
async function decryptResponse(secret: Octets, enc: Octets, answer: Octets): Promise<Octets> {
  const salt = concat(enc, answer.subarray(0, KEY_OCTETS));
  const material = await crypto.subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
  const derive = (label: string, octets: number): Promise<ArrayBuffer> =>
    crypto.subtle.deriveBits({ name: "HKDF", hash: "SHA-256", salt, info: toUtf8(label) }, material, 8 * octets);
  const [key, iv] = await Promise.all([derive("key", KEY_OCTETS), derive("nonce", NONCE_OCTETS)]);
  const cipher = await crypto.subtle.importKey("raw", key, "AES-GCM", false, ["decrypt"]);
  return new Uint8Array(await crypto.subtle.decrypt({ name: "AES-GCM", iv }, cipher, answer.slice(KEY_OCTETS)));
}

async function keyPair(octets: Octets): Promise<CryptoKeyPair> {
  const pkcs8 = concat(fromHex(PKCS8_OF_X25519), octets);
  const privateKey = (await crypto.subtle.importKey("pkcs8", pkcs8, { name: "X25519" }, true, [
    "deriveBits",
  ])) as CryptoKey;
  const { x } = await crypto.subtle.exportKey("jwk", privateKey);
  const publicKey = await crypto.subtle.importKey("raw", fromBase64url(x ?? ""), { name: "X25519" }, true, []);
  return { privateKey, publicKey };
}

// An OHTTP client on @hpke/core and bhttp-js, driven by JSON lines on stdin; all octets are hex.
//
//   {"keys": an application/ohttp-keys body, "aead": 1 or 3,
//    "request": {"method", "url", "headers": [[name, value], ..], "body"}}   ->   {"message": a message/ohttp-req}
//   {"response": the message/ohttp-res to it}                               ->   {"status", "headers", "body"}
//
// What fails is answered by {"error": text}, and the next line is read.

import { hkdfSync } from "node:crypto";
import { createInterface } from "node:readline";
import { Chacha20Poly1305 } from "@hpke/chacha20poly1305";
import { Aes128Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";
import { BHttpDecoder, BHttpEncoder } from "bhttp-js";

const AEADS = { 1: [Aes128Gcm, 16], 3: [Chacha20Poly1305, 32] };
const hex = (octets) => Buffer.from(octets).toString("hex");
const octets = (text) => new Uint8Array(Buffer.from(text, "hex"));
const ascii = (text) => new TextEncoder().encode(text);

function firstKey(keys, aead) {
  const length = (keys[0] << 8) | keys[1];
  const config = Buffer.from(keys.subarray(2, 2 + length));
  if (config.readUInt16BE(1) !== 0x20) throw new Error("not X25519");
  for (let at = 37; at < config.length; at += 4) {
    if (config.readUInt16BE(at) === 1 && config.readUInt16BE(at + 2) === aead) {
      return { id: config[0], publicKey: new Uint8Array(config.subarray(3, 35)) };
    }
  }
  throw new Error("AEAD not offered");
}

let waiting = null; // of the request whose response has not come: its context, AEAD and sizes

async function encapsulate({ keys, aead, request }) {
  const [Aead, size] = AEADS[aead];
  const key = firstKey(octets(keys), aead);
  const suite = new CipherSuite({ kem: new DhkemX25519HkdfSha256(), kdf: new HkdfSha256(), aead: new Aead() });
  const header = new Uint8Array([key.id, 0, 0x20, 0, 1, 0, aead]);
  const context = await suite.createSenderContext({
    recipientPublicKey: await suite.kem.deserializePublicKey(key.publicKey),
    info: Buffer.concat([ascii("message/bhttp request"), new Uint8Array(1), header]),
  });
  const { method, url, headers, body } = request;
  const content = body === "" ? undefined : octets(body);
  const plain = await new BHttpEncoder().encodeRequest(new Request(url, { method, headers, body: content }));
  const enc = new Uint8Array(context.enc);
  waiting = { context, Aead, size, enc };
  return { message: hex(Buffer.concat([header, enc, new Uint8Array(await context.seal(plain))])) };
}

async function decapsulate({ response }) {
  const { context, Aead, size, enc } = waiting;
  const message = octets(response);
  const secret = await context.export(ascii("message/bhttp response"), size);
  const salt = Buffer.concat([enc, message.subarray(0, size)]);
  const derive = (label, length) => hkdfSync("sha256", new Uint8Array(secret), salt, ascii(label), length);
  const cipher = new Aead().createEncryptionContext(derive("key", size));
  const plain = await cipher.open(derive("nonce", 12), message.subarray(size), new Uint8Array());
  waiting = null;
  const answer = new BHttpDecoder().decodeResponse(new Uint8Array(plain));
  return { status: answer.status, headers: [...answer.headers], body: hex(await answer.arrayBuffer()) };
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const asked = JSON.parse(line);
    answer = await ("response" in asked ? decapsulate(asked) : encapsulate(asked));
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}

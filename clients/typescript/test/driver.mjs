// The library, driven by JSON lines on stdin; all octets are hex. tests/support/typescript.py asks.
//
//   {"ask": name, ...}   ->   an answer, or {"error": text}

import { createInterface } from "node:readline";
import { WireError } from "../dist/codec.js";
import { MLSMessage } from "../dist/framing.js";
import { isProviderId, masksOf, userIdFault } from "../dist/ids.js";
import { KeySets } from "../dist/keySets.js";
import * as messages from "../dist/messages.js";
import * as mls from "../dist/mls.js";
import { fromHex, toHex } from "../dist/octets.js";
import { decodeResponse } from "../dist/ohttp/bhttp.js";
import { blurred, readDate, writeDate } from "../dist/ohttp/date.js";
import { checkedConfig } from "../dist/ohttp/keys.js";
import { seal } from "../dist/ohttp/sealing.js";

const CODECS = { ...mls, ...messages, MLSMessage };
let sealed = null;

const answers = {
  /** Decodes octets and encodes the value again. */
  recode({ codec, octets }) {
    try {
      return { octets: toHex(CODECS[codec].encode(CODECS[codec].decode(fromHex(octets)))) };
    } catch (error) {
      if (error instanceof WireError) return { refused: error.message };
      throw error;
    }
  },

  contentType({ octets }) {
    return { contentType: MLSMessage.decode(fromHex(octets)).contentType };
  },

  async masks({ key }) {
    return { masks: (await masksOf(fromHex(key))).map(toHex) };
  },

  names({ texts }) {
    return { providers: texts.map(isProviderId), users: texts.map((text) => userIdFault(text) === null) };
  },

  async checkKeys({ provider, body, signature, identity, now }) {
    try {
      const keys = { body: fromHex(body), signature };
      const config = await checkedConfig(provider, keys, fromHex(identity), now);
      return { keyId: config.keyId, publicKey: toHex(config.publicKey) };
    } catch (error) {
      if (error.name !== "KeysRefused") throw error;
      return { refused: error.message };
    }
  },

  async seal({ keyId, publicKey, provider, requests, date, ephemeral }) {
    const config = { keyId, kemId: 0x20, publicKey: fromHex(publicKey), usable: true };
    const decoded = messages.KeyPackageBundleRequest.decode(fromHex(requests)).requests;
    sealed = await seal(config, provider, decoded, date, ephemeral ? fromHex(ephemeral) : undefined);
    return { message: toHex(sealed.message) };
  },

  async open({ answer }) {
    try {
      const results = await sealed.open(fromHex(answer));
      return { results: toHex(messages.KeyPackageBundleResponse.encode({ results })) };
    } catch (error) {
      if (error.name === "WrongDate") return { wrongDate: error.seconds };
      return { refused: error.code ?? error.message };
    }
  },

  response({ octets }) {
    try {
      const { status, fields, content } = decodeResponse(fromHex(octets));
      return { status, fields, content: toHex(content) };
    } catch (error) {
      if (error instanceof WireError) return { refused: error.message };
      throw error;
    }
  },

  dates({ seconds, shifts }) {
    const written = seconds.map(writeDate);
    return { written, read: written.map(readDate), blurred: seconds.map((each, at) => blurred(each, shifts[at])) };
  },

  keySets({ text }) {
    return { text: KeySets.fromJson(text).asJson() };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const asked = JSON.parse(line);
    answer = await answers[asked.ask](asked);
  } catch (error) {
    answer = { error: error.stack ?? String(error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}

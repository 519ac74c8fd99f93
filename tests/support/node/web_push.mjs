// Opens a push with http_ece, and checks its sender with jws, which web-push uses; one JSON object on stdin, one out.
//
//   {"body", "private_key", "auth", "authorization": the header, "subscription": as a browser has it}
//     -> {"plaintext", "claims": of the token, "headers": those that web-push would send, "theirs": its plaintext}
//
// All octets are base64url.

import { createECDH, createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";
import http_ece from "http_ece";
import jws from "jws";
import webPush from "web-push";

const input = JSON.parse(readFileSync(0, "utf8"));
const octets = (text) => Buffer.from(text, "base64url");

function open(body) {
  const privateKey = createECDH("prime256v1");
  privateKey.setPrivateKey(octets(input.private_key));
  return http_ece.decrypt(body, { version: "aes128gcm", privateKey, authSecret: octets(input.auth) }).toString("base64url");
}

const [, token, key] = /^vapid t=([^,]+), k=(.+)$/.exec(input.authorization);
const point = octets(key);
const jwk = { kty: "EC", crv: "P-256", x: point.subarray(1, 33).toString("base64url"), y: point.subarray(33).toString("base64url") };
if (!jws.verify(token, "ES256", createPublicKey({ key: jwk, format: "jwk" }).export({ type: "spki", format: "pem" }))) {
  throw new Error("the token is not signed by the key beside it");
}

const theirs = webPush.generateRequestDetails(input.subscription, "theirs", {
  vapidDetails: { subject: "mailto:somebody@a.example", ...webPush.generateVAPIDKeys() },
  contentEncoding: "aes128gcm",
  urgency: "high",
  topic: "wake-up",
});
console.log(JSON.stringify({
  plaintext: open(octets(input.body)),
  claims: jws.decode(token).payload,
  headers: Object.keys(theirs.headers).map((name) => name.toLowerCase()).sort(),
  theirs: Buffer.from(open(theirs.body), "base64url").toString(),
}));

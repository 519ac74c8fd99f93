// Prints the requests that the library sends for the calls of ../cases.json, as JSON.

import { readFileSync } from "node:fs";
import { Device, fromHex, requests, toHex } from "../dist/index.js";

const octets = (text) => (text == null ? undefined : fromHex(text));

/** Drops members without a value, which options may not have. */
const given = (members) => Object.fromEntries(Object.entries(members).filter(([, value]) => value != null));

const joiners = (args) =>
  given({
    groupInfo: octets(args.group_info),
    welcome: octets(args.welcome),
    serviceProviders: args.service_providers,
    ratchetTree: octets(args.ratchet_tree),
  });

function message(args) {
  const [mls, key] = [fromHex(args.message), fromHex(args.partition_key)];
  if (!args.next_partition_key) return requests.message(mls, key);
  return requests.commit(mls, key, fromHex(args.next_partition_key), joiners(args));
}

const creation = (args) =>
  requests.creation(fromHex(args.group_id), args.cipher_suite, fromHex(args.partition_key), joiners(args));

const calls = {
  me: (device) => device.me(),
  upload: (device, { key_packages, replace }) => device.upload(key_packages.map(fromHex), { replace }),
  drop_stock: (device) => device.dropStock(),
  issue_token: (device, { scheme, label, expires_at, uses, rate }) =>
    device.issueToken(scheme, given({ label, expiresAt: expires_at, uses, rate })),
  revoke_token: (device, { token_id }) => device.revokeToken(token_id),
  create_group: (device, args) => device.createGroup(creation(args), { linear: args.linear }),
  replace_group: (device, { group_id, successor, hub }) =>
    device.replaceGroup(fromHex(group_id), fromHex(successor), hub),
  send: (device, args) => device.send(args.hub, message(args)),
  send_batch: (device, args) => device.sendBatch(args.hub, args.requests.map(message)),
  receive: (device, { hub, partition_key, counter, wait_seconds }) =>
    device.receive(hub, fromHex(partition_key), counter, { waitSeconds: wait_seconds }),
  group_info: (device, { hub, group_id, partition }) =>
    device.groupInfo(hub, fromHex(group_id), given({ partition: octets(partition) })),
  join: (device, args) => {
    const more = given({ groupInfo: octets(args.group_info) });
    return device.join(args.hub, requests.externalJoin(fromHex(args.message), fromHex(args.next_partition_key), more));
  },
  propose: (device, args) =>
    device.propose(args.hub, requests.externalProposal(fromHex(args.message), octets(args.partition) ?? null)),
  leave: (device, { hub, group_id }) => device.leave(hub, fromHex(group_id)),
  report: (device, { hub, accused, kind, group_id, note, evidence }) =>
    device.report(hub, accused, kind, given({ groupId: octets(group_id), note, evidence: evidence.map(fromHex) })),
  welcome_status: (device, { hub, partition_key }) => device.welcomeStatus(hub, fromHex(partition_key)),
  siblings: (device, { cipher_suite }) => device.siblings(cipher_suite),
  positions: (device, { hub, partition_keys }) => device.positions(hub, partition_keys.map(fromHex)),
  subscribe: (device, { endpoint, p256dh, auth }) => device.subscribe(endpoint, fromHex(p256dh), fromHex(auth)),
  unsubscribe: (device) => device.unsubscribe(),
  welcomes: (device) => device.welcomes(),
  acknowledge: (device, { welcome_id }) => device.acknowledge(BigInt(welcome_id)),
};

const answers = [];
for (const { call, args } of JSON.parse(readFileSync(process.argv[2], "utf8"))) {
  let seen;
  const fetch = async (url, { method, headers, body }) => {
    const { pathname, search } = new URL(url);
    const sent = new Headers(headers);
    const type = sent.get("content-type");
    const octets_ = body === undefined ? "" : toHex(body);
    seen = {
      method,
      path: pathname + (search || (url.endsWith("?") ? "?" : "")),
      authorization: sent.get("authorization"),
      content_type: type,
      prefer: sent.get("prefer"),
      body: type === "application/json" ? JSON.parse(Buffer.from(body).toString()) : octets_,
    };
    return new Response(null, { status: 500 });
  };
  const device = new Device({ url: "http://a.example", token: "token", fetch });
  await calls[call](device, args).catch((error) => {
    if (!seen) throw error;
  });
  answers.push(seen);
}
console.log(JSON.stringify(answers));

// Parts of the library without a provider: what a stream does when nothing comes, and what a client owes.

import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { checkCommit, Departure, Device, masksOf, Problem, requests, UnexpectedCommit } from "../dist/index.js";
import { Frame, FrameType, SendStatus } from "../dist/messages.js";
import { Outbox } from "../dist/outbox.js";
import { PretendGroup } from "./pretend.mjs";

const me = {
  user_id: "mimi://a.example/u/alice",
  device_id: "phone",
  provider: "a.example",
  ohttp_identity: "",
  limits: { frame_bytes: 4096, send_batch_messages: 2 },
  stock: [],
  external_senders: [],
  push_public_key: null,
};
const soon = () => new Promise((resolve) => setImmediate(resolve));

/** The device's side of a WebSocket; `sent` are the frames. */
class FakeSocket {
  static all = [];
  sent = [];
  readyState = 0;
  bufferedAmount = 0;

  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    FakeSocket.all.push(this);
  }

  open() {
    this.readyState = 1;
    this.onopen();
  }

  send(octets) {
    this.sent.push(Frame.decode(octets));
  }

  say(frame) {
    this.onmessage({ data: Frame.encode(frame).buffer });
  }

  close() {
    this.readyState = 3;
  }
}

test("a stream asks whether its connection works, and opens another one if it does not", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const states = [];
  const fetch = async () => new Response(JSON.stringify(me));
  const device = new Device({ url: "http://a.example", token: "t", fetch, webSocket: FakeSocket });
  const stream = device.stream({ onConnection: (state) => states.push(state), caughtUp: false });
  while (!FakeSocket.all.length) await soon();
  const [first] = FakeSocket.all;
  assert.equal(first.url, "ws://a.example/client/v1/stream");
  assert.deepEqual(first.protocols, ["mimids.1", "mimids.bearer.t"]);
  first.open();
  mock.timers.tick(30_000);
  assert.deepEqual(first.sent, [{ id: 1, type: FrameType.HEARTBEAT, body: {} }]);
  first.say({ id: 1, type: FrameType.HEARTBEAT, body: {} });
  mock.timers.tick(30_000);
  assert.equal(first.sent.length, 2);
  mock.timers.tick(30_000);
  assert.deepEqual(states, [true, false]);
  await soon();
  mock.timers.tick(1_000);
  while (FakeSocket.all.length < 2) await soon();
  stream.close();
  mock.timers.reset();
});

test("messages keep their order, share frames, and are sent again on a new connection", async () => {
  const outbox = new Outbox();
  const group = new PretendGroup("a.example");
  const all = ["one", "two", "three"].map((text) => group.message(text));
  const answers = outbox.put(group.hub, all);
  const limits = { frameOctets: 4096, batchMessages: 2 };
  let number = 0;
  const next = () => outbox.nextFrames(limits, () => ++number).map(({ id, body }) => [id, body.requests]);
  assert.deepEqual(next(), [[1, all.slice(0, 2)]]);
  assert.deepEqual(next(), [[2, all.slice(2)]]);
  outbox.requeueUnanswered();
  number = 0;
  assert.deepEqual(next(), [[1, all.slice(0, 2)]]);
  assert.deepEqual(next(), [[2, all.slice(2)]]);
  const refused = { status: SendStatus.REFUSED, outcome: new TextEncoder().encode('{"status":403,"type":"x#policy"}') };
  outbox.answer(1, [refused, refused]);
  outbox.refuse(2, new Problem(502, { type: "urn:mimids:problem:peer-unavailable" }));
  assert.deepEqual((await answers).map(({ code }) => code), ["policy", "policy", "peer-unavailable"]);
  const [large] = await Promise.all([
    outbox.put(group.hub, [group.message("x".repeat(5000))]),
    Promise.resolve(outbox.nextFrames(limits, () => 9)),
  ]);
  assert.equal(large[0].code, "too-large");
  assert.equal(outbox.size, 0);
});

test("a commit that names another partition is not followed", async () => {
  const [commit, following] = new PretendGroup("a.example").commit();
  const [mask] = await masksOf(following.key);
  const expected = {
    partitionKey: following.key,
    groupContext: new Uint8Array(),
    confirmationTag: new Uint8Array(),
    signer: 0,
    verifyGroupInfo: () => true,
  };
  const received = (nextPartitionKey) => ({ message: commit.message, commit: { nextPartitionKey, groupInfo: null } });
  await checkCommit(received(mask), expected);
  await assert.rejects(checkCommit(received(new Uint8Array(32)), expected), UnexpectedCommit);
  await assert.rejects(checkCommit(received(mask), { ...expected, groupInfo: "needed" }), UnexpectedCommit);
  await assert.rejects(checkCommit({ message: commit.message, commit: null }, expected), UnexpectedCommit);
});

test("a departure is sent again after a commit, until it is sequenced", async () => {
  const group = new PretendGroup("a.example");
  const [commit, following] = group.commit();
  const [leaving, again] = [group.message("leaving"), following.message("leaving again")];
  const departure = new Departure(leaving);
  const other = { message: group.message("other").message, commit: null };
  const sequenced = { message: commit.message, commit: { nextPartitionKey: new Uint8Array(32), groupInfo: null } };
  assert.equal(await departure.look([other, sequenced], () => again), again);
  assert.equal(await departure.look([{ message: again.message, commit: null }], () => null), null);
  assert.equal(departure.done, true);
});

test("requests are made of whole MLSMessages only", () => {
  const group = new PretendGroup("a.example");
  const { message } = group.message("hello");
  assert.throws(() => requests.commit(message.encoded, group.key, group.key), /not a commit/);
  assert.throws(() => requests.message(message.encoded.slice(4), group.key));
  assert.throws(() => requests.creation(new Uint8Array(), 1, group.key), /1 to 256/);
});

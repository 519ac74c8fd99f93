// Scenarios against real providers, each started by tests/clients/test_live.py: node live.mjs SCENARIO SETTINGS

import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import WebSocket from "ws";
import {
  commitWithRetry,
  contactFromJson,
  contactToJson,
  Device,
  fromHex,
  MLSMessage,
  Problem,
  toHex,
  Unreachable,
  WelcomeState,
} from "../dist/index.js";
import { OPAQUE } from "../dist/codec.js";
import { Welcome, WireFormat } from "../dist/mls.js";
import { concat, toUtf8 } from "../dist/octets.js";
import { PretendGroup, textOf } from "./pretend.mjs";

const [, , name, text] = process.argv;
const settings = JSON.parse(text);
const steps = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const device = (user, more = {}) => new Device({ webSocket: WebSocket, ...settings.devices[user], ...more });

/** Says that a step is reached, and waits until the test has done its part. */
async function step(members) {
  process.stdout.write(JSON.stringify(members) + "\n");
  return JSON.parse((await steps.next()).value);
}

/** Returns the texts that arrive, until there are so many. */
async function texts(events, count, store = () => undefined) {
  const got = [];
  while (got.length < count) {
    const { value: event } = await events.next();
    if (event.kind !== "arrived") continue;
    got.push(...event.messages.map(textOf));
    store(event);
  }
  return got;
}

async function caughtUp(events) {
  const got = [];
  for (;;) {
    const { value: event } = await events.next();
    if (event.kind === "arrived") got.push(...event.messages.map(textOf));
    if (event.kind === "caught-up") return { got, missing: event.missing };
  }
}

/** Returns a Welcome for one KeyPackage; nothing in it is encrypted. */
async function welcomeTo(keyPackage) {
  const label = toUtf8("MLS 1.0 KeyPackage Reference");
  const hashed = concat(OPAQUE.encode(label), OPAQUE.encode(keyPackage));
  const newMember = new Uint8Array(await crypto.subtle.digest("SHA-256", hashed));
  const octets = toUtf8("not encrypted");
  const secret = { newMember, encryptedGroupSecrets: { kemOutput: octets, ciphertext: octets } };
  return concat(
    Uint8Array.of(0, 1, 0, WireFormat.WELCOME),
    Welcome.encode({ cipherSuite: 1, secrets: [secret], encryptedGroupInfo: octets }),
  );
}

const scenarios = {
  /** Two devices at two providers talk, with single requests and with streams. */
  async conversation() {
    const [alice, bob] = [device("alice"), device("bob")];
    const me = await alice.me();
    assert.equal(me.userId, "mimi://a.example/u/alice");
    assert.equal(me.ohttpIdentity.length, 32);
    const group = new PretendGroup(me.provider);
    await alice.createGroup(group.creation());
    await alice.createGroup(group.creation());
    assert.equal((await alice.send(group.hub, group.message("zero"))).counter, 0);
    const results = await bob.sendBatch(group.hub, [group.message("one"), group.message("two")]);
    assert.deepEqual(results.map(({ outcome }) => outcome.counter), [1, 2]);
    const all = [];
    for await (const message of bob.receiveAll(group.hub, group.key)) all.push(textOf(message));
    assert.deepEqual(all, ["zero", "one", "two"]);
    const [stream, his] = [alice.stream(), bob.stream()];
    his.present(group.hub, group.key, 1);
    const events = his[Symbol.asyncIterator]();
    assert.deepEqual(await texts(events, 2), ["one", "two"]);
    const numbers = Array.from({ length: 300 }, (_, number) => `message ${number}`);
    const answers = await Promise.all(numbers.map((each) => stream.send(group.hub, group.message(each))));
    assert.deepEqual(answers.map(({ counter }) => counter), numbers.map((_, number) => number + 3));
    assert.deepEqual(await texts(events, 300), numbers);
    const [commit, following] = group.commit("add");
    await stream.send(group.hub, commit);
    his.present(group.hub, following.key, 0, { after: group.key });
    await stream.send(group.hub, following.message("in the next epoch"));
    const last = await texts(events, 2);
    assert.deepEqual(new Set(last), new Set(["add", "in the next epoch"]));
    const refused = await stream.sendBatch(group.hub, [new PretendGroup(group.hub).message("nowhere")]);
    assert.ok(refused[0] instanceof Problem);
    assert.equal(his.statistics().presented, 2);
    stream.close();
    his.close();
    assert.equal((await events.next()).done, true);
    await assert.rejects(stream.send(group.hub, group.message("late")), Unreachable);
  },

  /** A device that was away gets what it missed, once; nothing is lost when its provider is killed. */
  async resuming() {
    const [alice, bob] = [device("alice"), device("bob")];
    const group = new PretendGroup("a.example");
    await alice.createGroup(group.creation());
    await alice.send(group.hub, group.message("first"));
    const states = [];
    const his = bob.stream({ firstSeconds: 0.1, capSeconds: 0.5, onConnection: (state) => states.push(state) });
    his.present(group.hub, group.key);
    const events = his[Symbol.asyncIterator]();
    const missed = (await caughtUp(events)).got;
    assert.deepEqual(missed, ["first"]);
    await step({ kill: "b.example" });
    const sent = Array.from({ length: 200 }, (_, number) => `${number}`);
    await alice.sendBatch(group.hub, sent.map((each) => group.message(each)));
    const lost = his.send(group.hub, group.message("from bob, while his provider is down"));
    await step({ restart: "b.example" });
    const got = await texts(events, 201);
    assert.deepEqual(new Set(got), new Set([...sent, "from bob, while his provider is down"]));
    assert.equal(got.length, 201);
    assert.ok((await lost).counter > 0);
    assert.deepEqual(states, [true, false, true]);
    his.close();
  },

  /** A hub that cannot be reached is named. */
  async away() {
    const [alice, bob] = [device("alice"), device("bob")];
    const group = new PretendGroup("a.example");
    await alice.createGroup(group.creation());
    await alice.send(group.hub, group.message("while it is away"));
    await step({ kill: "a.example" });
    const his = bob.stream();
    his.present(group.hub, group.key);
    const events = his[Symbol.asyncIterator]();
    assert.deepEqual(await caughtUp(events), { got: [], missing: ["a.example"] });
    const [answer] = await his.sendBatch(group.hub, [group.message("to nobody")]);
    assert.equal(answer.code, "peer-unavailable");
    await step({ restart: "a.example" });
    assert.deepEqual(await texts(events, 1), ["while it is away"]);
    his.close();
  },

  /** KeyPackages over OHTTP: stock, a contact card, sealed requests. */
  async keyPackages() {
    const [alice, bob] = [device("alice"), device("bob")];
    const uploaded = await bob.upload(settings.keyPackages.map(fromHex), { replace: true });
    assert.deepEqual([uploaded.accepted, uploaded.refused], [settings.keyPackages.length, []]);
    assert.equal(uploaded.stock[0].left, settings.keyPackages.length);
    const card = contactFromJson(contactToJson(await bob.contactCard("unique", { label: "alice" })));
    const first = await alice.fetchKeyPackage(card, 1);
    assert.ok(settings.keyPackages.includes(toHex(first)));
    const [second, third] = await alice.fetchKeyPackages([card, card], 1);
    assert.equal(second.status, 0);
    assert.notEqual(toHex(second.keyPackage), toHex(first));
    assert.equal(third.status, 2); // two results for one user are of two devices, and the other one has none
    await bob.dropStock();
    await assert.rejects(alice.fetchKeyPackage(card, 1), { code: "key-packages-exhausted" });
    const wrong = { ...card, bearerToken: new Uint8Array(32) };
    await assert.rejects(alice.fetchKeyPackage(wrong, 1), { code: "key-package-refused" });
    const forged = { ...card, ohttpIdentity: (await alice.me()).ohttpIdentity };
    await assert.rejects(alice.fetchKeyPackage(forged, 1), { name: "KeysRefused" });
    const late = device("alice", { clock: () => Date.now() / 1000 - 3600, keySets: alice.keySets });
    await assert.rejects(late.fetchKeyPackage(card, 1), { code: "key-packages-exhausted" }); // its Date was corrected
    assert.equal(await alice.compareKeys(card, bob), true);
    await step({ keySets: alice.keySets.asJson() });
  },

  /** Alice adds Bob by a KeyPackage that she fetched; his Welcome names the hub, and is acknowledged. */
  async welcomes() {
    const [alice, bob] = [device("alice"), device("bob")];
    await bob.upload(settings.keyPackages.map(fromHex), { replace: true });
    const stream = bob.stream();
    const events = stream[Symbol.asyncIterator]();
    const keyPackage = await alice.fetchKeyPackage(await bob.contactCard("shared"), 1);
    const group = new PretendGroup("a.example");
    await alice.createGroup(group.creation());
    const [commit, following] = group.commit("add bob");
    const welcome = await welcomeTo(keyPackage);
    commit.commitData.welcomeData = { welcome: MLSMessage.decode(welcome), serviceProviders: ["b.example"] };
    await alice.send(group.hub, commit);
    await alice.send(group.hub, following.message("welcome, bob")); // it releases the Welcome
    for (;;) {
      const { value: event } = await events.next();
      if (event.kind !== "welcome") continue;
      assert.equal(event.hub, "a.example");
      assert.equal(toHex(event.welcome.encoded), toHex(welcome));
      const [inbox] = await bob.welcomes();
      assert.equal(inbox.welcomeId, event.welcomeId);
      stream.present(event.hub, following.key);
      assert.deepEqual(await texts(events, 1), ["welcome, bob"]);
      stream.acknowledge(event.welcomeId);
      while ((await bob.welcomes()).length) await new Promise((resolve) => setTimeout(resolve, 20));
      break;
    }
    const [status] = await alice.welcomeStatus(group.hub, following.key);
    assert.equal(status.state, WelcomeState.DELIVERED);
    await bob.dropStock(); // other scenarios fetch KeyPackages of all of Bob's devices
    stream.close();
  },

  /** Two members commit at once in a linear group; the second makes its change again. */
  async linear() {
    const [alice, bob] = [device("alice"), device("bob")];
    let group = new PretendGroup("a.example");
    await alice.createGroup(group.creation(), { linear: true });
    const [first, next] = group.commit("alice's");
    await alice.send(group.hub, first);
    const applied = [];
    let following;
    const make = async () => {
      let request;
      [request, following] = group.commit("bob's");
      return { request, counter: 0 };
    };
    const answer = await commitWithRetry(bob, group.hub, make, async (counter, messages) => {
      assert.equal(counter, 0);
      applied.push(...messages.map(textOf));
      group = next;
    });
    assert.deepEqual(applied, ["alice's"]);
    assert.equal(answer.counter, 0);
    assert.equal(following.epoch, 2n);
  },

  /** A removed device is told so, and its stream ends. */
  async removed() {
    const bob = device("bob");
    const stream = bob.stream({ firstSeconds: 0.1 });
    const events = stream[Symbol.asyncIterator]();
    await caughtUp(events);
    await step({ remove: "bob" });
    await assert.rejects(events.next(), { code: "unauthenticated" });
    await assert.rejects(bob.me(), { status: 401 });
  },
};

await scenarios[name]();
process.exit(); // stdin is still open

/**
 * One person's groups: which messages came, what is sent, and who is in them. `page.ts` shows it.
 *
 * Every change is made in turn (`inTurn`): octets, next epoch, stored, sent. A message of our own is shown at its place
 * once it comes back from the hub, so that everybody sees the same order.
 */

import {
  type Arrived,
  CommitSuperseded,
  type Contact,
  ContentType,
  Device,
  equal,
  KeySets,
  type Me,
  type Octets,
  Problem,
  requests,
  type SendRequest,
  type Stream,
  toBase64url,
  toHex,
  Unreachable,
} from "mimids-client";
import { Epoch, identityOf, makeKeyPackage, type OwnKeyPackage, SUITE } from "./mls.js";
import { Storage } from "./storage.js";

const STOCK = 20; // KeyPackages
const TRIES = 8; // for a commit, when others come first
const AGAIN_SECONDS = 1;

/** A line of the conversation. Lines are in the order of the hub: by epoch, then by counter. */
export interface Line {
  epoch: number;
  counter: number;
  from: string;
  /** What was said; without it, `what` says what happened. */
  text?: string;
  what?: string;
  at: number;
}

interface Pending {
  message: Octets;
  key: Octets;
  nextKey: Octets;
  welcome?: Octets;
  homes: string[];
  next: Octets; // the saved epoch that it leads to
}

/** One of the last epochs, as a place where messages arrive. */
interface Position {
  key: Octets;
  epoch: number;
  next: number; // the counter that comes next
  /** Only in a forking group, and once the epoch is left. */
  left?: Left;
}

/** The state before a commit, and who made the commit. */
interface Left {
  state: Octets;
  by: string;
}

/** A group as it is stored. When a forking group forks, each further branch is stored as a group of its own. */
export interface Group {
  id: string;
  name: string;
  hub: string;
  linear: boolean;
  state: "member" | "leaving" | "left" | "removed" | "unreadable";
  /** Of a further branch: the id of the group. */
  branchOf?: string;
  /** The epoch of the fork, and who made the commit that began this branch ("" if that is not known). */
  fork?: { epoch: number; by: string };
  epoch: Octets;
  members: string[];
  keys: Position[]; // the last ones
  lines: Line[];
  sending: { message: Octets; key: Octets; text: string }[];
  pending?: Pending;
  note?: string;
}

const KEPT_KEYS = 4;
const MOST_BRANCHES = 4;

export class Chat {
  readonly groups = new Map<string, Group>();
  connected = false;
  caughtUp = false;
  private stream!: Stream;
  private readonly epochs = new Map<string, Epoch>(); // what `Group.epoch` has, decoded
  private packages = new Map<string, OwnKeyPackage>();
  private last: Promise<unknown> = Promise.resolve();
  private epochWaiters: (() => void)[] = [];

  private constructor(
    private readonly device: Device,
    readonly me: Me,
    private readonly storage: Storage,
    private readonly changed: () => void,
  ) {}

  /** Loads what is stored, and connects. `changed` is called whenever there is something new to show. */
  static async open(url: string, token: string, name: string, changed: () => void): Promise<Chat> {
    const storage = await Storage.open(name);
    const kept = await storage.all<string>("gateway keys");
    const keySets = kept.has("gateway keys") ? KeySets.fromJson(kept.get("gateway keys")!) : new KeySets();
    const device = new Device({ url, token, keySets });
    let me: Me | undefined = (await storage.all<Me>("me")).get("me");
    if (me === undefined) {
      me = await device.me();
      await storage.set({ me });
    }
    const chat = new Chat(device, me, storage, changed);
    await chat.load();
    void chat.listen();
    return chat;
  }

  private async load(): Promise<void> {
    for (const [, group] of await this.storage.all<Group>("group ")) this.groups.set(group.id, group);
    for (const [, own] of await this.storage.all<OwnKeyPackage>("package ")) this.packages.set(own.ref, own);
    this.stream = this.device.stream({
      capSeconds: 3,
      onConnection: (connected) => {
        this.connected = connected;
        if (!connected) this.caughtUp = false;
        this.changed();
      },
    });
    if (this.packages.size === 0) void this.inTurn(() => this.stockUp(STOCK, true));
    for (const group of this.groups.values()) {
      if (group.state === "left" || (group.linear && group.state === "removed")) continue;
      for (const { key, next } of group.keys) this.stream.present(group.hub, key, next);
      if (group.pending) void this.sendPending(group);
      for (const { message, key } of group.sending) void this.deliver(group, requests.message(message, key));
    }
  }

  // --- what the person does --------------------------------------------------------------------------------------------

  async createGroup(name: string, { linear = true } = {}): Promise<Group> {
    return this.inTurn(async () => {
      const hub = this.me.provider;
      const groupId = new TextEncoder().encode(`mimi://${hub}/g/${toBase64url(crypto.getRandomValues(new Uint8Array(9)))}`);
      const epoch = await Epoch.create(groupId, await makeKeyPackage(this.me.userId));
      await this.device.createGroup(requests.creation(groupId, SUITE, epoch.key), { linear });
      const group = this.newGroup(epoch, hub, name, linear);
      this.addLine(group, 0, 0, this.me.userId, { what: "made the group" });
      await this.enter(group, epoch);
      return group;
    });
  }

  /** Adds somebody: fetches a KeyPackage over OHTTP, so that our own provider does not learn whose. */
  async add(group: Group, contact: Contact): Promise<void> {
    const userId = new TextDecoder().decode(contact.userId);
    const keyPackage = await this.device.fetchKeyPackage(contact, SUITE);
    await this.storage.set({ "gateway keys": this.device.keySets.asJson() });
    if (identityOf(keyPackage) !== userId) throw new Error(`${contact.provider} gave a KeyPackage of somebody else`);
    await this.change(group, contact.provider, (epoch) =>
      epoch.members.includes(userId) ? null : epoch.commit({ add: keyPackage }),
    );
    await this.say(group, `${INTRODUCTION}${JSON.stringify({ name: group.name, linear: group.linear })}`);
  }

  async remove(group: Group, userId: string): Promise<void> {
    await this.change(group, null, (epoch) =>
      epoch.members.includes(userId) ? epoch.commit({ remove: userId }) : null,
    );
  }

  /** Replaces this member's keys. */
  async renewKeys(group: Group): Promise<void> {
    await this.change(group, null, (epoch) => epoch.commit());
  }

  async say(group: Group, text: string): Promise<void> {
    const request = await this.inTurn(async () => {
      const [message, epoch] = await (await this.epochOf(group)).encrypt(text);
      this.keep(group, epoch); // stored before it is sent: a key must not be used twice
      group.sending.push({ message, key: epoch.key, text });
      await this.store(group);
      return requests.message(message, epoch.key);
    });
    void this.deliver(group, request);
  }

  /** Asks to be removed; the next member who is there commits it. */
  async leave(group: Group): Promise<void> {
    const request = await this.inTurn(async () => {
      const [message, epoch] = await (await this.epochOf(group)).proposeLeaving();
      group.state = "leaving";
      this.keep(group, epoch);
      group.sending.push({ message, key: epoch.key, text: "" });
      await this.store(group);
      return requests.message(message, epoch.key);
    });
    void this.deliver(group, request);
  }

  // --- sending ---------------------------------------------------------------------------------------------------------

  /** Commits a change; if another commit comes first, waits for that one and makes the change again on top of it. */
  private async change(
    group: Group,
    home: string | null,
    make: (epoch: Epoch) => ReturnType<Epoch["commit"]> | null,
  ): Promise<void> {
    for (let left = TRIES; left > 0; left--) {
      const done = await this.inTurn(async () => {
        if (group.pending) return false;
        const epoch = await this.epochOf(group);
        const made = await make(epoch);
        if (made === null || group.state !== "member") return true;
        const homes = made.welcome && home ? [home] : [];
        group.pending = { ...made, key: epoch.key, nextKey: made.next.key, next: made.next.save(), homes };
        await this.store(group);
        return null;
      });
      if (done) return;
      const over = this.nextEpoch();
      const counts = done === null && (await this.sendPending(group));
      await over;
      if (counts) return;
    }
    throw new Error("Others changed the group at the same time, again and again. Try once more.");
  }

  /** Sends the pending commit until there is an answer; returns whether it is the one that counts. */
  private async sendPending(group: Group): Promise<boolean> {
    const { message, key, nextKey, welcome, homes } = group.pending!;
    const joiners = welcome === undefined ? {} : { welcome, serviceProviders: homes };
    const answer = await this.deliver(group, requests.commit(message, key, nextKey, joiners));
    if (answer === null) return true;
    await this.inTurn(async () => {
      if (group.pending && equal(group.pending.message, message)) delete group.pending;
      await this.store(group);
    });
    if (answer instanceof CommitSuperseded) return false;
    this.epochIsOver(); // for those who wait for the end of our pending commit
    throw answer;
  }

  /** Sends one message, again while there is no answer; returns the refusal, if it is refused. */
  private async deliver(group: Group, request: SendRequest): Promise<Problem | null> {
    for (;;) {
      try {
        await this.stream.send(group.hub, request);
        return null;
      } catch (error) {
        if (error instanceof Problem && !error.isTemporary) {
          if (!(error instanceof CommitSuperseded)) this.note(group, error.message);
          return error;
        }
        if (!(error instanceof Problem || error instanceof Unreachable)) throw error;
        await new Promise((resolve) => setTimeout(resolve, 1000 * AGAIN_SECONDS));
      }
    }
  }

  // --- receiving -------------------------------------------------------------------------------------------------------

  private async listen(): Promise<void> {
    for await (const event of this.stream) {
      await this.inTurn(async () => {
        if (event.kind === "arrived") await this.receive(event);
        else if (event.kind === "welcome") await this.join(event.welcomeId, event.hub, event.welcome.encoded);
        else if (event.kind === "low-stock") await this.stockUp(STOCK, false);
        else if (event.kind === "caught-up") this.caughtUp = true;
      }).catch((error: unknown) => console.error(error));
      this.changed();
    }
  }

  private async receive({ groupId, partitionKey, counter, messages }: Arrived): Promise<void> {
    const isHere = ({ key }: Position) => equal(key, partitionKey);
    const group = this.branches(toHex(groupId)).find((each) => each.keys.some(isHere));
    const position = group?.keys.find(isHere);
    if (!group || !position) return;
    for (const [at, message] of messages.entries()) {
      if (counter + at < position.next) continue;
      position.next = counter + at + 1;
      try {
        await this.take(group, position, counter + at, message.message.encoded, message.message.contentType);
      } catch (error) {
        this.note(group, `A message could not be read: ${String(error)}`);
      }
    }
    await this.store(group);
    await this.follow(group);
  }

  private async take(group: Group, position: Position, counter: number, octets: Octets, kind: number | null): Promise<void> {
    const number = position.epoch;
    const own = group.sending.findIndex((each) => equal(each.message, octets));
    if (own >= 0) {
      const text = group.sending[own]!.text;
      group.sending.splice(own, 1);
      if (kind === ContentType.APPLICATION) this.addText(group, number, counter, this.me.userId, text);
      return;
    }
    const before = await this.epochOf(group);
    const leftBy = (by: string) => {
      if (!group.linear) position.left = { state: before.save(), by };
    };
    if (group.pending && equal(group.pending.message, octets)) {
      const next = await Epoch.load(group.pending.next);
      this.tell(group, number, counter, this.me.userId, before, next);
      leftBy(this.me.userId);
      return this.enter(group, next);
    }
    if (kind === ContentType.COMMIT && !group.linear) {
      // While our own commit is on its way, this one is the other branch, although it came first.
      if (group.pending && number === before.number) {
        return this.fork(group, number, counter, octets, { state: before.save(), by: this.me.userId });
      }
      if (position.left) return this.fork(group, number, counter, octets, position.left);
    }
    if (kind !== ContentType.APPLICATION && number !== before.number) return; // another branch, or an epoch that is over
    const { from, content, epoch } = await before.process(octets);
    if (content !== undefined) this.addText(group, number, counter, from, content);
    this.keep(group, epoch);
    if (kind !== ContentType.COMMIT) return;
    this.tell(group, number, counter, from, before, epoch);
    leftBy(from);
    if (epoch.isMember) return this.enter(group, epoch);
    group.state = group.state === "leaving" ? "left" : "removed";
    this.end(group, epoch);
  }

  /** Ends a group in which this member is no more, at its own provider too unless it is in another branch. */
  private end(group: Group, epoch: Epoch): void {
    group.members = group.members.filter((each) => each !== this.me.userId);
    delete group.pending;
    this.epochIsOver();
    if (!group.linear && group.state === "removed") return; // another branch may still have us
    this.stream.withdraw(...group.keys.map(({ key }) => key));
    if (this.branches(toHex(epoch.groupId)).some((each) => each.state === "member")) return;
    void this.device.leave(group.hub, epoch.groupId).catch(() => undefined);
  }

  /** Follows a second commit of an epoch, on a copy of the state before the first: it begins a further branch. */
  private async fork(group: Group, number: number, counter: number, octets: Octets, left: Left): Promise<void> {
    const before = await Epoch.load(left.state);
    const branch = this.newBranch(group, before, number, left.by);
    if (branch === null) return;
    branch.state = "unreadable";
    try {
      const { from, epoch } = await before.process(octets);
      branch.fork = { epoch: number, by: from };
      branch.state = epoch.isMember ? "member" : "removed";
      this.tell(branch, number, counter, from, before, epoch);
      if (epoch.isMember) return await this.enter(branch, epoch);
      branch.members = before.members.filter((each) => each !== this.me.userId);
    } catch (error) {
      console.warn(error);
    }
    await this.store(branch);
  }

  /** Does what has to follow: commits a proposal of somebody who leaves, and proposes our own leaving again, or ends it. */
  private async follow(group: Group): Promise<void> {
    const epoch = await this.epochOf(group);
    if (group.state === "member" && epoch.hasProposals && !group.pending) {
      void this.change(group, null, (now) => (now.hasProposals ? now.commit() : null)).catch(
        () => undefined,
      );
    }
    if (group.state !== "leaving" || group.sending.length) return;
    if (epoch.isDeserted) {
      group.state = "left";
      group.members = []; // the others leave in the same way
      this.end(group, epoch);
      await this.store(group);
    } else if (!epoch.hasProposals) void this.leave(group);
  }

  private async join(welcomeId: bigint, hub: string, welcome: Octets): Promise<void> {
    const joined = await Epoch.join(welcome, [...this.packages.values()]);
    if (joined !== null) {
      const [epoch, own] = joined;
      this.packages.delete(own.ref);
      const id = toHex(epoch.groupId);
      const again = this.groups.get(id);
      const forked = again && !again.linear && again.state === "member";
      const branch = forked ? this.newBranch(again, epoch, epoch.number - 1, "") : null;
      const group = branch ?? this.newGroup(epoch, hub, again?.name ?? "New group", true);
      if (again && !branch) group.lines = again.lines;
      this.addLine(group, epoch.number - 1, Number.MAX_SAFE_INTEGER, this.me.userId, { what: "joined" });
      await this.enter(group, epoch);
      await this.storage.set({ [`package ${own.ref}`]: undefined });
    }
    this.stream.acknowledge(welcomeId); // one that no KeyPackage of ours opens, too
  }

  // --- state -----------------------------------------------------------------------------------------------------------

  /** The branches of a group: all that there is of it, if it has not forked. */
  branches(id: string): Group[] {
    return [...this.groups.values()].filter((each) => each.id === id || each.branchOf === id);
  }

  private newBranch(group: Group, epoch: Epoch, forkedAt: number, by: string): Group | null {
    const first = this.groups.get(group.branchOf ?? group.id)!;
    const others = this.branches(first.id).length;
    if (others >= MOST_BRANCHES) {
      this.note(first, `This page follows ${MOST_BRANCHES} branches of a group, and there are more.`);
      return null;
    }
    first.fork ??= { epoch: forkedAt, by };
    const branch = this.newGroup(epoch, group.hub, first.name, false, `${first.id}-${others}`);
    return Object.assign(branch, { branchOf: first.id, fork: { epoch: forkedAt, by: "" } });
  }

  private newGroup(epoch: Epoch, hub: string, name: string, linear: boolean, id = toHex(epoch.groupId)): Group {
    const none = { members: [], keys: [], lines: [], sending: [] };
    const group: Group = { id, name, hub, linear, state: "member", epoch: epoch.save(), ...none };
    this.groups.set(id, group);
    return group;
  }

  /** Makes this the epoch of the group, and asks for its messages. */
  private async enter(group: Group, epoch: Epoch): Promise<void> {
    const before = group.keys.at(-1)?.key;
    this.keep(group, epoch);
    group.members = epoch.members;
    delete group.pending;
    group.keys = [...group.keys, { key: epoch.key, epoch: epoch.number, next: 0 }].slice(-KEPT_KEYS);
    await this.store(group);
    this.stream.present(group.hub, epoch.key, 0, before === undefined ? {} : { after: before });
    this.epochIsOver();
  }

  /** Adds lines that say what a commit did. */
  private tell(group: Group, number: number, counter: number, from: string, before: Epoch, after: Epoch): void {
    const gone = after.isMember ? before.members.filter((each) => !after.members.includes(each)) : [this.me.userId];
    const added = after.members.filter((each) => !before.members.includes(each));
    const add = (by: string, what: string) => this.addLine(group, number, counter, by, { what });
    for (const each of gone) before.hasProposals ? add(each, "left") : add(from, `removed ${nameOf(each)}`);
    for (const each of added) add(from, `added ${nameOf(each)}`);
    if (!gone.length && !added.length) add(from, "made new keys");
  }

  private addText(group: Group, epoch: number, counter: number, from: string, text: string): void {
    if (!text.startsWith(INTRODUCTION)) return this.addLine(group, epoch, counter, from, { text });
    const { name, linear } = JSON.parse(text.slice(INTRODUCTION.length)) as { name: string; linear: boolean };
    Object.assign(group, { name: String(name).slice(0, 60), linear: Boolean(linear) });
  }

  private addLine(group: Group, epoch: number, counter: number, from: string, rest: { text?: string; what?: string }): void {
    group.lines.push({ epoch, counter, from, at: Date.now(), ...rest });
    group.lines.sort((one, other) => one.epoch - other.epoch || one.counter - other.counter);
  }

  private note(group: Group, note: string): void {
    group.note = note;
    this.changed();
  }

  private async epochOf(group: Group): Promise<Epoch> {
    const epoch = this.epochs.get(group.id) ?? (await Epoch.load(group.epoch));
    this.epochs.set(group.id, epoch);
    return epoch;
  }

  /** Takes this as the newest state of the group; `store` writes it. */
  private keep(group: Group, epoch: Epoch): void {
    this.epochs.set(group.id, epoch);
    group.epoch = epoch.save();
  }

  /** Stores the group with all its branches, so that a crash leaves no branch without the position of its commit. */
  private async store(group: Group): Promise<void> {
    const branches = this.branches(group.branchOf ?? group.id);
    await this.storage.set(Object.fromEntries(branches.map((each) => [`group ${each.id}`, each])));
    this.changed();
  }

  private async stockUp(count: number, replace: boolean): Promise<void> {
    const made = await Promise.all(Array.from({ length: count }, () => makeKeyPackage(this.me.userId)));
    await this.storage.set(Object.fromEntries(made.map((own) => [`package ${own.ref}`, own])));
    for (const own of made) this.packages.set(own.ref, own);
    await this.device.upload(made.map(({ encoded }) => encoded), { replace });
  }

  /** Runs one thing after the other. */
  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.last.then(work);
    this.last = done.catch(() => undefined);
    return done;
  }

  private nextEpoch(): Promise<void> {
    return new Promise((resolve) => this.epochWaiters.push(resolve));
  }

  private epochIsOver(): void {
    for (const resolve of this.epochWaiters.splice(0)) resolve();
  }
}

const INTRODUCTION = "\u0001group "; // a message that tells those who join the group's name

/** Returns the name in a user id: `mimi://red.example/u/alice` is alice. */
export function nameOf(userId: string): string {
  return decodeURIComponent(userId.slice(userId.lastIndexOf("/") + 1));
}

/** Returns the provider in a user id. */
export function homeOf(userId: string): string {
  return userId.split("/")[2] ?? "";
}

/** What the page shows of a `Chat`, and what its buttons do. */

import type { Contact } from "mimids-client";
import { type Chat, type Group, homeOf, type Line, nameOf } from "./chat.js";

type Child = Node | string;

/** Makes an element; texts are never read as HTML. */
function make(tag: string, attributes: Record<string, string> = {}, ...children: Child[]): HTMLElement {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function find<T extends HTMLElement>(selector: string): T {
  return document.querySelector<T>(selector)!;
}

export class Page {
  private chosen: string | null = null;
  private error = "";
  private readonly shown = new Map<string, string>(); // what each list was last made from

  constructor(
    private readonly chat: Chat,
    private readonly contacts: readonly Contact[],
  ) {
    find("#me").textContent = nameOf(chat.me.userId);
    find("#home").textContent = `at ${chat.me.provider}`;
    document.title = `${nameOf(chat.me.userId)} – mimids chat`;
    find("#new-group").addEventListener("submit", (event) => {
      event.preventDefault();
      const form = event.target as HTMLFormElement;
      const [name, linear] = [new FormData(form).get("name") as string, !new FormData(form).has("forking")];
      form.reset();
      this.try(async () => void (this.chosen = (await chat.createGroup(name, { linear })).id));
    });
    find("#compose").addEventListener("submit", (event) => {
      event.preventDefault();
      const input = find<HTMLInputElement>("#text");
      const [group, text] = [this.group, input.value.trim()];
      if (!group || !text) return;
      input.value = "";
      this.try(() => chat.say(group, text));
    });
    find("#leave").addEventListener("click", () => this.group && this.try(() => chat.leave(this.group!)));
    find("#renew").addEventListener("click", () => this.group && this.try(() => chat.renewKeys(this.group!)));
  }

  /** The chosen group; if it has forked, the branch that messages and changes are made in. */
  private get group(): Group | undefined {
    return this.chat.groups.get(this.chosen ?? "");
  }

  private try(act: () => Promise<void>): void {
    this.error = "";
    act().then(
      () => this.show(),
      (error: unknown) => {
        this.error = error instanceof Error ? error.message : String(error);
        this.show();
      },
    );
  }

  show(): void {
    const { chat } = this;
    if (!this.group) this.chosen = [...chat.groups.keys()][0] ?? null;
    const group = this.group;
    const status = chat.connected ? (chat.caughtUp ? "Connected" : "Connected, catching up") : "Offline, trying again";
    if (find("#status").textContent !== status) find("#status").textContent = status;
    find("#status").dataset["state"] = chat.connected ? "connected" : "offline";
    const groups = [...chat.groups.values()].filter((each) => each.branchOf === undefined);
    const branches = group ? chat.branches(group.branchOf ?? group.id) : [];
    const names = groups.map((each) => [each.id, each.name]);
    this.fill("#groups", [names, this.chosen], () => groups.map((each) => this.groupItem(each, each === branches[0])));
    find("main").dataset["group"] = group?.id ?? "";
    find("#group-name").textContent = group?.name ?? "Welcome";
    find("#empty").hidden = group !== undefined;
    find("#error").textContent = this.error || group?.note || "";
    for (const selector of ["#compose", "#actions"]) find(selector).hidden = group?.state !== "member";
    find("#leave").hidden = (group?.members.length ?? 0) < 2; // nobody would be there to take the last member out
    find("#ended").textContent = group?.state === "left" && !group.members.length ? DESERTED : ENDED[group?.state ?? "member"];
    this.showLines(branches);
    find<HTMLInputElement>("#text").placeholder = branches.length > 1 ? "Write in the chosen branch" : "Write a message";
    const whoIsIn = [this.chosen, group?.members, group?.state, this.error];
    this.fill("#people", whoIsIn, () => (group ? this.people(group) : []));
    find("#sees").replaceChildren(...(group ? sees(chat, group) : []));
    find("#aside").hidden = group === undefined;
  }

  private groupItem(group: Group, isChosen: boolean): HTMLElement {
    const button = make("button", { type: "button" }, group.name);
    if (isChosen) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => {
      this.chosen = group.id;
      this.show();
    });
    return make("li", {}, button);
  }

  /** Shows what was said before a fork, and below it the branches side by side. */
  private showLines(branches: readonly Group[]): void {
    const [first] = branches;
    const forked = branches.length > 1;
    const isCommon = (line: Line) => !forked || isBefore(line, first!.fork!.epoch);
    const source = branches.map(({ id, lines, sending, state, members }) => [id, lines.length, sending.length, state, members]);
    const isNew = this.fill("#lines", source, () => [
      ...(first?.lines.filter(isCommon).map((line) => this.lineItem(line)) ?? []),
      ...(first && !forked ? waiting(first) : []),
    ]);
    this.fill("#branches", [source, this.chosen], () => (forked ? branches.map((each) => this.branch(each, isCommon)) : []));
    if (isNew) find("#scroll").scrollTop = find("#scroll").scrollHeight;
  }

  private branch(branch: Group, isCommon: (line: Line) => boolean): HTMLElement {
    const by = branch.fork!.by;
    const title = by === this.chat.me.userId ? "Your branch" : by ? `Branch of ${nameOf(by)}` : "Another branch";
    const section = make("section", { "aria-label": title }, make("h3", {}, title));
    if (branch.state === "unreadable") section.append(make("p", {}, "This page cannot read this branch."));
    else section.append(make("p", { class: "members" }, `Members: ${listed(branch.members.map(nameOf))}`));
    if (branch.state === "removed") section.append(make("p", {}, "You are not in this branch."));
    if (branch.state === "member") {
      const choose = make("button", { type: "button", "aria-pressed": String(branch.id === this.chosen) }, "Write here");
      choose.addEventListener("click", () => {
        this.chosen = branch.id;
        this.show();
        find(`#branches [aria-pressed="true"]`).focus();
      });
      section.append(choose);
    }
    const lines = branch.lines.filter((line) => branch.branchOf !== undefined || !isCommon(line));
    section.append(make("ol", { class: "lines" }, ...lines.map((line) => this.lineItem(line)), ...waiting(branch)));
    return section;
  }

  private lineItem(line: Line): HTMLElement {
    return lineItem(line, line.from === this.chat.me.userId);
  }

  /** Makes a list anew if what it is made from has changed: otherwise what has the focus would lose it. */
  private fill(selector: string, from: unknown, items: () => HTMLElement[]): boolean {
    const source = JSON.stringify(from);
    if (this.shown.get(selector) === source) return false;
    this.shown.set(selector, source);
    find(selector).replaceChildren(...items());
    return true;
  }

  /** The members, and those who can be added. */
  private people(group: Group): HTMLElement[] {
    const isIn = group.state === "member";
    const mine = this.chat.me.userId;
    const members = group.members.map((userId) => {
      const item = make("li", {}, make("b", {}, nameOf(userId)), make("small", {}, homeOf(userId)));
      if (userId === mine) item.append(make("span", { class: "you" }, "you"));
      else if (isIn) item.append(this.button("Remove", nameOf(userId), () => this.chat.remove(group, userId)));
      return item;
    });
    const others = this.contacts.filter((each) => !group.members.includes(userIdOf(each)));
    const addable = others.map((contact) => {
      const userId = userIdOf(contact);
      const item = make("li", { class: "outside" }, make("b", {}, nameOf(userId)), make("small", {}, homeOf(userId)));
      if (isIn) item.append(this.button("Add", nameOf(userId), () => this.chat.add(group, contact)));
      return item;
    });
    return [...members, ...addable];
  }

  private button(label: string, whom: string, act: () => Promise<void>): HTMLElement {
    const button = make("button", { type: "button", "aria-label": `${label} ${whom}` }, label);
    button.addEventListener("click", () => {
      button.setAttribute("disabled", "");
      this.try(act);
    });
    return button;
  }
}

const ENDED: Record<Group["state"], string> = {
  member: "",
  leaving: "You are leaving: the next member who is online takes you out of the group.",
  left: "You left. New messages are encrypted for the others only.",
  removed: "You were removed. New messages are encrypted for the others only.",
  unreadable: "This page cannot read this branch.",
};
const DESERTED = "You left, and nobody is in the group any more.";

/** Whether a line belongs to all branches: a message of the epoch that was forked does, the commits that forked it do not. */
function isBefore(line: Line, forkedAt: number): boolean {
  return line.epoch < forkedAt || (line.epoch === forkedAt && line.text !== undefined);
}

function waiting({ sending }: Group): HTMLElement[] {
  const texts = sending.map(({ text }) => text).filter((text) => text && !text.startsWith("\u0001"));
  return texts.map((text) => make("li", { class: "mine waiting" }, make("p", {}, text), "sending"));
}

function userIdOf(contact: Contact): string {
  return new TextDecoder().decode(contact.userId);
}

function lineItem(line: Line, mine: boolean): HTMLElement {
  if (line.text === undefined) {
    return make("li", { class: "event" }, `${mine ? "You" : nameOf(line.from)} ${line.what ?? ""}`);
  }
  const time = new Date(line.at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const who = make("span", { class: "who" }, mine ? "You" : nameOf(line.from));
  return make("li", { class: mine ? "mine" : "theirs" }, who, make("p", {}, line.text), make("time", {}, time));
}

/** Says, in plain words, who can read and who sees what. */
function sees(chat: Chat, group: Group): HTMLElement[] {
  const homes = [...new Set(group.members.map(homeOf))];
  const others = group.members.filter((each) => each !== chat.me.userId).map(nameOf);
  const isIn = group.state === "member" || group.state === "leaving";
  const row = (who: string, what: string, ...more: HTMLElement[]) => [make("dt", {}, who), make("dd", {}, what, ...more)];
  const readers = listed(isIn ? ["You", ...others] : others);
  const rows = [
    ...row(
      readers || "Nobody",
      !readers
        ? "is in the group any more. What was said is still on your device."
        : isIn
          ? "can read new messages. Each message is encrypted on the sender's device for exactly these people, with keys that only their devices have."
          : `${others.length === 1 ? "was" : "were"} in the group with you, and can read what is said since. You cannot: each message is encrypted on the sender's device for exactly those who are in the group then. What was said in your time is still on your device.`,
    ),
    ...row(
      group.hub,
      "keeps the order of the messages. Of each it sees how large it is, when it comes and from which provider; of its own users, also from whom. It cannot read them. What the group is called, and which people of other providers are in it, is encrypted too.",
    ),
  ];
  for (const home of homes.filter((each) => each !== group.hub)) {
    const here = listed(group.members.filter((each) => homeOf(each) === home).map(nameOf));
    rows.push(...row(home, `carries the messages to and from ${here}, so it sees when they write. It cannot read them either, and sees no others of this group's people.`));
  }
  rows.push(
    ...row(
      "When somebody is added",
      "their provider gives out a key for them. The request goes through your own provider in a sealed envelope: yours sees only which provider it goes to, and theirs does not see who asks. (Here each provider has one person, so the provider gives the person away; among many it does not.)",
    ),
    ...row(
      "When somebody leaves or is removed",
      `the others change all keys at once. This is key number ${Math.max(...group.keys.map((each) => each.epoch), 0) + 1} of this group. Whoever is gone cannot read what comes later; whoever is new cannot read what was said before.`,
    ),
    ...row(
      "If two people change the group at once",
      group.linear
        ? `${group.hub} takes the change that comes first; the other device makes its change again on top of it.`
        : `${group.hub} takes both changes. The group then has two branches, each with its own members and keys.`,
    ),
  );
  return rows;
}

function listed(names: readonly string[]): string {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** What can go wrong: no answer, or a refusal. */

import { fromBase64url, type Octets } from "./octets.js";

/** The provider did not answer. The request may or may not have been processed; it is safe to send it again. */
export class Unreachable extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "Unreachable";
  }
}

/** A refusal (RFC 9457). `code` is the last part of its type, such as `wrong-epoch`; `members` is the document. */
export class Problem extends Error {
  readonly code: string;

  constructor(
    readonly status: number,
    readonly members: Readonly<Record<string, unknown>>,
  ) {
    const type = typeof members["type"] === "string" ? members["type"] : "about:blank";
    const code = type.replace(/^urn:mimids:problem:/, "").replace(/^.*#/s, "");
    super(`${code}: ${String(members["detail"] || members["title"] || `status ${status}`)}`);
    this.name = new.target.name;
    this.code = code;
  }

  /** Whether the same request may succeed later. */
  get isTemporary(): boolean {
    return this.status >= 500 || this.status === 408 || this.status === 429;
  }

  /** After how many seconds to try again, if the provider said so. */
  get retryAfterSeconds(): number | undefined {
    const seconds = this.members["retry_after"];
    return typeof seconds === "number" ? seconds : undefined;
  }
}

/**
 * The hub terminated this branch: it accepts no more messages; receiving still works.
 *
 * A client MUST NOT automatically join from outside because of this (DS draft, "Fork Termination"). Show this to the
 * user, who has to decide.
 */
export class BranchTerminated extends Problem {}

/** The partition ends before the counter that was asked for: its hub lost messages in a restore. */
export class CounterAhead extends Problem {
  /** The counter to ask from; the hub gives this counter and all later ones to new messages. */
  get nextCounter(): number {
    return counterOf(this.members["next_counter"]);
  }
}

/** Another commit of this epoch came first, in a linear group. Receive it, apply it, and make the change again. */
export class CommitSuperseded extends Problem {
  /** The counter of the commit that came first, in the partition to which the refused commit was sent. */
  get counter(): number {
    return counterOf(this.members["counter"]);
  }

  /** The masked key of the partition that the first commit opened. */
  get nextMaskedKey(): Octets {
    return octetsOf(this.members["next_masked_key"]);
  }
}

/** Another group, perhaps at another hub, replaces this one. Nothing is joined automatically: the user decides. */
export class GroupReplaced extends Problem {
  get groupId(): Octets {
    return octetsOf(this.members["group_id"]);
  }

  get hub(): string {
    return String(this.members["hub"]);
  }
}

const KINDS: Readonly<Record<string, typeof Problem>> = {
  "urn:mimids:problem:branch-terminated": BranchTerminated,
  "urn:mimids:problem:counter-ahead": CounterAhead,
  "urn:mimids:problem:commit-superseded": CommitSuperseded,
  "urn:mimids:problem:group-replaced": GroupReplaced,
};

/** Returns the problem that a document describes; if `status` is null, the document's status is used, or 500. */
export function problemFromJson(status: number | null, document: string): Problem {
  let members: Record<string, unknown> = {};
  try {
    const parsed: unknown = JSON.parse(document);
    if (typeof parsed === "object" && parsed !== null && !Array.isArray(parsed)) {
      members = parsed as Record<string, unknown>;
    }
  } catch {
    // an unreadable document is a refusal too
  }
  const named = members["status"];
  return new (KINDS[String(members["type"])] ?? Problem)(
    status ?? (Number.isInteger(named) ? (named as number) : 500),
    members,
  );
}

function counterOf(member: unknown): number {
  return typeof member === "number" && Number.isInteger(member) && member >= 0 ? member : 0;
}

function octetsOf(member: unknown): Octets {
  return fromBase64url(String(member ?? ""));
}

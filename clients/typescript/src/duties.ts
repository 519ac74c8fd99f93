/**
 * What the drafts require of clients, because a Delivery Service cannot do it for them. Nothing here does any I/O.
 *
 * - Ignore a commit whose next partition key or GroupInfo is not the expected one: `checkCommit`.
 * - Send a Remove or SelfRemove again if a commit was sequenced before it: `Departure`.
 * - Never rejoin automatically when a branch is terminated: `BranchTerminated` is thrown, and nothing here joins a group.
 */

import { masksOf, type PartitionKey } from "./ids.js";
import type { Message, SendRequest } from "./messages.js";
import { ContentType, GroupContext, type GroupInfo, WireFormat } from "./mls.js";
import { equal, type Octets } from "./octets.js";

/** A commit that members have to ignore (DS draft, "Receiving Messages"): stay in the current epoch. */
export class UnexpectedCommit extends Error {
  constructor(message: string) {
    super(message);
    this.name = "UnexpectedCommit";
  }
}

/** What the client's own MLS library computes from a commit, before merging it. */
export interface Expected {
  partitionKey: PartitionKey;
  /** The encoded GroupContext of the new epoch. */
  groupContext: Octets;
  /** The confirmation tag of the commit. */
  confirmationTag: Octets;
  /** The leaf index of the committer in the new epoch. */
  signer: number;
  /** Whether the group's commits come with a GroupInfo; by default they may. */
  groupInfo?: "needed" | "allowed" | "forbidden";
  /** Verifies the signature of an encoded GroupInfo with the committer's key, as MLS libraries do. */
  verifyGroupInfo: (groupInfo: Octets) => boolean | Promise<boolean>;
}

/**
 * Throws `UnexpectedCommit` unless the partition key and GroupInfo sent with a commit belong to its new epoch.
 *
 * The hub cannot forge a commit. But the hub or the committer could send another partition key or a GroupInfo of another
 * epoch with it, and so lead members or joiners into another branch.
 */
export async function checkCommit(message: Message, expected: Expected): Promise<void> {
  const hint = message.commit;
  if (hint === null) throw new UnexpectedCommit("the message is not a commit");
  if (!(await masksOf(expected.partitionKey)).some((mask) => equal(mask, hint.nextPartitionKey))) {
    throw new UnexpectedCommit("the commit does not name the partition of its new epoch");
  }
  const { groupInfo: rule = "allowed" } = expected;
  if (hint.groupInfo === null) {
    if (rule !== "needed") return;
    throw new UnexpectedCommit("the commit comes without a GroupInfo, which this group requires");
  }
  if (rule === "forbidden") throw new UnexpectedCommit("the commit comes with a GroupInfo, which this group forbids");
  if (hint.groupInfo.wireFormat !== WireFormat.GROUP_INFO) {
    throw new UnexpectedCommit("the commit comes with an object that is not a GroupInfo");
  }
  const info = hint.groupInfo.message as GroupInfo;
  if (!equal(GroupContext.encode(info.groupContext), expected.groupContext)) {
    throw new UnexpectedCommit("the GroupInfo is of another epoch");
  }
  if (!equal(info.confirmationTag, expected.confirmationTag)) {
    throw new UnexpectedCommit("the GroupInfo does not have the confirmation tag of the commit");
  }
  if (info.signer !== expected.signer) {
    throw new UnexpectedCommit("the GroupInfo is not signed by the committer");
  }
  if (!(await expected.verifyGroupInfo(hint.groupInfo.encoded))) {
    throw new UnexpectedCommit("the signature of the GroupInfo does not verify");
  }
}

/**
 * Sends a Remove or SelfRemove again until it is sequenced before a commit (DS draft, "Self-Remove").
 *
 * Send `request`, then call `leave`, and keep receiving the epoch. Give the messages to `look`; it returns what has to be
 * sent again, if anything. Once `done` is true, nothing more is needed: the next commit has to cover the proposal.
 */
export class Departure {
  done = false;

  constructor(public request: SendRequest) {}

  /**
   * Looks at messages of the epoch, in their order; returns a proposal to send now, or null.
   *
   * `propose` gets a commit that was sequenced before the proposal, and returns the proposal for the new epoch. It
   * returns null if the commit has to be ignored, or if we are not a member in the new epoch.
   */
  async look(
    messages: readonly Message[],
    propose: (commit: Message) => SendRequest | null | Promise<SendRequest | null>,
  ): Promise<SendRequest | null> {
    if (this.done) return null;
    const ours = this.request.message.encoded;
    for (const message of messages) {
      if (equal(message.message.encoded, ours)) {
        this.done = true;
        return null;
      }
      if (message.message.contentType === ContentType.COMMIT) {
        const again = await propose(message);
        if (again !== null) {
          this.request = again;
          return again;
        }
      }
    }
    return null;
  }
}

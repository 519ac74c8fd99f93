/**
 * Requests made from the octets that an MLS library returns. Nothing here does any I/O.
 *
 * All functions throw for octets that are not an MLSMessage. An MLSMessage (RFC 9420 section 6) begins with version
 * and wire format; some libraries return only the message inside it.
 */

import { UNPARSED_VECTOR } from "./codec.js";
import { MLSMessage } from "./framing.js";
import type { PartitionKey } from "./ids.js";
import type {
  CommitData,
  CreateGroupRequest,
  ExternalJoinRequest,
  ExternalProposalRequest,
  SendRequest,
  WelcomeData,
} from "./messages.js";
import { ContentType } from "./mls.js";
import type { Octets } from "./octets.js";

/** The Welcome and GroupInfo of a commit: what joiners need. */
export interface ForJoiners {
  groupInfo?: Octets;
  welcome?: Octets;
  /** The provider of the added device for each secret of the Welcome, in their order. */
  serviceProviders?: readonly string[];
}

/** Returns the request that sends an application message or a proposal; `partitionKey` is the key of its epoch. */
export function message(mlsMessage: Octets, partitionKey: PartitionKey): SendRequest {
  const parsed = MLSMessage.decode(mlsMessage);
  if (parsed.contentType !== ContentType.APPLICATION && parsed.contentType !== ContentType.PROPOSAL) {
    throw new Error("this is neither an application message nor a proposal");
  }
  return { message: parsed, partitionKey, commitData: null };
}

/** Returns the request that sends a commit; `nextPartitionKey` is the key of the epoch that the commit starts. */
export function commit(
  mlsMessage: Octets,
  partitionKey: PartitionKey,
  nextPartitionKey: PartitionKey,
  joiners: ForJoiners = {},
): SendRequest {
  const parsed = MLSMessage.decode(mlsMessage);
  if (parsed.contentType !== ContentType.COMMIT) throw new Error("this is not a commit");
  return { message: parsed, partitionKey, commitData: commitData(nextPartitionKey, joiners) };
}

/**
 * Returns the request that creates a group at the device's own provider; `partitionKey` is the first epoch's key.
 *
 * `groupInfo`, with `ratchetTree` unless the GroupInfo contains it, lets the hub follow the group's public state. A
 * group id has 1 to 256 octets.
 */
export function creation(
  groupId: Octets,
  cipherSuite: number,
  partitionKey: PartitionKey,
  joiners: ForJoiners & { ratchetTree?: Octets } = {},
): CreateGroupRequest {
  if (groupId.length < 1 || groupId.length > 256) throw new Error("a group id has 1 to 256 octets");
  return {
    groupId,
    version: 1,
    cipherSuite,
    partitionKey,
    groupInfo: optionalMessage(joiners.groupInfo),
    ratchetTree: joiners.ratchetTree === undefined ? null : UNPARSED_VECTOR.decode(joiners.ratchetTree),
    welcomeData: welcomeData(joiners),
  };
}

/** Returns the request that sends an external commit. Never join automatically after `BranchTerminated`. */
export function externalJoin(
  mlsMessage: Octets,
  nextPartitionKey: PartitionKey,
  { groupInfo }: { groupInfo?: Octets } = {},
): ExternalJoinRequest {
  return {
    message: MLSMessage.decode(mlsMessage),
    commitData: commitData(nextPartitionKey, groupInfo === undefined ? {} : { groupInfo }),
  };
}

/** Returns the request that sends an external proposal to a partition, by default the one of group-info. */
export function externalProposal(mlsMessage: Octets, partition: Octets | null = null): ExternalProposalRequest {
  return { message: MLSMessage.decode(mlsMessage), partition };
}

function commitData(nextPartitionKey: PartitionKey, joiners: ForJoiners): CommitData {
  return { nextPartitionKey, groupInfo: optionalMessage(joiners.groupInfo), welcomeData: welcomeData(joiners) };
}

function optionalMessage(mlsMessage: Octets | undefined): MLSMessage | null {
  return mlsMessage === undefined ? null : MLSMessage.decode(mlsMessage);
}

function welcomeData({ welcome, serviceProviders = [] }: ForJoiners): WelcomeData | null {
  if (welcome === undefined) return null;
  return { welcome: MLSMessage.decode(welcome), serviceProviders: [...serviceProviders] };
}

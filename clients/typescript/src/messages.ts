// Printed by `make clients` from the declarations in Python. Change those.

import {
  type Codec,
  NOTHING,
  OPAQUE,
  UINT8,
  UINT16,
  UINT32,
  UNPARSED_VECTOR,
  fixed,
  octetsOf,
  oneOf,
  opaque,
  optional,
  select,
  struct,
  text,
  uint,
  uint64,
  vector,
} from "./codec.js";
import { MLSMessage } from "./framing.js";
import { KeyPackage } from "./mls.js";
import type { Octets } from "./octets.js";

/** Ask a provider for one KeyPackage of one of its users (DS draft, "Key Packages"). */
export interface KeyPackageRequest {
  userId: Octets;
  bearerToken: Octets;
  version: number;
  cipherSuite: number;
}
export const KeyPackageRequest: Codec<KeyPackageRequest> = struct("KeyPackageRequest", {
  userId: opaque(1024),
  bearerToken: opaque(1024),
  version: UINT16,
  cipherSuite: UINT16,
});

/** The KeyPackage that was handed out; each ordinary KeyPackage is handed out only once. */
export interface KeyPackageResponse {
  keyPackage: Octets;
}
export const KeyPackageResponse: Codec<KeyPackageResponse> = struct("KeyPackageResponse", {
  keyPackage: octetsOf(KeyPackage),
});

/** Several requests, answered in one transaction. */
export interface KeyPackageBundleRequest {
  requests: KeyPackageRequest[];
}
export const KeyPackageBundleRequest: Codec<KeyPackageBundleRequest> = struct("KeyPackageBundleRequest", {
  requests: vector(KeyPackageRequest, 1024),
});

/** The outcome of one request of a bundle. */
export const KeyPackageStatus = {
  OK: 0,
  REFUSED: 1,
  EXHAUSTED: 2,
} as const;
export type KeyPackageStatus = (typeof KeyPackageStatus)[keyof typeof KeyPackageStatus];

/** The answer to one request of a bundle, in request order. */
export interface KeyPackageResult {
  status: KeyPackageStatus;
  keyPackage: Octets | null;
}
export const KeyPackageResult: Codec<KeyPackageResult> = struct("KeyPackageResult", {
  status: oneOf(1, KeyPackageStatus),
  keyPackage: select("status", {
    0: octetsOf(KeyPackage),
    1: NOTHING,
    2: NOTHING,
  }),
});

/** One result for each request, in order. */
export interface KeyPackageBundleResponse {
  results: KeyPackageResult[];
}
export const KeyPackageBundleResponse: Codec<KeyPackageBundleResponse> = struct("KeyPackageBundleResponse", {
  results: vector(KeyPackageResult, 1024),
});

/** Ask the device's own provider for one KeyPackage of each of the user's other devices. */
export interface SiblingsRequest {
  version: number;
  cipherSuite: number;
}
export const SiblingsRequest: Codec<SiblingsRequest> = struct("SiblingsRequest", {
  version: UINT16,
  cipherSuite: UINT16,
});

/** A Welcome, and for each of its secrets the provider of the recipient. */
export interface WelcomeData {
  welcome: MLSMessage;
  serviceProviders: string[];
}
export const WelcomeData: Codec<WelcomeData> = struct("WelcomeData", {
  welcome: MLSMessage,
  serviceProviders: vector(text(253, /^(?:(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)$/), 4096),
});

/** Data sent with a commit: the key of the partition that it opens, and what joiners need. */
export interface CommitData {
  nextPartitionKey: Octets;
  groupInfo: MLSMessage | null;
  welcomeData: WelcomeData | null;
}
export const CommitData: Codec<CommitData> = struct("CommitData", {
  nextPartitionKey: fixed(16),
  groupInfo: optional(MLSMessage),
  welcomeData: optional(WelcomeData),
});

/** A message for one partition; only a commit carries CommitData. */
export interface SendRequest {
  message: MLSMessage;
  partitionKey: Octets;
  commitData: null | CommitData;
}
export const SendRequest: Codec<SendRequest> = struct("SendRequest", {
  message: MLSMessage,
  partitionKey: fixed(16),
  commitData: select("message.contentType", {
    1: NOTHING,
    2: NOTHING,
    3: CommitData,
  }),
});

/** Where and when a message was sequenced; a repeat gets the same answer. */
export interface SendResponse {
  counter: number;
  acceptedAt: bigint;
  partition: Octets;
  detached: number;
  earlierCommits: Octets[];
}
export const SendResponse: Codec<SendResponse> = struct("SendResponse", {
  counter: uint(4, 2147483647),
  acceptedAt: uint64(9223372036854775807n),
  partition: opaque(64, [32, 48, 64]),
  detached: UINT8,
  earlierCommits: vector(opaque(64, [32, 48, 64]), 65536),
});

/** Whether one message of a batch was accepted. */
export const SendStatus = {
  ACCEPTED: 0,
  REFUSED: 1,
} as const;
export type SendStatus = (typeof SendStatus)[keyof typeof SendStatus];

/** The answer to one message of a batch: a SendResponse, or the JSON of its problem (RFC 9457). */
export interface SendResult {
  status: SendStatus;
  outcome: SendResponse | Octets;
}
export const SendResult: Codec<SendResult> = struct("SendResult", {
  status: oneOf(1, SendStatus),
  outcome: select("status", {
    0: SendResponse,
    1: OPAQUE,
  }),
});

/** Ask for a partition's messages from `counter` on. */
export interface ReceiveRequest {
  partitionKey: Octets;
  counter: number;
}
export const ReceiveRequest: Codec<ReceiveRequest> = struct("ReceiveRequest", {
  partitionKey: fixed(16),
  counter: uint(4, 2147483647),
});

/** Data that a hub delivers with a commit: the partition that it opens and, if there is one, its GroupInfo. */
export interface CommitHint {
  nextPartitionKey: Octets;
  groupInfo: MLSMessage | null;
}
export const CommitHint: Codec<CommitHint> = struct("CommitHint", {
  nextPartitionKey: opaque(64, [32, 48, 64]),
  groupInfo: optional(MLSMessage),
});

/** One sequenced message. */
export interface Message {
  message: MLSMessage;
  commit: null | CommitHint;
}
export const Message: Codec<Message> = struct("Message", {
  message: MLSMessage,
  commit: select("message.contentType", {
    1: NOTHING,
    2: NOTHING,
    3: CommitHint,
  }),
});

/** Messages of one partition, in the order they were sequenced. */
export interface Epoch {
  messages: Message[];
}
export const Epoch: Codec<Epoch> = struct("Epoch", {
  messages: vector(Message, 65536),
});

/** Messages of a partition that the request did not name, from the first message on. */
export interface HintedEpoch {
  maskedPartitionKey: Octets;
  epoch: Epoch;
}
export const HintedEpoch: Codec<HintedEpoch> = struct("HintedEpoch", {
  maskedPartitionKey: opaque(64, [32, 48, 64]),
  epoch: Epoch,
});

/** The messages that were asked for, and hints; each epoch occurs once. */
export interface ReceiveResponse {
  epoch: Epoch;
  hints: HintedEpoch[];
}
export const ReceiveResponse: Codec<ReceiveResponse> = struct("ReceiveResponse", {
  epoch: Epoch,
  hints: vector(HintedEpoch, 1024),
});

/** Ask the device's own provider up to which counters it has these partitions. */
export interface PositionsRequest {
  partitionKeys: Octets[];
}
export const PositionsRequest: Codec<PositionsRequest> = struct("PositionsRequest", {
  partitionKeys: vector(fixed(16), 256),
});

/** Up to which counter the provider has a partition; if it cannot say, all fields are zero or empty. */
export interface Position {
  known: number;
  firstCounter: bigint;
  nextCounter: bigint;
  terminated: number;
  successors: Octets[];
}
export const Position: Codec<Position> = struct("Position", {
  known: UINT8,
  firstCounter: uint64(2147483647n),
  nextCounter: uint64(2147483647n),
  terminated: UINT8,
  successors: vector(opaque(64, [32, 48, 64]), 64),
});

/** One position for each key, in order. */
export interface PositionsResponse {
  positions: Position[];
}
export const PositionsResponse: Codec<PositionsResponse> = struct("PositionsResponse", {
  positions: vector(Position, 256),
});

/** Ask a provider which of these KeyPackages it accepts a Welcome for. */
export interface WelcomeInitRequest {
  keyPackageRefs: Octets[];
}
export const WelcomeInitRequest: Codec<WelcomeInitRequest> = struct("WelcomeInitRequest", {
  keyPackageRefs: vector(opaque(64), 4096),
});

/** The KeyPackages of a WelcomeInitRequest that the provider accepts a Welcome for. */
export interface WelcomeInitResponse {
  accepted: Octets[];
}
export const WelcomeInitResponse: Codec<WelcomeInitResponse> = struct("WelcomeInitResponse", {
  accepted: vector(opaque(64), 4096),
});

/** Ask a hub what became of the Welcomes that lead to a partition. */
export interface WelcomeStatusRequest {
  partitionKey: Octets;
}
export const WelcomeStatusRequest: Codec<WelcomeStatusRequest> = struct("WelcomeStatusRequest", {
  partitionKey: fixed(16),
});

/** What became of the Welcome for one KeyPackage (semantics: welcomes-and-leaving). */
export const WelcomeState = {
  MISSING: 0,
  HELD: 1,
  WAITING: 2,
  DELIVERED: 3,
  REFUSED: 4,
  EXPIRED: 5,
  CANCELLED: 6,
} as const;
export type WelcomeState = (typeof WelcomeState)[keyof typeof WelcomeState];

/** What became of the Welcome for one KeyPackage, and why. */
export interface WelcomeStatus {
  keyPackageRef: Octets;
  state: WelcomeState;
  reason: Octets;
}
export const WelcomeStatus: Codec<WelcomeStatus> = struct("WelcomeStatus", {
  keyPackageRef: opaque(64),
  state: oneOf(1, WelcomeState),
  reason: opaque(64),
});

/** The status of each KeyPackage that the Welcomes name or that the public commit adds. */
export interface WelcomeStatusResponse {
  statuses: WelcomeStatus[];
}
export const WelcomeStatusResponse: Codec<WelcomeStatusResponse> = struct("WelcomeStatusResponse", {
  statuses: vector(WelcomeStatus, 32768),
});

/** An external commit; the hub finds its partition (semantics: joining-from-outside). */
export interface ExternalJoinRequest {
  message: MLSMessage;
  commitData: CommitData;
}
export const ExternalJoinRequest: Codec<ExternalJoinRequest> = struct("ExternalJoinRequest", {
  message: MLSMessage,
  commitData: CommitData,
});

/** Ask for a group's GroupInfo. */
export interface GroupInfoRequest {
  groupId: Octets;
}
export const GroupInfoRequest: Codec<GroupInfoRequest> = struct("GroupInfoRequest", {
  groupId: opaque(256),
});

/** A GroupInfo as its sender made it, with the tree that the hub computed if the GroupInfo contains none. */
export interface GroupInfoResponse {
  groupInfo: MLSMessage;
  ratchetTree: Octets | null;
}
export const GroupInfoResponse: Codec<GroupInfoResponse> = struct("GroupInfoResponse", {
  groupInfo: MLSMessage,
  ratchetTree: optional(UNPARSED_VECTOR),
});

/** A GroupInfo, and the pending SelfRemove proposals that an external commit must cover. */
export interface GroupInfoBundle {
  info: GroupInfoResponse;
  selfRemoves: MLSMessage[];
}
export const GroupInfoBundle: Codec<GroupInfoBundle> = struct("GroupInfoBundle", {
  info: GroupInfoResponse,
  selfRemoves: vector(MLSMessage, 16384),
});

/** An external proposal, for the named partition or else for the one whose GroupInfo `group-info` returns. */
export interface ExternalProposalRequest {
  message: MLSMessage;
  partition: Octets | null;
}
export const ExternalProposalRequest: Codec<ExternalProposalRequest> = struct("ExternalProposalRequest", {
  message: MLSMessage,
  partition: optional(opaque(64, [32, 48, 64])),
});

/** Make this provider the hub of a group. */
export interface CreateGroupRequest {
  groupId: Octets;
  version: number;
  cipherSuite: number;
  partitionKey: Octets;
  groupInfo: MLSMessage | null;
  ratchetTree: Octets | null;
  welcomeData: WelcomeData | null;
}
export const CreateGroupRequest: Codec<CreateGroupRequest> = struct("CreateGroupRequest", {
  groupId: opaque(256),
  version: UINT16,
  cipherSuite: UINT16,
  partitionKey: fixed(16),
  groupInfo: optional(MLSMessage),
  ratchetTree: optional(UNPARSED_VECTOR),
  welcomeData: optional(WelcomeData),
});

/** Messages of one partition, with their group, partition and counter. */
export interface PushedEpoch {
  groupId: Octets;
  maskedPartitionKey: Octets;
  counter: number;
  opening: GroupInfoResponse | null;
  epoch: Epoch;
}
export const PushedEpoch: Codec<PushedEpoch> = struct("PushedEpoch", {
  groupId: opaque(256),
  maskedPartitionKey: opaque(64, [32, 48, 64]),
  counter: uint(4, 2147483647),
  opening: optional(GroupInfoResponse),
  epoch: Epoch,
});

/** Messages of many partitions, which may be of many groups. */
export interface PushRequest {
  epochs: PushedEpoch[];
}
export const PushRequest: Codec<PushRequest> = struct("PushRequest", {
  epochs: vector(PushedEpoch, 1024),
});

/** For each epoch the next counter to push, or `NO_LONGER_FOLLOWED`. */
export interface PushResponse {
  nextCounters: number[];
}
export const PushResponse: Codec<PushResponse> = struct("PushResponse", {
  nextCounters: vector(uint(4, 4294967295, [[0, 2147483647], [4294967295, 4294967295]]), 1024),
});

/** Ask the hub to push a partition again, from `counter` on. */
export interface ResumeRequest {
  groupId: Octets;
  maskedPartitionKey: Octets;
  counter: number;
}
export const ResumeRequest: Codec<ResumeRequest> = struct("ResumeRequest", {
  groupId: opaque(256),
  maskedPartitionKey: opaque(64, [32, 48, 64]),
  counter: uint(4, 2147483647),
});

/** Ask a provider which groups of the asking hub it knows. */
export interface HeldGroupsRequest {
  after: Octets;
}
export const HeldGroupsRequest: Codec<HeldGroupsRequest> = struct("HeldGroupsRequest", {
  after: opaque(256),
});

/** A page of group ids; ask for the next page after the last of them. */
export interface HeldGroupsResponse {
  groupIds: Octets[];
}
export const HeldGroupsResponse: Codec<HeldGroupsResponse> = struct("HeldGroupsResponse", {
  groupIds: vector(opaque(256), 10000),
});

/** A partition that the hub still knows, and the next counter that it would give there. */
export interface KnownPartition {
  maskedPartitionKey: Octets;
  counter: number;
}
export const KnownPartition: Codec<KnownPartition> = struct("KnownPartition", {
  maskedPartitionKey: opaque(64, [32, 48, 64]),
  counter: uint(4, 2147483647),
});

/** Ask a follower for the messages of a group that the hub no longer has. */
export interface RecoverRequest {
  groupId: Octets;
  known: KnownPartition[];
}
export const RecoverRequest: Codec<RecoverRequest> = struct("RecoverRequest", {
  groupId: opaque(256),
  known: vector(KnownPartition, 262144),
});

/** A page of the messages that were asked for, as they were pushed. A page without epochs is the last. */
export interface RecoverResponse {
  version: number;
  cipherSuite: number;
  epochs: PushedEpoch[];
}
export const RecoverResponse: Codec<RecoverResponse> = struct("RecoverResponse", {
  version: UINT16,
  cipherSuite: UINT16,
  epochs: vector(PushedEpoch, 1024),
});

/** A Welcome that the device has not acknowledged, and the hub of its group. */
export interface InboxWelcome {
  welcomeId: bigint;
  hub: string;
  welcome: MLSMessage;
}
export const InboxWelcome: Codec<InboxWelcome> = struct("InboxWelcome", {
  welcomeId: uint64(9223372036854775807n),
  hub: text(253, /^(?:(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)$/),
  welcome: MLSMessage,
});

/** The type of a frame. */
export const FrameType = {
  PRESENT: 1,
  WITHDRAW: 2,
  SEND: 3,
  ACK: 4,
  RESULT: 5,
  MESSAGES: 6,
  WELCOME: 7,
  STOCK: 8,
  PROBLEM: 9,
  HEARTBEAT: 10,
  CAUGHT_UP: 11,
} as const;
export type FrameType = (typeof FrameType)[keyof typeof FrameType];

/** A device's positions in partitions of one hub: the device gets the messages from these positions on. */
export interface Present {
  hub: string;
  positions: ReceiveRequest[];
}
export const Present: Codec<Present> = struct("Present", {
  hub: text(253, /^(?:(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)$/),
  positions: vector(ReceiveRequest, 4096),
});

/** The keys of partitions whose messages a device no longer wants. */
export interface Withdraw {
  keys: Octets[];
}
export const Withdraw: Codec<Withdraw> = struct("Withdraw", {
  keys: vector(fixed(16), 4096),
});

/** Messages to one hub, in order. */
export interface Send {
  hub: string;
  requests: SendRequest[];
}
export const Send: Codec<Send> = struct("Send", {
  hub: text(253, /^(?:(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)$/),
  requests: vector(SendRequest, 65536),
});

/** Welcomes that the device has stored. */
export interface Ack {
  welcomeIds: bigint[];
}
export const Ack: Codec<Ack> = struct("Ack", {
  welcomeIds: vector(uint64(9223372036854775807n), 4096),
});

/** The answers to the messages of a Send, in their order. */
export interface Result {
  results: SendResult[];
}
export const Result: Codec<Result> = struct("Result", {
  results: vector(SendResult, 65536),
});

/** Messages of a partition whose key the device presented. */
export interface Messages {
  hub: string;
  epoch: PushedEpoch;
}
export const Messages: Codec<Messages> = struct("Messages", {
  hub: text(253, /^(?:(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)$/),
  epoch: PushedEpoch,
});

/** How many ordinary KeyPackages of the device are left in stock. */
export interface Stock {
  version: number;
  cipherSuite: number;
  left: number;
}
export const Stock: Codec<Stock> = struct("Stock", {
  version: UINT16,
  cipherSuite: UINT16,
  left: UINT32,
});

/** A device asks whether the stream still works; the server answers with a Heartbeat. */
export type Heartbeat = Record<string, never>;
export const Heartbeat: Codec<Heartbeat> = struct("Heartbeat", {});

/** A device asks to be told when it has everything; the answer names hubs whose messages may be incomplete. */
export interface CaughtUp {
  missing: string[];
}
export const CaughtUp: Codec<CaughtUp> = struct("CaughtUp", {
  missing: vector(text(253, /^(?:(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)$/), 1024),
});

/** One WebSocket binary message; the device chooses `id`, and the server uses 0 in frames that it starts. */
export interface Frame {
  id: number;
  type: FrameType;
  body: Present | Withdraw | Send | Ack | Result | Messages | InboxWelcome | Stock | Octets | Heartbeat | CaughtUp;
}
export const Frame: Codec<Frame> = struct("Frame", {
  id: UINT32,
  type: oneOf(1, FrameType),
  body: select("type", {
    1: Present,
    2: Withdraw,
    3: Send,
    4: Ack,
    5: Result,
    6: Messages,
    7: InboxWelcome,
    8: Stock,
    9: OPAQUE,
    10: Heartbeat,
    11: CaughtUp,
  }),
});

export const KEY_PACKAGES = vector(octetsOf(KeyPackage), 16384);

export const SEND_REQUESTS = vector(SendRequest, 65536);

export const SEND_RESULTS = vector(SendResult, 65536);

export const INBOX_WELCOMES = vector(InboxWelcome, 16384);

export const NO_LONGER_FOLLOWED = 4294967295;

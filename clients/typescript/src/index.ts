/** The device side of mimids, for browsers and Node.js. README.md shows how to use it. */

export { WireError } from "./codec.js";
export type { DeviceOptions, WebSocketConstructor } from "./connection.js";
export { type Contact, contactFromJson, contactToJson } from "./contacts.js";
export * from "./device.js";
export { checkCommit, Departure, type Expected, UnexpectedCommit } from "./duties.js";
export * from "./events.js";
export { externalSendersData, type ProviderSignatureKey } from "./externalSenders.js";
export { MLSMessage } from "./framing.js";
export { EXPORTER_LABEL, masksOf, PARTITION_KEY_OCTETS, type PartitionKey } from "./ids.js";
export { KeySets } from "./keySets.js";
export { KeysDiffer, KeysRefused } from "./keysRefused.js";
export { type CommitAttempt, commitWithRetry, joinWithRetry } from "./linear.js";
export * as messages from "./messages.js";
export { type InboxWelcome, type Message, type SendRequest, type SendResponse, WelcomeState } from "./messages.js";
export { ContentType } from "./mls.js";
export { equal, fromBase64url, fromHex, type Octets, toBase64url, toHex } from "./octets.js";
export { BranchTerminated, CommitSuperseded, CounterAhead, GroupReplaced, Problem, Unreachable } from "./problem.js";
export { outcomeOf } from "./outbox.js";
export * as requests from "./requests.js";
export { Stream, type StreamOptions, type StreamStatistics } from "./stream.js";

/** The events of a stream. */

import type { InboxWelcome, Message } from "./messages.js";
import type { Octets } from "./octets.js";
import type { Problem } from "./problem.js";
import type { PartitionKey } from "./ids.js";

/** Messages of a partition, in their order. */
export interface Arrived {
  kind: "arrived";
  hub: string;
  groupId: Octets;
  partitionKey: PartitionKey;
  /** The counter of the first message. */
  counter: number;
  messages: Message[];
  /** The counter to present next time, once these messages are stored. */
  nextCounter: number;
  /** How many messages before these the device does not get, or are no longer kept; almost always 0. */
  skipped: number;
}

/** A Welcome: join, store, then call `acknowledge(welcomeId)`; otherwise it comes again with each new connection. */
export interface Welcomed extends InboxWelcome {
  kind: "welcome";
}

/** Few ordinary KeyPackages are left: upload more. It is repeated on each new connection until there are enough. */
export interface LowStock {
  kind: "low-stock";
  version: number;
  cipherSuite: number;
  left: number;
}

/**
 * The provider refuses to serve a partition; `partitionKey` is null if the partition is not known.
 *
 * After `unknown-partition` the key stays presented, because the partition may be opened later. After any other refusal
 * the key is withdrawn: present it again when the cause is gone. `messages-expired` names the `next_counter` to present.
 */
export interface NotServed {
  kind: "not-served";
  hub: string | null;
  partitionKey: PartitionKey | null;
  problem: Problem;
}

/**
 * The hub lost messages in a restore: the stream continues at `nextCounter` instead of `counter`.
 *
 * Messages from that counter on are new, even if the device received others with the same counters before. The device
 * has to send its own lost messages again.
 */
export interface StartedAgain {
  kind: "started-again";
  hub: string;
  partitionKey: PartitionKey;
  counter: number;
  nextCounter: number;
}

/**
 * The device has everything that was there when it connected and had presented its partitions.
 *
 * `missing` names hubs from which something may still be missing; this comes later.
 */
export interface CaughtUp {
  kind: "caught-up";
  missing: string[];
}

export type StreamEvent = Arrived | Welcomed | LowStock | NotServed | StartedAgain | CaughtUp;

/** Commits in linear groups: apply the commit that came first, and try again (docs/semantics.md#linear-groups). */

import type { Device } from "./device.js";
import type { ExternalJoinRequest, GroupInfoBundle, Message, SendRequest, SendResponse } from "./messages.js";
import { equal, type Octets } from "./octets.js";
import { CommitSuperseded } from "./problem.js";

const TRIES = 8;

/** A commit of the member's newest epoch, and the counter of that epoch's first unprocessed message. */
export interface CommitAttempt {
  request: SendRequest;
  counter: number;
}

/**
 * Sends the commit that `make` makes; if another commit came first, lets `apply` process it, then tries again.
 *
 * `apply` gets the counter of the first of the messages, and the messages from the attempt's counter on, up to the commit
 * that came first. It drops the member's own pending commit and processes the messages, so that the next attempt is of
 * the new epoch. It may skip messages that the member got in another way meanwhile.
 *
 * Throws `CommitSuperseded` after `tries` attempts, or if the commit that came first cannot be received.
 */
export async function commitWithRetry(
  device: Device,
  hub: string,
  make: () => Promise<CommitAttempt>,
  apply: (counter: number, messages: Message[]) => Promise<void>,
  { tries = TRIES } = {},
): Promise<SendResponse> {
  for (let left = tries - 1; ; left--) {
    const attempt = await make();
    try {
      return await device.send(hub, attempt.request);
    } catch (error) {
      if (!(error instanceof CommitSuperseded) || left <= 0) throw error;
      if (attempt.counter <= error.counter) {
        await apply(attempt.counter, await upToWinner(device, hub, attempt, error));
      }
    }
  }
}

/**
 * Sends the external commit that `make` makes; if another commit came first, makes a new one from the new GroupInfo.
 *
 * Throws `CommitSuperseded` after `tries` attempts.
 */
export async function joinWithRetry(
  device: Device,
  hub: string,
  groupId: Octets,
  make: (groupInfo: GroupInfoBundle) => Promise<ExternalJoinRequest>,
  { tries = TRIES } = {},
): Promise<SendResponse> {
  for (let left = tries - 1; ; left--) {
    const request = await make(await device.groupInfo(hub, groupId));
    try {
      return await device.join(hub, request);
    } catch (error) {
      if (!(error instanceof CommitSuperseded) || left <= 0) throw error;
    }
  }
}

/** Returns the messages from the attempt's counter on, up to the commit that came first. */
async function upToWinner(
  device: Device,
  hub: string,
  { request, counter }: CommitAttempt,
  superseded: CommitSuperseded,
): Promise<Message[]> {
  const found: Message[] = [];
  for await (const message of device.receiveAll(hub, request.partitionKey, counter)) {
    found.push(message);
    if (message.commit && equal(message.commit.nextPartitionKey, superseded.nextMaskedKey)) return found;
  }
  throw superseded;
}

/**
 * The messages that a stream has to send, and the sent messages that have no answer yet.
 *
 * Each message stays here until it is answered, so that it can be sent again on a new connection. A repeat gets the
 * first answer. Messages to one hub keep their order.
 */

import { type Frame, FrameType, SendRequest, type SendResponse, type SendResult, SendStatus } from "./messages.js";
import { fromUtf8, type Octets } from "./octets.js";
import { Problem, problemFromJson, Unreachable } from "./problem.js";

const HEAD_OCTETS = 512; // kept free in a frame for its id, type, hub and lengths

/** How much the provider accepts in one frame, as `Device.me` says. */
export interface SendLimits {
  frameOctets: number;
  batchMessages: number;
}

type Answer = SendResponse | Problem;

interface Item {
  request: SendRequest;
  octets: number;
  settle: (answer: Answer) => void;
  fail: (failure: Error) => void;
}

export class Outbox {
  private readonly waiting = new Map<string, Item[]>();
  private unanswered = new Map<number, { hub: string; items: Item[] }>(); // by the frame that carried them
  private closedBy: Error | null = null;

  /** How many messages have no answer. */
  get size(): number {
    let count = 0;
    for (const items of this.waiting.values()) count += items.length;
    for (const { items } of this.unanswered.values()) count += items.length;
    return count;
  }

  /** Adds messages, which are sent after all earlier messages to that hub; returns their answers in order. */
  put(hub: string, requests: readonly SendRequest[]): Promise<Answer[]> {
    if (this.closedBy !== null) return Promise.reject(this.closedBy);
    const items = this.waiting.get(hub) ?? [];
    const answers = requests.map(
      (request) =>
        new Promise<Answer>((settle, fail) => {
          items.push({ request, octets: SendRequest.encode(request).length, settle, fail });
        }),
    );
    if (items.length) this.waiting.set(hub, items);
    return Promise.all(answers);
  }

  /**
   * Returns one frame for each hub that has messages waiting, with as many messages as fit. A message that fits into no
   * frame is refused here, because the provider would close the connection without a reason.
   */
  nextFrames(limits: SendLimits, nextNumber: () => number): Frame[] {
    const room = limits.frameOctets - HEAD_OCTETS;
    const frames: Frame[] = [];
    for (const [hub, waiting] of this.waiting) {
      const items: Item[] = [];
      let [left, taken] = [room, 0];
      for (; taken < waiting.length && items.length < limits.batchMessages; taken++) {
        const item = waiting[taken]!;
        if (item.octets > room) {
          item.settle(tooLarge(item.octets));
        } else if (item.octets > left) {
          break;
        } else {
          left -= item.octets;
          items.push(item);
        }
      }
      waiting.splice(0, taken);
      if (!waiting.length) this.waiting.delete(hub);
      if (items.length) {
        const id = nextNumber();
        this.unanswered.set(id, { hub, items });
        frames.push({ id, type: FrameType.SEND, body: { hub, requests: items.map(({ request }) => request) } });
      }
    }
    return frames;
  }

  /** Stores the answers to a frame; throws `Unreachable` unless there is one for each message. */
  answer(frame: number, results: readonly SendResult[]): void {
    const items = this.unanswered.get(frame)?.items ?? [];
    if (items.length !== results.length) {
      throw new Unreachable(`the provider sent ${results.length} answers to ${items.length} messages`);
    }
    this.unanswered.delete(frame);
    items.forEach((item, index) => item.settle(outcomeOf(results[index]!)));
  }

  /** Stores the refusal of a whole frame; returns false if no messages were sent in that frame. */
  refuse(frame: number, problem: Problem): boolean {
    const sent = this.unanswered.get(frame);
    this.unanswered.delete(frame);
    sent?.items.forEach((item) => item.settle(problem));
    return sent !== undefined;
  }

  /** Puts the messages without an answer back in front: the connection on which they were sent is lost. */
  requeueUnanswered(): void {
    for (const { hub, items } of [...this.unanswered.values()].reverse()) {
      this.waiting.set(hub, [...items, ...(this.waiting.get(hub) ?? [])]);
    }
    this.unanswered = new Map();
  }

  /** Rejects every answer that is waited for, now or later. */
  close(failure: Error): void {
    this.closedBy = failure;
    this.requeueUnanswered();
    for (const items of this.waiting.values()) for (const item of items) item.fail(failure);
    this.waiting.clear();
  }
}

/** Returns the answer to one message of a batch. */
export function outcomeOf(result: SendResult): Answer {
  if (result.status === SendStatus.ACCEPTED) return result.outcome as SendResponse;
  return problemFromJson(null, fromUtf8(result.outcome as Octets));
}

function tooLarge(octets: number): Problem {
  return new Problem(413, { type: "urn:mimids:problem:too-large", limit: "frame_bytes", octets });
}

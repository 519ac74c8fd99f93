/** The partitions whose messages a stream asks for, and how far each one was received. */

import type { Arrived } from "./events.js";
import { masksOf, type PartitionKey } from "./ids.js";
import { type Frame, FrameType, type PushedEpoch } from "./messages.js";
import { toHex } from "./octets.js";

/** How far a partition was received: `counter` is the counter of the next message. */
export interface Position {
  readonly hub: string;
  readonly key: PartitionKey;
  counter: number;
  masks: string[];
  /** The frame that presented it on this connection. */
  frame: number;
  reportedUnknown: boolean;
}

export class Positions {
  private readonly byKey = new Map<string, Position>();
  private readonly byMask = new Map<string, Position>();
  private readonly byFrame = new Map<number, Position>();
  private readonly toPresent = new Set<Position>();
  private readonly presented = new Set<string>(); // keys, on this connection
  private toWithdraw: PartitionKey[] = [];
  private hashing = 0;

  get size(): number {
    return this.byKey.size;
  }

  /** Whether every position can be presented: the hashes of their keys are known. */
  get isReady(): boolean {
    return this.hashing === 0;
  }

  /**
   * Asks for a partition from `counter` on; calls `ready` once it can be presented. Returns whether a new connection is
   * needed. This is so if the key was already presented on this connection: messages under way could be mistaken for
   * the messages that are asked for now.
   */
  present(hub: string, key: PartitionKey, counter: number, ready: () => void): boolean {
    const name = toHex(key);
    const known = this.byKey.get(name);
    if (known?.counter === counter && known.hub === hub) return false;
    if (known) this.forget(known);
    const position: Position = { hub, key, counter, masks: [], frame: 0, reportedUnknown: false };
    this.byKey.set(name, position);
    this.hashing++;
    void masksOf(key).then((masks) => {
      this.hashing--;
      if (this.isCurrent(position)) {
        position.masks = masks.map(toHex);
        for (const mask of position.masks) this.byMask.set(mask, position);
        this.toPresent.add(position);
      }
      ready();
    });
    return this.presented.has(name);
  }

  /** Presents every partition again, from the counter it has reached. */
  presentAll(): void {
    for (const position of this.byKey.values()) if (position.masks.length) this.toPresent.add(position);
  }

  /** Presents one partition again. */
  presentAgain(position: Position): void {
    this.toPresent.add(position);
  }

  /** Asks for no more messages of a partition. */
  withdraw(key: PartitionKey): void {
    const position = this.byKey.get(toHex(key));
    if (position === undefined) return;
    this.byKey.delete(toHex(key));
    this.forget(position);
    this.toWithdraw.push(key);
  }

  /** Withdraws a partition that the provider refuses: no messages of it are under way. */
  withdrawRefused(position: Position): void {
    this.withdraw(position.key);
    this.presented.delete(toHex(position.key));
  }

  /** Tells whether a position was neither withdrawn nor replaced by another position for its key. */
  isCurrent(position: Position): boolean {
    return this.byKey.get(toHex(position.key)) === position;
  }

  /** Returns the position that was presented in a frame of this connection. */
  presentedIn(frame: number): Position | undefined {
    return this.byFrame.get(frame);
  }

  /** Forgets what was sent on a connection that is lost. Nothing is presented until `presentAll`. */
  forgetConnection(): void {
    this.byFrame.clear();
    this.presented.clear();
    this.toPresent.clear();
    this.toWithdraw = [];
  }

  /**
   * Returns the frames to be sent now: one with all keys to withdraw, and one for each key to present. A refusal names
   * only the frame; with one key in each frame, this shows which partition is refused.
   */
  nextFrames(nextNumber: () => number): Frame[] {
    const frames: Frame[] = [];
    if (this.toWithdraw.length) {
      frames.push({ id: nextNumber(), type: FrameType.WITHDRAW, body: { keys: this.toWithdraw } });
      this.toWithdraw = [];
    }
    for (const position of this.toPresent) {
      const { hub, key, counter } = position;
      this.byFrame.delete(position.frame);
      position.frame = nextNumber();
      this.byFrame.set(position.frame, position);
      this.presented.add(toHex(key));
      const body = { hub, positions: [{ partitionKey: key, counter }] };
      frames.push({ id: position.frame, type: FrameType.PRESENT, body });
    }
    this.toPresent.clear();
    return frames;
  }

  /** Returns the new messages, and advances; null if none is new, or if the partition is not asked for. */
  receive(pushed: PushedEpoch): Arrived | null {
    const position = this.byMask.get(toHex(pushed.maskedPartitionKey));
    if (position === undefined) return null;
    const messages = pushed.epoch.messages.slice(Math.max(0, position.counter - pushed.counter));
    if (!messages.length) return null;
    const counter = Math.max(position.counter, pushed.counter);
    const skipped = counter - position.counter;
    position.counter = counter + messages.length;
    const { hub, key: partitionKey, counter: nextCounter } = position;
    return { kind: "arrived", hub, groupId: pushed.groupId, partitionKey, counter, messages, nextCounter, skipped };
  }

  private forget(position: Position): void {
    for (const mask of position.masks) if (this.byMask.get(mask) === position) this.byMask.delete(mask);
    this.toPresent.delete(position);
  }
}

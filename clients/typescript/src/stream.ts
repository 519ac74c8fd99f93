/**
 * A live stream: the events of a device, by iterating over it. It connects by itself, and again whenever the connection
 * is lost. It then presents each partition from the counter that it has reached, and sends messages without an answer
 * again.
 */

import { WireError } from "./codec.js";
import type { Connection } from "./connection.js";
import { EventQueue } from "./eventQueue.js";
import type { StreamEvent } from "./events.js";
import type { PartitionKey } from "./ids.js";
import {
  type Ack,
  type CaughtUp,
  Frame,
  FrameType,
  type InboxWelcome,
  type Messages,
  type Result,
  type SendRequest,
  type SendResponse,
  type Stock,
} from "./messages.js";
import { fromUtf8, type Octets, toHex } from "./octets.js";
import { Outbox, type SendLimits } from "./outbox.js";
import { type Position, Positions } from "./positions.js";
import { CounterAhead, Problem, problemFromJson, Unreachable } from "./problem.js";

const FIRST_SECONDS = 0.5;
const CAP_SECONDS = 30;
const OVER_SECONDS = 600; // for messages of an epoch from members who have not seen the commit that ended it
const QUIET_SECONDS = 30; // without a frame: then send a heartbeat, and wait for the same time again
const BUFFERED_OCTETS = 8 * 1024 * 1024; // octets written and not sent yet; beyond this, nothing more is written
const BUFFERED_POLL_SECONDS = 0.05;

/** What a stream is doing, and what it did. */
export interface StreamStatistics {
  connected: boolean;
  /** How many connections so far. */
  connections: number;
  /** Partitions. */
  presented: number;
  /** Octets of events that the device has not looked at. */
  waitingOctets: number;
  /** Messages without an answer. */
  inFlight: number;
}

/** How a stream tries again: after `firstSeconds`, doubling up to `capSeconds`, with a random part. */
export interface StreamOptions {
  firstSeconds?: number;
  capSeconds?: number;
  /** Whether to ask for the event `caught-up`; by default true. */
  caughtUp?: boolean;
  /** Called when the connection is there, and when it is lost. */
  onConnection?: (connected: boolean) => void;
}

type Limits = () => Promise<SendLimits>;

export class Stream implements AsyncIterable<StreamEvent> {
  /** Why the last connection was lost. */
  lastLoss: Unreachable | Problem | null = null;

  private readonly positions = new Positions();
  private readonly outbox = new Outbox();
  private readonly events = new EventQueue(() => this.resume());
  private readonly over = new Map<string, ReturnType<typeof setTimeout>>(); // keys of epochs that were left
  private readonly welcomes = new Set<bigint>(); // those that the device was given
  private readonly acknowledged = new Set<bigint>();
  private toAcknowledge: bigint[] = [];
  private limits: SendLimits = { frameOctets: 0, batchMessages: 0 };
  private socket: WebSocket | null = null;
  private number = 0; // of the last frame on this connection; the server uses 0
  private connections = 0;
  private askCaughtUp = false;
  private heard = false; // whether anything came on this connection
  private flushing = false;
  private closed = false;
  private reconnecting = false; // we closed the connection, to present a key at another counter
  private wake: (() => void) | null = null; // ends the wait before the next connection

  /** @internal */
  constructor(
    private readonly connection: Connection,
    private readonly findLimits: Limits,
    private readonly options: StreamOptions,
  ) {
    void this.run();
  }

  // --- what the device says ------------------------------------------------------------------------------------------

  /**
   * Asks for the messages of a partition from `counter` on, and for later ones.
   *
   * `after` is the key of the previous epoch, which the device has left. The stream withdraws that key ten minutes
   * later, because a provider accepts a limited number of keys from a device.
   */
  present(hub: string, key: PartitionKey, counter = 0, { after }: { after?: PartitionKey } = {}): void {
    this.keep(key);
    if (after !== undefined && !this.over.has(toHex(after))) {
      this.over.set(
        toHex(after),
        setTimeout(() => this.withdraw(after), 1000 * OVER_SECONDS),
      );
    }
    if (this.positions.present(hub, key, counter, () => this.flush())) {
      this.reconnecting = true;
      this.socket?.close();
    }
  }

  /** Asks for no more messages of these partitions. */
  withdraw(...keys: PartitionKey[]): void {
    for (const key of keys) {
      this.keep(key);
      this.positions.withdraw(key);
    }
    this.flush();
  }

  /** Tells the provider that Welcomes are stored; it then deletes them. A lost acknowledgement is sent again. */
  acknowledge(...welcomeIds: bigint[]): void {
    for (const id of welcomeIds) this.acknowledged.add(id);
    this.toAcknowledge.push(...welcomeIds);
    this.flush();
  }

  /**
   * Sends messages in order, after all earlier messages to that hub; returns one answer for each.
   *
   * If the hub cannot be reached, the answer is a `Problem` with the code `peer-unavailable`. The provider queues
   * nothing: send the same messages again later. The messages are on their way when this returns, so you need not wait
   * for an answer before you send more.
   */
  sendBatch(hub: string, requests: readonly SendRequest[]): Promise<(SendResponse | Problem)[]> {
    const answers = this.outbox.put(hub, requests);
    this.flush();
    return answers;
  }

  /** Sends one message and returns once it is durable; throws `Problem` if it is refused. */
  async send(hub: string, request: SendRequest): Promise<SendResponse> {
    const [answer] = await this.sendBatch(hub, [request]);
    if (answer instanceof Problem) throw answer;
    return answer!;
  }

  // --- what the device reads -----------------------------------------------------------------------------------------

  /** Yields events until the stream is closed; throws `Problem` once the provider permanently refuses the device. */
  [Symbol.asyncIterator](): AsyncIterator<StreamEvent, undefined> {
    return { next: () => this.events.next() };
  }

  /** Returns what the stream is doing. */
  statistics(): StreamStatistics {
    return {
      connected: this.isOpen,
      connections: this.connections,
      presented: this.positions.size,
      waitingOctets: this.events.octets,
      inFlight: this.outbox.size,
    };
  }

  /** Closes the connection, and ends the iteration. */
  close(): void {
    this.end(null);
  }

  // --- the connection ------------------------------------------------------------------------------------------------

  private get isOpen(): boolean {
    return this.socket?.readyState === 1; // OPEN: not every implementation has the constant
  }

  /** Keeps a connection until the stream is closed, or the provider permanently refuses the device. */
  private async run(): Promise<void> {
    const { firstSeconds = FIRST_SECONDS, capSeconds = CAP_SECONDS } = this.options;
    for (let failures = 0; !this.closed; ) {
      const began = Date.now();
      this.heard = false;
      let retryAfter = 0;
      try {
        this.limits = await this.findLimits(); // a page does not see why a WebSocket was refused; this request shows it
        if (this.closed) return;
        this.reconnecting = false;
        const why = await this.converse();
        if (this.reconnecting) continue;
        this.lastLoss = new Unreachable(why);
      } catch (error) {
        if (!(error instanceof Unreachable || error instanceof Problem)) return this.end(error as Error);
        this.lastLoss = error;
        if (error instanceof Problem && !error.isTemporary) return this.end(error);
        retryAfter = error instanceof Problem ? (error.retryAfterSeconds ?? 0) : 0;
      }
      failures = this.heard || Date.now() - began > 1000 * capSeconds ? 1 : failures + 1;
      const most = Math.min(capSeconds, firstSeconds * 2 ** Math.min(failures - 1, 30));
      if (!this.closed) await this.pause(Math.max(retryAfter, most * (0.5 + Math.random() / 2)));
      while (this.events.isFull && !this.closed) await this.pause(CAP_SECONDS);
    }
  }

  /** Waits, but not longer than until `resume` is called. */
  private async pause(seconds: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, 1000 * seconds);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.wake = null;
  }

  private resume(): void {
    this.wake?.();
  }

  /** Uses one connection until it is lost; returns why. */
  private converse(): Promise<string> {
    return new Promise((resolve) => {
      const socket = this.connection.openStream();
      this.socket = socket;
      let quiet: ReturnType<typeof setTimeout> | undefined;
      let over = false;
      const finish = (why: string): void => {
        if (over) return;
        over = true;
        clearTimeout(quiet);
        if (this.socket === socket) this.socket = null;
        socket.close();
        if (this.connections && opened) this.options.onConnection?.(false);
        resolve(why);
      };
      let opened = false;
      const watch = (asked: boolean): void => {
        clearTimeout(quiet);
        quiet = setTimeout(() => {
          if (asked || !this.isOpen) return finish(`nothing came for ${2 * QUIET_SECONDS} s`);
          this.write([{ id: this.nextNumber(), type: FrameType.HEARTBEAT, body: {} }]);
          watch(true);
        }, 1000 * QUIET_SECONDS);
      };
      socket.onopen = () => {
        opened = true;
        watch(false);
        this.startConnection();
        this.options.onConnection?.(true);
      };
      socket.onmessage = ({ data }: MessageEvent<ArrayBuffer>) => {
        if (over || this.closed) return;
        watch(false);
        this.heard = true;
        try {
          this.handle(new Uint8Array(data));
        } catch (error) {
          if (!(error instanceof Unreachable || error instanceof WireError)) throw error;
          return finish(error instanceof WireError ? "the provider sent something that is not a frame" : error.message);
        }
        if (this.events.isFull) finish("the device does not look at its events");
      };
      socket.onerror = () => undefined; // onclose follows
      socket.onclose = ({ code, reason }: CloseEvent) =>
        finish(`the provider closed the stream (${code}: ${reason || "no reason"})`);
      watch(true); // for the handshake
    });
  }

  /** Begins a new connection: queues everything that the provider must be told on it again. */
  private startConnection(): void {
    this.connections++;
    this.number = 0;
    this.positions.forgetConnection();
    this.positions.presentAll();
    this.toAcknowledge = []; // Welcomes that were not acknowledged come again
    this.outbox.requeueUnanswered();
    this.askCaughtUp = this.options.caughtUp ?? true;
    this.flush();
  }

  private nextNumber = (): number => ++this.number;

  /** Writes the queued frames, once the caller has queued all of them. */
  private flush(): void {
    if (this.flushing) return;
    this.flushing = true;
    queueMicrotask(() => this.writeAll());
  }

  private writeAll(): void {
    this.flushing = false;
    while (this.isOpen) {
      if (this.socket!.bufferedAmount > BUFFERED_OCTETS) {
        this.flushing = true;
        setTimeout(() => this.writeAll(), 1000 * BUFFERED_POLL_SECONDS);
        return;
      }
      const frames = this.nextFrames();
      if (!frames.length) return;
      this.write(frames);
    }
  }

  private nextFrames(): Frame[] {
    const frames = this.positions.nextFrames(this.nextNumber);
    if (this.askCaughtUp && this.positions.isReady) {
      this.askCaughtUp = false;
      frames.push({ id: this.nextNumber(), type: FrameType.CAUGHT_UP, body: { missing: [] } });
    }
    if (this.toAcknowledge.length) {
      const body: Ack = { welcomeIds: this.toAcknowledge };
      frames.push({ id: this.nextNumber(), type: FrameType.ACK, body });
      this.toAcknowledge = [];
    }
    return [...frames, ...this.outbox.nextFrames(this.limits, this.nextNumber)];
  }

  private write(frames: readonly Frame[]): void {
    for (const frame of frames) this.socket?.send(Frame.encode(frame));
  }

  private keep(key: PartitionKey): void {
    clearTimeout(this.over.get(toHex(key)));
    this.over.delete(toHex(key));
  }

  private end(failure: Error | null): void {
    if (this.closed) return;
    this.closed = true;
    for (const timer of this.over.values()) clearTimeout(timer);
    this.over.clear();
    this.socket?.close(1000);
    this.events.close(failure);
    this.outbox.close(failure ?? new Unreachable("the stream was closed before the answer came"));
    this.resume();
  }

  // --- frames from the provider --------------------------------------------------------------------------------------

  private handle(octets: Octets): void {
    const { id, type, body } = Frame.decode(octets);
    switch (type) {
      case FrameType.MESSAGES: {
        const arrived = this.reconnecting ? null : this.positions.receive((body as Messages).epoch);
        if (arrived !== null) this.events.put(arrived, octets.length);
        return;
      }
      case FrameType.RESULT:
        return this.outbox.answer(id, (body as Result).results);
      case FrameType.WELCOME:
        return this.handleWelcome(body as InboxWelcome, octets.length);
      case FrameType.STOCK: {
        const { version, cipherSuite, left } = body as Stock;
        return this.events.put({ kind: "low-stock", version, cipherSuite, left }, octets.length);
      }
      case FrameType.HEARTBEAT:
        return;
      case FrameType.CAUGHT_UP:
        return this.events.put({ kind: "caught-up", missing: (body as CaughtUp).missing }, octets.length);
      case FrameType.PROBLEM:
        return this.handleProblem(id, problemFromJson(null, fromUtf8(body as Octets)));
      default:
        throw new Unreachable("the provider sent a frame that only devices send");
    }
  }

  private handleWelcome(welcome: InboxWelcome, octets: number): void {
    if (this.acknowledged.has(welcome.welcomeId)) {
      this.acknowledge(welcome.welcomeId);
    } else if (!this.welcomes.has(welcome.welcomeId)) {
      this.welcomes.add(welcome.welcomeId);
      this.events.put({ kind: "welcome", ...welcome }, octets);
    }
  }

  private handleProblem(frame: number, problem: Problem): void {
    if (this.outbox.refuse(frame, problem)) return;
    const position = this.positions.presentedIn(frame);
    if (position === undefined) {
      this.events.put({ kind: "not-served", hub: null, partitionKey: null, problem }, 0);
    } else if (!this.positions.isCurrent(position)) {
      return; // the device withdrew it meanwhile
    } else if (problem.isTemporary) {
      setTimeout(() => this.presentLater(position), 1000 * (this.options.firstSeconds ?? FIRST_SECONDS));
    } else if (problem instanceof CounterAhead && problem.nextCounter < position.counter) {
      this.startAgain(position, problem.nextCounter);
    } else if (problem.code !== "unknown-partition") {
      this.positions.withdrawRefused(position);
      this.flush();
      this.reportNotServed(position, problem);
    } else if (!position.reportedUnknown) {
      position.reportedUnknown = true;
      this.reportNotServed(position, problem);
    }
  }

  private reportNotServed({ hub, key: partitionKey }: Position, problem: Problem): void {
    this.events.put({ kind: "not-served", hub, partitionKey, problem }, 0);
  }

  /** Goes back to the counter that the hub names, and tells the device. */
  private startAgain(position: Position, nextCounter: number): void {
    const { hub, key: partitionKey, counter } = position;
    this.events.put({ kind: "started-again", hub, partitionKey, counter, nextCounter }, 0);
    position.counter = nextCounter;
    this.positions.presentAgain(position);
    this.flush();
  }

  private presentLater(position: Position): void {
    if (this.closed || !this.positions.isCurrent(position)) return;
    this.positions.presentAgain(position);
    this.flush();
  }
}

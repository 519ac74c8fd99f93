/** The events of a stream that the device has not looked at yet, with their size in octets. */

import type { StreamEvent } from "./events.js";

const FULL_OCTETS = 16 * 1024 * 1024; // from this size on, the connection is closed
const ROOM_OCTETS = 4 * 1024 * 1024; // below this size, it is opened again

type Next = IteratorResult<StreamEvent, undefined>;

export class EventQueue {
  private readonly events: { event: StreamEvent; octets: number }[] = [];
  private readonly waiting: { resolve: (next: Next) => void; reject: (error: Error) => void }[] = [];
  private closed = false;
  private failure: Error | null = null;
  octets = 0;

  /** `hasRoom` is called when there is room again. */
  constructor(private readonly hasRoom: () => void) {}

  get isFull(): boolean {
    return this.octets >= FULL_OCTETS;
  }

  /** Adds an event that came in a frame of this size. */
  put(event: StreamEvent, octets: number): void {
    const waiting = this.waiting.shift();
    if (waiting !== undefined) {
      waiting.resolve({ value: event, done: false });
      return;
    }
    this.events.push({ event, octets });
    this.octets += octets;
  }

  /** Waits for the next event; after the last event, throws the error given to `close`, or ends the iteration. */
  next(): Promise<Next> {
    const first = this.events.shift();
    if (first !== undefined) {
      const before = this.octets;
      this.octets -= first.octets;
      if (before >= ROOM_OCTETS && this.octets < ROOM_OCTETS) this.hasRoom();
      return Promise.resolve({ value: first.event, done: false });
    }
    if (this.failure !== null) return Promise.reject(this.failure);
    if (this.closed) return Promise.resolve({ value: undefined, done: true });
    return new Promise((resolve, reject) => this.waiting.push({ resolve, reject }));
  }

  /** Adds no more events: `next` ends or throws after the last one. */
  close(failure: Error | null): void {
    this.closed = true;
    this.failure = failure;
    for (const { resolve, reject } of this.waiting.splice(0)) {
      if (failure === null) resolve({ value: undefined, done: true });
      else reject(failure);
    }
  }
}

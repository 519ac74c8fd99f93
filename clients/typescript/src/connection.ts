/** HTTP to the device's own provider: one token, problems as exceptions. */

import { fromUtf8, toUtf8, type Octets } from "./octets.js";
import { problemFromJson, Unreachable } from "./problem.js";

export const MIMI_DS = "application/mimi-ds";
const TIMEOUT_SECONDS = 30;

/** The constructor that opens a WebSocket: `WebSocket` of a browser, or of the package `ws`. */
export type WebSocketConstructor = new (url: string, protocols: string[]) => WebSocket;

/** How a device reaches its provider. */
export interface DeviceOptions {
  /** The client listener of the device's provider, such as `https://a.example:8444`. */
  url: string;
  /** What `mimids device add` printed. */
  token: string;
  /** By default the `fetch` of the browser or of Node.js. */
  fetch?: typeof globalThis.fetch;
  /** By default the `WebSocket` of the browser or of Node.js, which has it from version 22 on. */
  webSocket?: WebSocketConstructor;
  /** How long to wait for an answer, by default 30 s. */
  timeoutSeconds?: number;
}

/** An answer with status 2xx, or with a status that the caller expected. */
export interface Reply {
  status: number;
  headers: Headers;
  body: Octets;
}

/** The options of a request, besides its method, path and body. */
export interface RequestOptions {
  mediaType?: string;
  /** How long the provider may wait for something new before it answers. */
  waitSeconds?: number;
  /** Further statuses whose answers are returned, not thrown. */
  expected?: readonly number[];
}

export class Connection {
  private readonly url: string;
  private readonly timeoutSeconds: number;

  constructor(private readonly options: DeviceOptions) {
    this.url = options.url.replace(/\/+$/, "");
    this.timeoutSeconds = options.timeoutSeconds ?? TIMEOUT_SECONDS;
  }

  /** Sends one request below `/client/v1/` and returns the answer; throws `Problem` or `Unreachable`. */
  async exchange(method: string, path: string, body?: Octets, options: RequestOptions = {}): Promise<Reply> {
    const { mediaType = MIMI_DS, waitSeconds = 0, expected = [] } = options;
    const headers: Record<string, string> = { Authorization: `Bearer ${this.options.token}` };
    if (body !== undefined) headers["Content-Type"] = mediaType;
    if (waitSeconds) headers["Prefer"] = `wait=${waitSeconds}`;
    const milliseconds = 1000 * (this.timeoutSeconds + waitSeconds);
    const fetch = this.options.fetch ?? globalThis.fetch;
    let response: Response;
    let octets: Octets;
    try {
      response = await fetch(`${this.url}/client/v1/${path}`, {
        method,
        headers,
        signal: AbortSignal.timeout(milliseconds),
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        referrerPolicy: "no-referrer",
        ...(body === undefined ? {} : { body }),
      });
      octets = new Uint8Array(await response.arrayBuffer());
    } catch (error) {
      throw new Unreachable(error instanceof Error ? error.message : String(error), { cause: error });
    }
    if (!response.ok && !expected.includes(response.status)) throw problemFromJson(response.status, fromUtf8(octets));
    return { status: response.status, headers: response.headers, body: octets };
  }

  /** Sends JSON, or nothing, and returns the JSON of the answer. */
  async exchangeJson<T>(method: string, path: string, body?: object): Promise<T> {
    const encoded = body === undefined ? undefined : toUtf8(JSON.stringify(body));
    const reply = await this.exchange(method, path, encoded, { mediaType: "application/json" });
    return JSON.parse(fromUtf8(reply.body)) as T;
  }

  /** Opens the WebSocket of the device's stream; its events say whether it was opened. */
  openStream(): WebSocket {
    const { token, webSocket = globalThis.WebSocket } = this.options;
    if (webSocket === undefined) throw new Error("this runtime has no WebSocket: pass one as the option webSocket");
    const socket = new webSocket(`${this.url.replace(/^http/, "ws")}/client/v1/stream`, [
      "mimids.1",
      `mimids.bearer.${token}`,
    ]);
    socket.binaryType = "arraybuffer";
    return socket;
  }
}

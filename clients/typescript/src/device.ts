/**
 * One device of a user, at its own provider: what a client calls.
 *
 * MLS objects are given and returned as octets. Every call may throw `Problem` (a refusal, with its code) or
 * `Unreachable`. Every call may be repeated: sending the same octets twice gets the first answer again.
 */

import { Connection, type DeviceOptions } from "./connection.js";
import type { Contact } from "./contacts.js";
import {
  externalSendersData,
  type ProviderSignatureKey,
  type ProviderSignatureKeyJson,
  readSignatureKey,
} from "./externalSenders.js";
import { KeyPackageFetcher } from "./keyPackages.js";
import { KeySets } from "./keySets.js";
import {
  CreateGroupRequest,
  ExternalJoinRequest,
  ExternalProposalRequest,
  GroupInfoBundle,
  GroupInfoRequest,
  INBOX_WELCOMES,
  type InboxWelcome,
  KEY_PACKAGES,
  KeyPackageBundleResponse,
  type KeyPackageResult,
  KeyPackageStatus,
  type Message,
  type Position,
  PositionsRequest,
  PositionsResponse,
  ReceiveRequest,
  ReceiveResponse,
  SEND_REQUESTS,
  SEND_RESULTS,
  SendRequest,
  SendResponse,
  type SendResult,
  SiblingsRequest,
  type WelcomeStatus,
  WelcomeStatusRequest,
  WelcomeStatusResponse,
} from "./messages.js";
import type { PartitionKey } from "./ids.js";
import { fromBase64url, fromUtf8, type Octets, toBase64url, toUtf8 } from "./octets.js";
import type { SendLimits } from "./outbox.js";
import { Problem } from "./problem.js";
import { Stream, type StreamOptions } from "./stream.js";

const MOST_POSITIONS = 256; // in one request

/** Who the device is, its limits and its stock of KeyPackages. */
export interface Me {
  userId: string;
  deviceId: string;
  provider: string;
  /** What a contact card of this user needs: the Ed25519 key that signs the gateway's keys. */
  ohttpIdentity: Octets;
  limits: Readonly<Record<string, number>>;
  stock: Stock[];
  /** The keys by which the provider can remove lost devices from groups that list them. */
  externalSenders: ProviderSignatureKey[];
  /** The `applicationServerKey` of Web Push, null if the provider sends no pushes. */
  pushPublicKey: Octets | null;
}

/** How many KeyPackages the device has left for one version and cipher suite. */
export interface Stock {
  version: number;
  cipherSuite: number;
  left: number;
  lastResort: boolean;
}

/** The answer to an upload: how many KeyPackages were accepted, why others were refused, and the new stock. */
export interface Uploaded {
  accepted: number;
  refused: { index: number; reason: string }[];
  stock: Stock[];
}

/** A bearer token for one's own KeyPackages; it is shown only once. */
export interface Token {
  id: number;
  bearerToken: Octets;
}

/** What a token allows; by default it does not expire and has no other limit. */
export interface TokenOptions {
  label?: string;
  /** Milliseconds since 1970. */
  expiresAt?: number;
  uses?: number;
  /** At most `claims` claims in each `seconds` seconds. */
  rate?: { claims: number; seconds: number };
}

/** The optional parts of a report. */
export interface ReportOptions {
  groupId?: Octets;
  note?: string;
  /** MLSMessages of the group. A report with a partition key in `note` or `evidence` is refused. */
  evidence?: readonly Octets[];
}

export class Device {
  /** The gateway keys that the device was shown; keep them across restarts. */
  readonly keySets: KeySets;

  private readonly connection: Connection;
  private readonly fetcher: KeyPackageFetcher;

  /** `keySets` are the gateway keys that were seen earlier; `clock` gives seconds since 1970. */
  constructor(options: DeviceOptions & { keySets?: KeySets; clock?: () => number }) {
    this.connection = new Connection(options);
    this.keySets = options.keySets ?? new KeySets();
    this.fetcher = new KeyPackageFetcher(this.connection, this.keySets, options.clock ?? (() => Date.now() / 1000));
  }

  /** Returns the user and device that the token belongs to, the limits, and the stock. */
  async me(): Promise<Me> {
    const answer = await this.connection.exchangeJson<MeJson>("GET", "me");
    return {
      userId: answer.user_id,
      deviceId: answer.device_id,
      provider: answer.provider,
      ohttpIdentity: fromBase64url(answer.ohttp_identity),
      limits: answer.limits,
      stock: answer.stock.map(stockOf),
      externalSenders: answer.external_senders.map(readSignatureKey),
      pushPublicKey: answer.push_public_key === null ? null : fromBase64url(answer.push_public_key),
    };
  }

  /** Returns the keys by which the provider can remove lost devices from groups that list them. */
  async providerKeys(): Promise<ProviderSignatureKey[]> {
    return (await this.me()).externalSenders;
  }

  /**
   * Returns the extension_data of `external_senders` that lets this provider remove lost devices from a group.
   *
   * `bare` is for groups whose members all use ts-mls (`externalSendersData`). Throws if the provider has no key for the
   * suite: upload KeyPackages of that suite first.
   */
  async externalSenders(cipherSuite: number, { bare = false } = {}): Promise<Octets> {
    const key = (await this.providerKeys()).find(({ cipherSuites }) => cipherSuites.includes(cipherSuite));
    if (key === undefined) throw new Error(`the provider has no signature key for suite ${cipherSuite}`);
    return externalSendersData([key], { bare });
  }

  // --- KeyPackages ---------------------------------------------------------------------------------------------------

  /** Adds KeyPackages (not MLSMessages) to the device's stock; `replace` drops all other KeyPackages in it. */
  async upload(keyPackages: readonly Octets[], { replace = false } = {}): Promise<Uploaded> {
    const body = KEY_PACKAGES.encode([...keyPackages]);
    const reply = await this.connection.exchange("POST", `key-packages${replace ? "?replace" : ""}`, body);
    const answer = JSON.parse(fromUtf8(reply.body)) as UploadedJson;
    return { accepted: answer.accepted, refused: answer.refused, stock: answer.stock.map(stockOf) };
  }

  /** Drops all KeyPackages that were uploaded and not handed out. */
  async dropStock(): Promise<void> {
    await this.connection.exchange("DELETE", "key-packages");
  }

  /** Issues a token for this user's KeyPackages. */
  async issueToken(scheme: "shared" | "unique", options: TokenOptions = {}): Promise<Token> {
    const answer = await this.connection.exchangeJson<{ id: number; bearer_token: string }>("POST", "contact-tokens", {
      scheme,
      label: options.label ?? "",
      expires_at: options.expiresAt ?? null,
      uses: options.uses ?? null,
      rate_claims: options.rate?.claims ?? null,
      rate_seconds: options.rate?.seconds ?? null,
    });
    return { id: answer.id, bearerToken: fromBase64url(answer.bearer_token) };
  }

  /** Revokes a token; this takes effect at once. */
  async revokeToken(tokenId: number): Promise<void> {
    await this.connection.exchange("DELETE", `contact-tokens/${tokenId}`);
  }

  /** Issues a token, and returns the contact card with it; the application hands the card out. */
  async contactCard(scheme: "shared" | "unique", options: TokenOptions = {}): Promise<Contact> {
    const { userId, provider, ohttpIdentity } = await this.me();
    const { bearerToken } = await this.issueToken(scheme, options);
    return { userId: toUtf8(userId), provider, bearerToken, ohttpIdentity };
  }

  /** Returns a KeyPackage of a contact; throws `Problem` if the contact's provider gives none. */
  async fetchKeyPackage(contact: Contact, cipherSuite: number): Promise<Octets> {
    const [result] = await this.fetchKeyPackages([contact], cipherSuite);
    if (result?.keyPackage) return result.keyPackage;
    const exhausted = result?.status === KeyPackageStatus.EXHAUSTED;
    const code = exhausted ? "key-packages-exhausted" : "key-package-refused";
    throw new Problem(exhausted ? 404 : 403, { type: `urn:mimids:problem:${code}` });
  }

  /**
   * Returns one result for each contact, in order; a contact that is named twice gives KeyPackages of two devices.
   *
   * One sealed request goes to each provider, or several for more than 64 contacts. Throws `KeysRefused` if a
   * provider's keys are not authentic, and its subclass `KeysDiffer` if the provider showed other keys for the same
   * time. In both cases no request is sent to that provider.
   */
  async fetchKeyPackages(contacts: readonly Contact[], cipherSuite: number): Promise<KeyPackageResult[]> {
    return this.fetcher.fetch(contacts, cipherSuite);
  }

  /**
   * Returns one result for each other device of this user, to add them to a group; each call hands out new ones.
   *
   * A device without a KeyPackage for the suite has the status `EXHAUSTED`. Throws `Problem` (`key-packages-exhausted`) if
   * no other device has one.
   */
  async siblings(cipherSuite: number): Promise<KeyPackageResult[]> {
    const body = SiblingsRequest.encode({ version: 1, cipherSuite });
    const reply = await this.connection.exchange("POST", "key-packages/siblings", body);
    return KeyPackageBundleResponse.decode(reply.body).results;
  }

  /**
   * Tells whether a device at another provider gets the same gateway keys of the contact's provider.
   *
   * If not, the two providers have fetched the keys at different times: compare again later. Throws `KeysDiffer` if the
   * contact's provider shows the two providers different keys for the same time. A provider would do this to tell the
   * users of the two providers apart.
   */
  async compareKeys(contact: Contact, other: Device): Promise<boolean> {
    return this.fetcher.compareKeys(contact, other.fetcher);
  }

  // --- groups --------------------------------------------------------------------------------------------------------

  /** Makes this device's provider the hub of a group; with `linear`, one commit for each epoch (docs/semantics.md). */
  async createGroup(request: CreateGroupRequest, { linear = false } = {}): Promise<void> {
    await this.connection.exchange("POST", `groups${linear ? "?linear" : ""}`, CreateGroupRequest.encode(request));
  }

  /** Sends one message; returns when it is durable. */
  async send(hub: string, request: SendRequest): Promise<SendResponse> {
    const reply = await this.connection.exchange("POST", `hubs/${hub}/send`, SendRequest.encode(request));
    return SendResponse.decode(reply.body);
  }

  /** Sends messages in order, in one request; each has its own result. */
  async sendBatch(hub: string, requests: readonly SendRequest[]): Promise<SendResult[]> {
    const reply = await this.connection.exchange("POST", `hubs/${hub}/send-batch`, SEND_REQUESTS.encode([...requests]));
    return SEND_RESULTS.decode(reply.body);
  }

  /** Returns one page of a partition's messages from `counter` on: at least one message, if there are any. */
  async receive(
    hub: string,
    partitionKey: PartitionKey,
    counter = 0,
    { waitSeconds = 0 } = {},
  ): Promise<Message[]> {
    const body = ReceiveRequest.encode({ partitionKey, counter });
    const reply = await this.connection.exchange("POST", `hubs/${hub}/receive`, body, { waitSeconds });
    return ReceiveResponse.decode(reply.body).epoch.messages;
  }

  /** Yields all messages of a partition from `counter` on, page by page, up to the newest message. */
  async *receiveAll(hub: string, partitionKey: PartitionKey, counter = 0): AsyncGenerator<Message> {
    for (;;) {
      const page = await this.receive(hub, partitionKey, counter);
      if (!page.length) return;
      yield* page;
      counter += page.length;
    }
  }

  /**
   * Returns for each key up to which counter the device's own provider has the partition; the hub is not asked. If
   * `known` is 0, or `nextCounter` is not the device's own, call `receive`.
   */
  async positions(hub: string, partitionKeys: readonly PartitionKey[]): Promise<Position[]> {
    const found: Position[] = [];
    for (let start = 0; start < partitionKeys.length; start += MOST_POSITIONS) {
      const body = PositionsRequest.encode({ partitionKeys: partitionKeys.slice(start, start + MOST_POSITIONS) });
      const reply = await this.connection.exchange("POST", `hubs/${hub}/positions`, body);
      found.push(...PositionsResponse.decode(reply.body).positions);
    }
    return found;
  }

  /** Returns the data for joining from outside, for this partition (a masked key) or the one that the hub chooses. */
  async groupInfo(hub: string, groupId: Octets, options: { partition?: Octets } = {}): Promise<GroupInfoBundle> {
    return (await this.findGroup(hub, groupId, options)).bundle;
  }

  /** Does what `groupInfo` does; also returns whether the group is linear. */
  async findGroup(hub: string, groupId: Octets, { partition }: { partition?: Octets } = {}): Promise<FoundGroup> {
    const query = partition === undefined ? "?bundle" : `?bundle&partition=${toBase64url(partition)}`;
    const body = GroupInfoRequest.encode({ groupId });
    const reply = await this.connection.exchange("POST", `hubs/${hub}/group-info${query}`, body);
    return { bundle: GroupInfoBundle.decode(reply.body), linear: reply.headers.get("mimids-linear") === "?1" };
  }

  /** Sends an external commit; `earlierCommits` in the answer names commits that were sequenced before it. */
  async join(hub: string, request: ExternalJoinRequest): Promise<SendResponse> {
    const reply = await this.connection.exchange("POST", `hubs/${hub}/join`, ExternalJoinRequest.encode(request));
    return SendResponse.decode(reply.body);
  }

  /** Sends a proposal from outside the group. */
  async propose(hub: string, request: ExternalProposalRequest): Promise<SendResponse> {
    const reply = await this.connection.exchange("POST", `hubs/${hub}/propose`, ExternalProposalRequest.encode(request));
    return SendResponse.decode(reply.body);
  }

  /**
   * Tells the provider that this device has left the group, so that it gets no more messages. Send a Remove or
   * SelfRemove first. `Departure` says what to do until that proposal is sequenced.
   */
  async leave(hub: string, groupId: Octets): Promise<void> {
    if (groupId.length < 1 || groupId.length > 256) throw new Error("a group id has 1 to 256 octets");
    await this.connection.exchange("DELETE", `hubs/${hub}/groups/${toBase64url(groupId)}`);
  }

  /** Reports a provider or a user (`accused`) to the device's own provider; returns the report's number. */
  async report(hub: string, accused: string, kind: string, options: ReportOptions = {}): Promise<number> {
    const answer = await this.connection.exchangeJson<{ id: number }>("POST", "reports", {
      hub,
      group_id: options.groupId === undefined ? null : toBase64url(options.groupId),
      accused,
      kind,
      note: options.note ?? "",
      evidence: (options.evidence ?? []).map(toBase64url),
    });
    return answer.id;
  }

  /** Returns what became of the Welcomes of the commit, or of the creation, that opened a partition. */
  async welcomeStatus(hub: string, partitionKey: PartitionKey): Promise<WelcomeStatus[]> {
    const body = WelcomeStatusRequest.encode({ partitionKey });
    const reply = await this.connection.exchange("POST", `hubs/${hub}/welcome-status`, body);
    return WelcomeStatusResponse.decode(reply.body).statuses;
  }

  /**
   * Says that the group `successor` at `hub` replaces a group that this user created at this provider. The operator has
   * to terminate all branches of that group first.
   */
  async replaceGroup(groupId: Octets, successor: Octets, hub: string): Promise<void> {
    const body = { group_id: toBase64url(successor), hub };
    const path = `groups/${toBase64url(groupId)}/successor`;
    await this.connection.exchange("PUT", path, toUtf8(JSON.stringify(body)), { mediaType: "application/json" });
  }

  // --- Welcomes ------------------------------------------------------------------------------------------------------

  /** Returns the Welcomes in the inbox, oldest first, at most 100; acknowledge them to get the next. */
  async welcomes(): Promise<InboxWelcome[]> {
    return INBOX_WELCOMES.decode((await this.connection.exchange("GET", "welcomes")).body);
  }

  /** Tells the provider that a Welcome is stored; the provider then deletes it. A second call changes nothing. */
  async acknowledge(welcomeId: bigint): Promise<void> {
    await this.connection.exchange("DELETE", `welcomes/${welcomeId}`);
  }

  // --- being woken ---------------------------------------------------------------------------------------------------

  /**
   * Makes the provider wake the device with Web Push while it sleeps; replaces an earlier subscription.
   *
   * The arguments are those of the browser's PushSubscription, made with the provider's `pushPublicKey`. A push says
   * only that something is new. After a push, open a stream, or receive.
   */
  async subscribe(endpoint: string, p256dh: Octets, auth: Octets): Promise<void> {
    const body = { endpoint, p256dh: toBase64url(p256dh), auth: toBase64url(auth) };
    await this.connection.exchange("PUT", "push", toUtf8(JSON.stringify(body)), { mediaType: "application/json" });
  }

  /** Tells the provider not to wake the device any more. */
  async unsubscribe(): Promise<void> {
    await this.connection.exchange("DELETE", "push");
  }

  /** Returns the key to subscribe with (the `applicationServerKey`), null if the provider sends no pushes. */
  async pushPublicKey(): Promise<Octets | null> {
    return (await this.me()).pushPublicKey;
  }

  // --- live ----------------------------------------------------------------------------------------------------------

  /** Opens a live stream; close it when it is no longer needed. While it cannot connect, nothing is thrown. */
  stream(options: StreamOptions = {}): Stream {
    return new Stream(this.connection, () => this.streamLimits(), options);
  }

  private async streamLimits(): Promise<SendLimits> {
    const { limits } = await this.me();
    return { frameOctets: limits["frame_bytes"] ?? 0, batchMessages: limits["send_batch_messages"] ?? 0 };
  }
}

/** The data with which a client joins a group, and whether the group is linear. */
export interface FoundGroup {
  bundle: GroupInfoBundle;
  linear: boolean;
}

interface StockJson {
  version: number;
  cipher_suite: number;
  left: number;
  last_resort: boolean;
}

interface UploadedJson {
  accepted: number;
  refused: { index: number; reason: string }[];
  stock: StockJson[];
}

interface MeJson {
  user_id: string;
  device_id: string;
  provider: string;
  ohttp_identity: string;
  limits: Record<string, number>;
  stock: StockJson[];
  external_senders: ProviderSignatureKeyJson[];
  push_public_key: string | null;
}

function stockOf({ version, cipher_suite, left, last_resort }: StockJson): Stock {
  return { version, cipherSuite: cipher_suite, left, lastResort: last_resort };
}

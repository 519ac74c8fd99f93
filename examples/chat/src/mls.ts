/** Everything that the page does with ts-mls: cipher suite 1, BasicCredentials that hold user ids. */

import * as mls from "ts-mls";
import { defaultClientConfig } from "ts-mls/clientConfig.js";
import { decodeKeyPackage, encodeKeyPackage, makeKeyPackageRef } from "ts-mls/keyPackage.js";
import { decryptSenderData } from "ts-mls/privateMessage.js";
import { EXPORTER_LABEL, type Octets, PARTITION_KEY_OCTETS, toHex } from "mimids-client";

export const SUITE = 1;
const NAME = "MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519";
const KEPT_SECONDS = 90 * 24 * 3600; // a KeyPackage
const text = new TextDecoder();

const suite = mls.getCiphersuiteImpl(mls.getCiphersuiteFromName(NAME));

/** A KeyPackage with its private keys; they are stored before it is uploaded. */
export interface OwnKeyPackage {
  ref: string;
  encoded: Octets;
  keys: mls.PrivateKeyPackage;
}

export async function makeKeyPackage(userId: string): Promise<OwnKeyPackage> {
  const now = BigInt(Math.floor(Date.now() / 1000));
  const made = await mls.generateKeyPackage(
    { credentialType: "basic", identity: new TextEncoder().encode(userId) },
    mls.defaultCapabilities(),
    { notBefore: now - 3600n, notAfter: now + BigInt(KEPT_SECONDS) },
    [],
    await suite,
  );
  const ref = await makeKeyPackageRef(made.publicPackage, (await suite).hash);
  return { ref: toHex(ref), encoded: owned(encodeKeyPackage(made.publicPackage)), keys: made.privatePackage };
}

/** Returns the user id in a KeyPackage: it has to be the one that was asked for. */
export function identityOf(keyPackage: Octets): string {
  return identity(decoded(decodeKeyPackage, keyPackage).leafNode.credential);
}

/** A member's view of one epoch. It does not change: what changes it returns the next one. */
export class Epoch {
  private constructor(
    private readonly state: mls.ClientState,
    /** The key of this epoch's messages at the hub. */
    readonly key: Octets,
  ) {}

  private static async of(state: mls.ClientState): Promise<Epoch> {
    const secret = state.keySchedule.exporterSecret;
    return new Epoch(
      state,
      owned(await mls.mlsExporter(secret, EXPORTER_LABEL, new Uint8Array(), PARTITION_KEY_OCTETS, await suite)),
    );
  }

  static async create(groupId: Octets, own: OwnKeyPackage): Promise<Epoch> {
    const keyPackage = decoded(decodeKeyPackage, own.encoded);
    return Epoch.of(await mls.createGroup(groupId, keyPackage, own.keys, [], await suite));
  }

  /** Joins by a Welcome, if one of these KeyPackages opens it. */
  static async join(welcome: Octets, packages: readonly OwnKeyPackage[]): Promise<[Epoch, OwnKeyPackage] | null> {
    const message = decoded(mls.decodeMlsMessage, welcome);
    if (message.wireformat !== "mls_welcome") return null;
    const refs = new Set(message.welcome.secrets.map((each) => toHex(each.newMember)));
    const own = packages.find((each) => refs.has(each.ref));
    if (own === undefined) return null;
    const keyPackage = decoded(decodeKeyPackage, own.encoded);
    const joined = await mls.joinGroup(message.welcome, keyPackage, own.keys, mls.emptyPskIndex, await suite);
    return [await Epoch.of(joined), own];
  }

  static async load(octets: Octets): Promise<Epoch> {
    return Epoch.of({ ...decoded(mls.decodeGroupState, octets), clientConfig: defaultClientConfig });
  }

  save(): Octets {
    return owned(mls.encodeGroupState(this.state));
  }

  get groupId(): Octets {
    return owned(this.state.groupContext.groupId);
  }

  get number(): number {
    return Number(this.state.groupContext.epoch);
  }

  get isMember(): boolean {
    return this.state.groupActiveState.kind !== "removedFromGroup";
  }

  get hasProposals(): boolean {
    return Object.keys(this.state.unappliedProposals).length > 0;
  }

  /** Whether all members have proposed to leave: then nobody is there who would commit it. */
  get isDeserted(): boolean {
    const proposed = Object.values(this.state.unappliedProposals).map(({ proposal }) => proposal);
    const leaving = new Set(proposed.map((each) => (each.proposalType === "remove" ? each.remove.removed : null)));
    return this.leaves().every(([leaf]) => leaving.has(leaf));
  }

  /** The user ids of the members, in the order of the tree. */
  get members(): string[] {
    return this.leaves().map(([, userId]) => userId);
  }

  private leaves(): [number, string][] {
    return this.state.ratchetTree.flatMap((node, at) =>
      node?.nodeType === "leaf" ? [[at / 2, identity(node.leaf.credential)] as [number, string]] : [],
    );
  }

  async encrypt(content: string): Promise<[Octets, Epoch]> {
    const made = await mls.createApplicationMessage(this.state, new TextEncoder().encode(content), await suite);
    const message = { version: "mls10", wireformat: "mls_private_message", privateMessage: made.privateMessage } as const;
    return [owned(mls.encodeMlsMessage(message)), new Epoch(made.newState, this.key)];
  }

  /** Makes the proposal by which this member asks to be removed. */
  async proposeLeaving(): Promise<[Octets, Epoch]> {
    const proposal: mls.Proposal = { proposalType: "remove", remove: { removed: this.state.privatePath.leafIndex } };
    const made = await mls.createProposal(this.state, false, proposal, await suite);
    return [owned(mls.encodeMlsMessage(made.message)), new Epoch(made.newState, this.key)];
  }

  /** Commits all pending proposals, and these changes. The commit counts once the hub has accepted it. */
  async commit(change: { add?: Octets; remove?: string } = {}): Promise<{ message: Octets; welcome?: Octets; next: Epoch }> {
    const extraProposals: mls.Proposal[] = [];
    if (change.add) extraProposals.push({ proposalType: "add", add: { keyPackage: decoded(decodeKeyPackage, change.add) } });
    for (const [removed, userId] of this.leaves()) {
      if (userId === change.remove) extraProposals.push({ proposalType: "remove", remove: { removed } });
    }
    const context = { state: this.state, cipherSuite: await suite };
    const made = await mls.createCommit(context, { extraProposals, ratchetTreeExtension: true });
    const next = await Epoch.of(made.newState);
    const message = owned(mls.encodeMlsMessage(made.commit));
    if (made.welcome === undefined) return { message, next };
    const welcome = { version: "mls10", wireformat: "mls_welcome", welcome: made.welcome } as const;
    return { message, welcome: owned(mls.encodeMlsMessage(welcome)), next };
  }

  /** Processes a message of another member: of this epoch, or an application message of an earlier one. */
  async process(octets: Octets): Promise<{ from: string; content?: string; epoch: Epoch }> {
    const message = decoded(mls.decodeMlsMessage, octets);
    if (message.wireformat !== "mls_private_message") throw new Error("members of this chat encrypt all messages");
    const from = await this.sender(message.privateMessage);
    const done = await mls.processMessage(message, this.state, mls.emptyPskIndex, mls.acceptAll, await suite);
    if (done.kind === "applicationMessage") {
      return { from, content: text.decode(done.message), epoch: new Epoch(done.newState, this.key) };
    }
    return { from, epoch: await Epoch.of(done.newState) };
  }

  /** Returns who sent a message; processing it checks that this member signed it. */
  private async sender(message: mls.PrivateMessage): Promise<string> {
    const { historicalReceiverData, keySchedule, ratchetTree } = this.state;
    const earlier = historicalReceiverData.get(message.epoch);
    const secret = earlier?.senderDataSecret ?? keySchedule.senderDataSecret;
    const found = await decryptSenderData(message, secret, await suite);
    const node = found && (earlier?.ratchetTree ?? ratchetTree)[2 * found.leafIndex];
    if (node?.nodeType !== "leaf") throw new Error("the message names a sender who is no member");
    return identity(node.leaf.credential);
  }
}

function identity(credential: mls.Credential): string {
  if (credential.credentialType !== "basic") throw new Error("members of this chat have BasicCredentials");
  return text.decode(credential.identity);
}

function decoded<T>(decoder: mls.Decoder<T>, octets: Octets): T {
  const found = decoder(octets, 0);
  if (found === undefined || found[1] !== octets.length) throw new Error("these octets are no such MLS object");
  return found[0];
}

/** Copies octets: the views that ts-mls returns may be parts of larger ones. */
function owned(octets: Uint8Array): Octets {
  return new Uint8Array(octets);
}

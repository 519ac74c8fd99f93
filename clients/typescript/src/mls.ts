// Printed by `make clients` from the declarations in Python. Change those.

import {
  type Codec,
  NOTHING,
  OPAQUE,
  UINT16,
  UINT32,
  UINT64,
  oneOf,
  opaque,
  optional,
  select,
  struct,
  uint,
  vector,
} from "./codec.js";
import type { Octets } from "./octets.js";

/** RFC 9420 section 17.2. Closed: the layout of other formats is unknown. */
export const WireFormat = {
  PUBLIC_MESSAGE: 1,
  PRIVATE_MESSAGE: 2,
  WELCOME: 3,
  GROUP_INFO: 4,
  KEY_PACKAGE: 5,
} as const;
export type WireFormat = (typeof WireFormat)[keyof typeof WireFormat];

/** RFC 9420 section 6. */
export const ContentType = {
  APPLICATION: 1,
  PROPOSAL: 2,
  COMMIT: 3,
} as const;
export type ContentType = (typeof ContentType)[keyof typeof ContentType];

/** RFC 9420 section 6. */
export const SenderType = {
  MEMBER: 1,
  EXTERNAL: 2,
  NEW_MEMBER_PROPOSAL: 3,
  NEW_MEMBER_COMMIT: 4,
} as const;
export type SenderType = (typeof SenderType)[keyof typeof SenderType];

/** One certificate of a chain, in DER. */
export interface Certificate {
  certData: Octets;
}
export const Certificate: Codec<Certificate> = struct("Certificate", {
  certData: OPAQUE,
});

/** The identity that a leaf claims (RFC 9420 section 5.3). */
export interface Credential {
  credentialType: number;
  content: Octets | Certificate[];
}
export const Credential: Codec<Credential> = struct("Credential", {
  credentialType: UINT16,
  content: select("credentialType", {
    1: OPAQUE,
    2: vector(Certificate, 32),
  }, OPAQUE),
});

/** What a client supports (RFC 9420 section 7.2); unknown values are ignored but kept. */
export interface Capabilities {
  versions: number[];
  cipherSuites: number[];
  extensions: number[];
  proposals: number[];
  credentials: number[];
}
export const Capabilities: Codec<Capabilities> = struct("Capabilities", {
  versions: vector(UINT16, 1024),
  cipherSuites: vector(UINT16, 1024),
  extensions: vector(UINT16, 1024),
  proposals: vector(UINT16, 1024),
  credentials: vector(UINT16, 1024),
});

/** When a KeyPackage may be used: seconds since 1970, both ends inclusive. */
export interface Lifetime {
  notBefore: bigint;
  notAfter: bigint;
}
export const Lifetime: Codec<Lifetime> = struct("Lifetime", {
  notBefore: UINT64,
  notAfter: UINT64,
});

/** An extension of any type, its data not parsed (RFC 9420 section 7.2). */
export interface Extension {
  extensionType: number;
  extensionData: Octets;
}
export const Extension: Codec<Extension> = struct("Extension", {
  extensionType: UINT16,
  extensionData: OPAQUE,
});

/** One client's place in a group, signed by the client (RFC 9420 section 7.2). */
export interface LeafNode {
  encryptionKey: Octets;
  signatureKey: Octets;
  credential: Credential;
  capabilities: Capabilities;
  leafNodeSource: number;
  origin: Lifetime | null | Octets;
  extensions: Extension[];
  signature: Octets;
}
export const LeafNode: Codec<LeafNode> = struct("LeafNode", {
  encryptionKey: OPAQUE,
  signatureKey: OPAQUE,
  credential: Credential,
  capabilities: Capabilities,
  leafNodeSource: oneOf(1, { KEY_PACKAGE: 1, UPDATE: 2, COMMIT: 3 }),
  origin: select("leafNodeSource", {
    1: Lifetime,
    2: NOTHING,
    3: OPAQUE,
  }),
  extensions: vector(Extension, 1024),
  signature: OPAQUE,
});

/** A KeyPackage that was parsed but not validated (RFC 9420 section 10). */
export interface KeyPackage {
  version: number;
  cipherSuite: number;
  initKey: Octets;
  leafNode: LeafNode;
  extensions: Extension[];
  signature: Octets;
}
export const KeyPackage: Codec<KeyPackage> = struct("KeyPackage", {
  version: UINT16,
  cipherSuite: UINT16,
  initKey: OPAQUE,
  leafNode: LeafNode,
  extensions: vector(Extension, 1024),
  signature: OPAQUE,
});

/** Add the client with this KeyPackage, which is not validated yet (RFC 9420 section 12.1.1). */
export interface Add {
  keyPackage: KeyPackage;
}
export const Add: Codec<Add> = struct("Add", {
  keyPackage: KeyPackage,
});

/** Replace the sender's leaf (RFC 9420 section 12.1.2). */
export interface Update {
  leafNode: LeafNode;
}
export const Update: Codec<Update> = struct("Update", {
  leafNode: LeafNode,
});

/** Remove the member at a leaf index (RFC 9420 section 12.1.3). */
export interface Remove {
  removed: number;
}
export const Remove: Codec<Remove> = struct("Remove", {
  removed: UINT32,
});

/** Names the resumption PSK of an earlier epoch (RFC 9420 section 8.4). */
export interface ResumptionPsk {
  usage: number;
  pskGroupId: Octets;
  pskEpoch: bigint;
}
export const ResumptionPsk: Codec<ResumptionPsk> = struct("ResumptionPsk", {
  usage: oneOf(1, { APPLICATION: 1, REINIT: 2, BRANCH: 3 }),
  pskGroupId: opaque(256),
  pskEpoch: UINT64,
});

/** Names a PSK of a component (draft-ietf-mls-extensions section 4.5). */
export interface ApplicationPsk {
  componentId: number;
  pskId: Octets;
}
export const ApplicationPsk: Codec<ApplicationPsk> = struct("ApplicationPsk", {
  componentId: UINT16,
  pskId: OPAQUE,
});

/** Names a pre-shared key; for an external PSK, `psk` is its psk_id (RFC 9420 section 8.4). */
export interface PreSharedKeyId {
  psktype: number;
  psk: Octets | ResumptionPsk | ApplicationPsk;
  pskNonce: Octets;
}
export const PreSharedKeyId: Codec<PreSharedKeyId> = struct("PreSharedKeyId", {
  psktype: oneOf(1, { EXTERNAL: 1, RESUMPTION: 2, APPLICATION: 3 }),
  psk: select("psktype", {
    1: OPAQUE,
    2: ResumptionPsk,
    3: ApplicationPsk,
  }),
  pskNonce: OPAQUE,
});

/** Inject a pre-shared key (RFC 9420 section 12.1.4). */
export interface PreSharedKey {
  psk: PreSharedKeyId;
}
export const PreSharedKey: Codec<PreSharedKey> = struct("PreSharedKey", {
  psk: PreSharedKeyId,
});

/** Replace the group with a new one that has these parameters (RFC 9420 section 12.1.5). */
export interface ReInit {
  groupId: Octets;
  version: number;
  cipherSuite: number;
  extensions: Extension[];
}
export const ReInit: Codec<ReInit> = struct("ReInit", {
  groupId: opaque(256),
  version: UINT16,
  cipherSuite: UINT16,
  extensions: vector(Extension, 1024),
});

/** An external joiner's input to the next epoch's key schedule (RFC 9420 section 12.1.6). */
export interface ExternalInit {
  kemOutput: Octets;
}
export const ExternalInit: Codec<ExternalInit> = struct("ExternalInit", {
  kemOutput: OPAQUE,
});

/** Replace all extensions of the GroupContext (RFC 9420 section 12.1.7). */
export interface GroupContextExtensions {
  extensions: Extension[];
}
export const GroupContextExtensions: Codec<GroupContextExtensions> = struct("GroupContextExtensions", {
  extensions: vector(Extension, 1024),
});

/** Update or remove one component's data (draft-ietf-mls-extensions section 4.7). */
export interface AppDataUpdate {
  componentId: number;
  op: number;
  update: Octets | null;
}
export const AppDataUpdate: Codec<AppDataUpdate> = struct("AppDataUpdate", {
  componentId: UINT16,
  op: oneOf(1, { UPDATE: 1, REMOVE: 2 }),
  update: select("op", {
    1: OPAQUE,
    2: NOTHING,
  }),
});

/** Attach a component's data to the commit without changing state (draft-ietf-mls-extensions section 4.8). */
export interface AppEphemeral {
  componentId: number;
  data: Octets;
}
export const AppEphemeral: Codec<AppEphemeral> = struct("AppEphemeral", {
  componentId: UINT16,
  data: OPAQUE,
});

/** Remove the sender's own leaf (draft-ietf-mls-extensions section 5.3); an empty structure. */
export type SelfRemove = Record<string, never>;
export const SelfRemove: Codec<SelfRemove> = struct("SelfRemove", {});

/** A proposal of any type; for an unknown type, `body` is the content of an opaque<V>, else `Unparsed`. */
export interface Proposal {
  proposalType: number;
  body: Add | Update | Remove | PreSharedKey | ReInit | ExternalInit | GroupContextExtensions | AppDataUpdate | AppEphemeral | SelfRemove | Octets;
}
export const Proposal: Codec<Proposal> = struct("Proposal", {
  proposalType: UINT16,
  body: select("proposalType", {
    1: Add,
    2: Update,
    3: Remove,
    4: PreSharedKey,
    5: ReInit,
    6: ExternalInit,
    7: GroupContextExtensions,
    8: AppDataUpdate,
    9: AppEphemeral,
    10: SelfRemove,
  }, OPAQUE),
});

/** A proposal by value, or the ProposalRef of a proposal sent earlier (RFC 9420 section 12.4). */
export interface ProposalOrRef {
  type: number;
  value: Proposal | Octets;
}
export const ProposalOrRef: Codec<ProposalOrRef> = struct("ProposalOrRef", {
  type: oneOf(1, { PROPOSAL: 1, REFERENCE: 2 }),
  value: select("type", {
    1: Proposal,
    2: OPAQUE,
  }),
});

/** One encrypted secret (RFC 9420 section 7.6). */
export interface HpkeCiphertext {
  kemOutput: Octets;
  ciphertext: Octets;
}
export const HpkeCiphertext: Codec<HpkeCiphertext> = struct("HpkeCiphertext", {
  kemOutput: OPAQUE,
  ciphertext: OPAQUE,
});

/** The new key of a node on the filtered direct path, and its secret encrypted to each receiver. */
export interface UpdatePathNode {
  encryptionKey: Octets;
  encryptedPathSecret: HpkeCiphertext[];
}
export const UpdatePathNode: Codec<UpdatePathNode> = struct("UpdatePathNode", {
  encryptionKey: OPAQUE,
  encryptedPathSecret: vector(HpkeCiphertext),
});

/** A committer's new leaf and the new keys on its path (RFC 9420 section 7.6). */
export interface UpdatePath {
  leafNode: LeafNode;
  nodes: UpdatePathNode[];
}
export const UpdatePath: Codec<UpdatePath> = struct("UpdatePath", {
  leafNode: LeafNode,
  nodes: vector(UpdatePathNode, 32),
});

/** A commit, which leads to the next epoch (RFC 9420 section 12.4). */
export interface Commit {
  proposals: ProposalOrRef[];
  path: UpdatePath | null;
}
export const Commit: Codec<Commit> = struct("Commit", {
  proposals: vector(ProposalOrRef, 16384),
  path: optional(UpdatePath),
});

/** The group's secrets, encrypted to one KeyPackage. */
export interface EncryptedGroupSecrets {
  newMember: Octets;
  encryptedGroupSecrets: HpkeCiphertext;
}
export const EncryptedGroupSecrets: Codec<EncryptedGroupSecrets> = struct("EncryptedGroupSecrets", {
  newMember: OPAQUE,
  encryptedGroupSecrets: HpkeCiphertext,
});

/** One Welcome for any number of new members. */
export interface Welcome {
  cipherSuite: number;
  secrets: EncryptedGroupSecrets[];
  encryptedGroupInfo: Octets;
}
export const Welcome: Codec<Welcome> = struct("Welcome", {
  cipherSuite: UINT16,
  secrets: vector(EncryptedGroupSecrets, 4096),
  encryptedGroupInfo: OPAQUE,
});

/** What the members of an epoch agree on (RFC 9420 section 8.1). */
export interface GroupContext {
  version: number;
  cipherSuite: number;
  groupId: Octets;
  epoch: bigint;
  treeHash: Octets;
  confirmedTranscriptHash: Octets;
  extensions: Extension[];
}
export const GroupContext: Codec<GroupContext> = struct("GroupContext", {
  version: uint(2, 65535, [[1, 1]]),
  cipherSuite: UINT16,
  groupId: opaque(256),
  epoch: UINT64,
  treeHash: OPAQUE,
  confirmedTranscriptHash: OPAQUE,
  extensions: vector(Extension, 1024),
});

/** A member's signed statement of an epoch's state (RFC 9420 section 12.4.3). */
export interface GroupInfo {
  groupContext: GroupContext;
  extensions: Extension[];
  confirmationTag: Octets;
  signer: number;
  signature: Octets;
}
export const GroupInfo: Codec<GroupInfo> = struct("GroupInfo", {
  groupContext: GroupContext,
  extensions: vector(Extension, 1024),
  confirmationTag: OPAQUE,
  signer: UINT32,
  signature: OPAQUE,
});

/** A sender outside the group that may send proposals (RFC 9420 section 12.1.8.1). */
export interface ExternalSender {
  signatureKey: Octets;
  credential: Credential;
}
export const ExternalSender: Codec<ExternalSender> = struct("ExternalSender", {
  signatureKey: OPAQUE,
  credential: Credential,
});

/** The sender; `index` is a leaf index (member) or an index into external_senders (external), else None. */
export interface Sender {
  senderType: SenderType;
  index: number | null;
}
export const Sender: Codec<Sender> = struct("Sender", {
  senderType: oneOf(1, SenderType),
  index: select("senderType", {
    1: UINT32,
    2: UINT32,
    3: NOTHING,
    4: NOTHING,
  }),
});

/** An encrypted message (RFC 9420 section 6.3); the sender is not visible. */
export interface PrivateMessage {
  groupId: Octets;
  epoch: bigint;
  contentType: ContentType;
  authenticatedData: Octets;
  encryptedSenderData: Octets;
  ciphertext: Octets;
}
export const PrivateMessage: Codec<PrivateMessage> = struct("PrivateMessage", {
  groupId: opaque(256),
  epoch: UINT64,
  contentType: oneOf(1, ContentType),
  authenticatedData: OPAQUE,
  encryptedSenderData: OPAQUE,
  ciphertext: OPAQUE,
});

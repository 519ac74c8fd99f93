/**
 * Message framing (RFC 9420 section 6), written by hand: whether a PublicMessage has tags depends on its content, and a
 * list of fields cannot express this.
 */

import { at, Codec, OPAQUE, oneOf, opaque, optional, type Readable, type Reader, UINT64, uint, WireError } from "./codec.js";
import { endOfMessage, signatureBefore } from "./extents.js";
import {
  Commit,
  ContentType,
  GroupInfo,
  KeyPackage,
  PrivateMessage,
  Proposal,
  ProposalOrRef,
  Sender,
  SenderType,
  UpdatePath,
  Welcome,
  WireFormat,
} from "./mls.js";
import type { Octets } from "./octets.js";

const GROUP_ID = opaque(256);
const CONTENT_TYPE = oneOf(1, ContentType);
const VERSION = uint(2, 0xffff, [[1, 1]]);
const WIRE_FORMAT = oneOf(2, WireFormat);
const COMMIT_PATH = optional(UpdatePath);
const BY_VALUE = 1; // the ProposalOrRefType of a proposal
const MOST_PROPOSALS = 16_384; // in a commit
const MOST_UNPARSED = 64; // of unknown layout, in a commit that does not parse as declared

/** An unencrypted message (RFC 9420 section 6.2), as far as a client of a delivery service needs it. */
export interface PublicMessage {
  groupId: Octets;
  epoch: bigint;
  sender: Sender;
  authenticatedData: Octets;
  contentType: ContentType;
}

/** An MLS message of any kind; `encoded` has the octets as received, for forwarding. */
export interface MLSMessage {
  readonly encoded: Octets;
  readonly wireFormat: WireFormat;
  readonly message: PublicMessage | PrivateMessage | Welcome | GroupInfo | KeyPackage;
  /** Of a PublicMessage or PrivateMessage, null for other messages. */
  readonly contentType: ContentType | null;
}

const CONTENTS: Readonly<Record<ContentType, Readable<unknown>>> = {
  [ContentType.APPLICATION]: OPAQUE,
  [ContentType.PROPOSAL]: Proposal,
  [ContentType.COMMIT]: { read: readCommit },
};

interface Ended {
  message: PublicMessage;
  /** Whether the message is a proposal that RFC 9420 does not define. */
  isOther: boolean;
}

/**
 * Reads a PublicMessage. A proposal that RFC 9420 does not define is read as opaque<V>, as most libraries write it. If
 * this does not fit the octets around the message, `extents.ts` finds its end.
 */
function readPublicMessage(reader: Reader): PublicMessage {
  const { pos: start, end } = reader;
  let declared: Ended;
  try {
    declared = readAsDeclared(reader);
  } catch (error) {
    reader.pos = start;
    reader.end = end;
    const found = readUnparsedProposal(reader, null);
    if (found === null) throw error;
    return found;
  }
  if (!declared.isOther) return declared.message;
  const ended = reader.pos;
  reader.pos = start;
  const found = readUnparsedProposal(reader, ended);
  if (found !== null) return found;
  reader.pos = ended;
  return declared.message;
}

function readAsDeclared(reader: Reader): Ended {
  const ended = at("content", () => {
    const message = readHead(reader);
    const isProposal = message.contentType === ContentType.PROPOSAL;
    const isOther = isProposal && isUndefined(peekType(reader));
    at("content", () => CONTENTS[message.contentType].read(reader));
    return { message, isOther };
  });
  at("auth.signature", () => OPAQUE.read(reader));
  if (ended.message.contentType === ContentType.COMMIT) at("auth.confirmation_tag", () => OPAQUE.read(reader));
  if (isFromMember(ended.message)) at("membership_tag", () => OPAQUE.read(reader));
  return ended;
}

/** Reads the fields before the content. */
function readHead(reader: Reader): PublicMessage {
  const groupId = at("group_id", () => GROUP_ID.read(reader));
  const epoch = at("epoch", () => UINT64.read(reader));
  const sender = at("sender", () => Sender.read(reader));
  const authenticatedData = at("authenticated_data", () => OPAQUE.read(reader));
  const contentType = at("content_type", () => CONTENT_TYPE.read(reader));
  return { groupId, epoch, sender, authenticatedData, contentType };
}

/** Reads a proposal without the declared layout; null for other messages, or if the layout is right. */
function readUnparsedProposal(reader: Reader, declaredEnd: number | null): PublicMessage | null {
  const { end } = reader;
  let message: PublicMessage;
  try {
    message = readHead(reader);
    if (message.contentType !== ContentType.PROPOSAL || !isUndefined(reader.uint(2))) return null;
  } catch (error) {
    if (error instanceof WireError) return null;
    throw error;
  }
  const body = reader.pos;
  const tagged = isFromMember(message);
  const stop = endOfMessage(reader.data, body, end, tagged, declaredEnd);
  if (stop !== null && stop === declaredEnd) return null;
  const signatureAt = stop === null ? null : signatureBefore(reader.data, body, stop, tagged);
  if (signatureAt === null) {
    if (declaredEnd === null) return null;
    throw new WireError("its end is not certain", ["content", "content", "body"]);
  }
  reader.pos = signatureAt;
  OPAQUE.read(reader);
  if (tagged) OPAQUE.read(reader);
  return message;
}

/** Reads a commit; if it does not parse as declared, tries other layouts of proposals that RFC 9420 does not define. */
function readCommit(reader: Reader): void {
  const { pos: start, end } = reader;
  try {
    Commit.read(reader);
    return;
  } catch (error) {
    reader.pos = start;
    reader.end = end;
    if (!readProposalsByAnotherLayout(reader)) throw error;
  }
  at("path", () => COMMIT_PATH.read(reader));
}

/** Moves past the proposals of a commit if another layout fits, else returns false. */
function readProposalsByAnotherLayout(reader: Reader): boolean {
  const stop = reader.block();
  const { pos: start, end } = reader;
  let unparsed = 0; // bodies that the last fitting layout has read
  for (const layout of [() => reader.block(), () => reader.pos, () => reader.end]) {
    reader.pos = start;
    reader.end = stop; // a failed attempt may have moved the end
    try {
      unparsed = readProposals(reader, layout);
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
    }
  }
  reader.pos = stop;
  reader.end = end;
  return unparsed > 0;
}

/** Reads proposals up to the reader's end; `layout` returns the end of a body. Returns how often it was used. */
function readProposals(reader: Reader, layout: () => number): number {
  let unparsed = 0;
  for (let items = 0; reader.pos < reader.end; items++) {
    if (items === MOST_PROPOSALS) throw new WireError(`more than ${MOST_PROPOSALS} items`);
    const { pos, data } = reader;
    const byValue = data[pos] === BY_VALUE && pos + 3 <= reader.end;
    if (!byValue || !isUndefined(data[pos + 1]! * 256 + data[pos + 2]!)) {
      ProposalOrRef.read(reader);
      continue;
    }
    if (++unparsed > MOST_UNPARSED) throw new WireError(`more than ${MOST_UNPARSED} proposals of unknown layout`);
    reader.pos = pos + 3;
    reader.pos = layout();
  }
  return unparsed;
}

function peekType(reader: Reader): number {
  const type = reader.uint(2);
  reader.pos -= 2;
  return type;
}

/** Tells whether RFC 9420 does not define this type of proposal. */
function isUndefined(proposalType: number): boolean {
  return proposalType < 1 || proposalType > 7;
}

function isFromMember({ sender }: PublicMessage): boolean {
  return sender.senderType === SenderType.MEMBER;
}

const MESSAGES: Readonly<Record<WireFormat, (reader: Reader) => MLSMessage["message"]>> = {
  [WireFormat.PUBLIC_MESSAGE]: readPublicMessage,
  [WireFormat.PRIVATE_MESSAGE]: PrivateMessage.read,
  [WireFormat.WELCOME]: Welcome.read,
  [WireFormat.GROUP_INFO]: GroupInfo.read,
  [WireFormat.KEY_PACKAGE]: KeyPackage.read,
};

export const MLSMessage: Codec<MLSMessage> = new Codec(
  (reader) => {
    const start = reader.pos;
    at("version", () => VERSION.read(reader));
    const wireFormat = at("wire_format", () => WIRE_FORMAT.read(reader));
    const message = at("message", () => MESSAGES[wireFormat](reader));
    const contentType = "contentType" in message ? (message.contentType as ContentType) : null;
    return { encoded: reader.data.slice(start, reader.pos), wireFormat, message, contentType };
  },
  (value, out) => out.put(value.encoded),
  "MLSMessage",
);

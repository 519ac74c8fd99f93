"""Message framing (RFC 9420 section 6): MLSMessage in its five wire formats, and the octets that get signed or hashed.

FramedContentAuthData has a confirmation tag only for a commit, and PublicMessage has a membership tag only from a
member. Both depend on values inside the content, which a declared list of fields cannot express, so these two structs
and AuthenticatedContent have handwritten codecs.
"""

from __future__ import annotations

from typing import Final, TypeVar

import attrs

from mimids.mls.code_points import (
    CONTENT_TYPE,
    DEFAULT_PROPOSALS,
    PROPOSAL_TYPE,
    SENDER_TYPE,
    WIRE_FORMAT,
    ContentType,
    ProposalType,
    SenderType,
    WireFormat,
)
from mimids.mls.extents import end_of_message, may_be_signature, signature_before
from mimids.mls.group_info import MLS10_ONLY, GroupInfo
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.proposals import Commit, Proposal, ProposalRef, Unparsed
from mimids.mls.suites import Suite, proposal_ref, verify_with_label
from mimids.mls.welcome import Welcome
from mimids.wire import varint
from mimids.wire.codec import NOTHING, OPAQUE_V, UINT32, UINT64, Codec, Reader, WireError
from mimids.wire.declare import Kept, codec, keep, select, struct, wire, written_by
from mimids.wire.ids import GROUP_ID, MLS10, GroupId, ProtocolVersion

T = TypeVar("T")


@struct
class Sender:
    """The sender; `index` is a leaf index (member) or an index into external_senders (external), else None."""

    sender_type: SenderType = wire(SENDER_TYPE)
    index: int | None = select(
        "sender_type",
        {
            SenderType.MEMBER: UINT32,
            SenderType.EXTERNAL: UINT32,
            SenderType.NEW_MEMBER_PROPOSAL: NOTHING,
            SenderType.NEW_MEMBER_COMMIT: NOTHING,
        },
    )


@struct
class FramedContent(Kept):
    """A message's content (RFC 9420 section 6); `content` is application data, a proposal or a commit."""

    group_id: GroupId = wire(GROUP_ID)
    epoch: int = wire(UINT64)
    sender: Sender = wire(codec(Sender))
    authenticated_data: bytes = wire(OPAQUE_V)
    content_type: ContentType = wire(CONTENT_TYPE)
    content: bytes | Proposal | Commit = select(
        "content_type",
        {
            ContentType.APPLICATION: OPAQUE_V,
            ContentType.PROPOSAL: codec(Proposal),
            ContentType.COMMIT: codec(Commit),
        },
    )


@attrs.frozen
class AuthenticatedContent:
    """A message's content with its signature and, only for a commit, its confirmation tag (RFC 9420 section 6.1)."""

    wire_format: WireFormat
    content: FramedContent
    signature: bytes
    confirmation_tag: bytes | None

    def tbs(self, context: bytes) -> bytes:
        """Return FramedContentTBS; only members and external joiners sign `context` (the encoded GroupContext)."""
        head = MLS10.to_bytes(2, "big") + self.wire_format.to_bytes(2, "big") + self.content.encoded
        covers = self.content.sender.sender_type in (SenderType.MEMBER, SenderType.NEW_MEMBER_COMMIT)
        return head + context if covers else head

    def verifies(self, suite: Suite, signature_key: bytes, context: bytes) -> bool:
        """Verify the signature with the sender's key; `context` as in `tbs`."""
        return verify_with_label(suite, signature_key, b"FramedContentTBS", self.tbs(context), self.signature)

    def confirmed_transcript_hash_input(self) -> bytes:
        """Return ConfirmedTranscriptHashInput of a commit (RFC 9420 section 8.2)."""
        return b"".join((self.wire_format.to_bytes(2, "big"), self.content.encoded, _opaque(self.signature)))

    def interim_transcript_hash_input(self) -> bytes:
        """Return InterimTranscriptHashInput of a commit (RFC 9420 section 8.2)."""
        return interim_transcript_hash_input(self.confirmation_tag or b"")

    @property
    def encoded(self) -> bytes:
        """Return the encoding; a ProposalRef is its hash."""
        head = self.wire_format.to_bytes(2, "big") + self.content.encoded + _opaque(self.signature)
        return head if self.confirmation_tag is None else head + _opaque(self.confirmation_tag)

    def proposal_ref(self, suite: Suite) -> ProposalRef:
        """Return the ProposalRef (RFC 9420 section 5.2)."""
        return ProposalRef(proposal_ref(suite, self.encoded))


def interim_transcript_hash_input(confirmation_tag: bytes) -> bytes:
    """Return InterimTranscriptHashInput (RFC 9420 section 8.2)."""
    return _opaque(confirmation_tag)


def _opaque(octets: bytes) -> bytes:
    return varint.mls(len(octets)) + octets


class _AuthenticatedContent(Codec[AuthenticatedContent]):
    def read(self, reader: Reader) -> AuthenticatedContent:
        wire_format = _within("wire_format", WIRE_FORMAT, reader)
        content, signature, confirmation_tag, _ = _content_and_auth(reader, tagged=False)
        return AuthenticatedContent(wire_format, content, signature, confirmation_tag)

    def write(self, value: AuthenticatedContent, out: bytearray) -> None:
        WIRE_FORMAT.write(value.wire_format, out)
        _write_content_and_auth(value.content, value.signature, value.confirmation_tag, out)


written_by(AuthenticatedContent, _AuthenticatedContent())


@attrs.frozen
class PublicMessage:
    """An unencrypted message (RFC 9420 section 6.2); confirmation tags are for commits, membership tags for members."""

    content: FramedContent
    signature: bytes
    confirmation_tag: bytes | None
    membership_tag: bytes | None

    @property
    def group_id(self) -> GroupId:
        """Return the id of the group that the message is for."""
        return self.content.group_id

    @property
    def epoch(self) -> int:
        """Return the epoch that the message was sent in."""
        return self.content.epoch

    @property
    def content_type(self) -> ContentType:
        """Return which kind of content the message carries."""
        return self.content.content_type

    def authenticated_content(self) -> AuthenticatedContent:
        """Return the part that is signed and hashed."""
        return AuthenticatedContent(WireFormat.PUBLIC_MESSAGE, self.content, self.signature, self.confirmation_tag)


class _PublicMessage(Codec[PublicMessage]):
    def read(self, reader: Reader) -> PublicMessage:
        return PublicMessage(*_content_and_auth(reader, tagged=True))

    def write(self, value: PublicMessage, out: bytearray) -> None:
        member = value.content.sender.sender_type is SenderType.MEMBER
        if (value.membership_tag is not None) != member:
            raise ValueError("a membership tag is for messages from members, and only for them")
        _write_content_and_auth(value.content, value.signature, value.confirmation_tag, out)
        if value.membership_tag is not None:
            out += _opaque(value.membership_tag)


written_by(PublicMessage, _PublicMessage())


_ContentAndTags = tuple[FramedContent, bytes, bytes | None, bytes | None]  # signature, confirmation, membership tag


def _content_and_auth(reader: Reader, *, tagged: bool) -> _ContentAndTags:
    """Read FramedContent, its FramedContentAuthData and, if `tagged` and from a member, a membership tag."""
    start, end = reader.pos, reader.end
    try:
        declared = _as_declared(reader, tagged=tagged)
    except WireError as error:
        reader.pos, reader.end = start, end
        found = _unparsed_proposal(reader, None, tagged=tagged)
        if found is None:
            raise error from None
        return found
    content = declared[0].content
    if not isinstance(content, Proposal) or content.proposal_type in DEFAULT_PROPOSALS:
        return declared
    ended, reader.pos = reader.pos, start
    found = _unparsed_proposal(reader, ended, tagged=tagged, certain=may_be_signature(declared[1]))
    if found is None:
        reader.pos = ended
    return found or declared


def _unparsed_proposal(
    reader: Reader, declared_end: int | None, *, tagged: bool, certain: bool = True
) -> _ContentAndTags | None:
    """Read a message with a proposal that RFC 9420 does not define, if its body does not have the declared layout.

    The function finds the end of the message, and takes the octets before the signature as the body (see `extents`).
    With `certain`, the declared layout has a signature at the right place. Returns None for other messages, and if
    the declared layout is right. Raises `WireError` if the end is not certain.
    """
    start, end = reader.pos, reader.end
    head = _head_of_proposal(reader)
    if head is None:
        return None
    body, member = reader.pos, tagged and head.sender.sender_type is SenderType.MEMBER
    stop = end_of_message(reader.data, body, end, tagged=member, declared=declared_end, certain=certain)
    if stop is not None and stop == declared_end and certain:
        return None
    signature_at = None if stop is None else signature_before(reader.data, body, stop, tagged=member)
    if signature_at is None:
        if declared_end is None or stop == declared_end:
            return None
        raise WireError("its end is not certain", ("content", "content", "body"))
    proposal = Proposal(head.proposal_type, Unparsed(reader.data[body:signature_at]))
    content = FramedContent(
        head.group_id, head.epoch, head.sender, head.authenticated_data, head.content_type, proposal
    )
    keep(content, reader.data[start:signature_at])
    reader.pos = signature_at
    return content, OPAQUE_V.read(reader), None, OPAQUE_V.read(reader) if member else None


def _as_declared(reader: Reader, *, tagged: bool) -> _ContentAndTags:
    content = _within("content", codec(FramedContent), reader)
    signature = _within("auth.signature", OPAQUE_V, reader)
    commit = content.content_type is ContentType.COMMIT
    confirmation_tag = _within("auth.confirmation_tag", OPAQUE_V, reader) if commit else None
    member = tagged and content.sender.sender_type is SenderType.MEMBER
    return content, signature, confirmation_tag, _within("membership_tag", OPAQUE_V, reader) if member else None


@struct
class _ProposalHead:
    """The part of FramedContent before the body of a proposal."""

    group_id: GroupId = wire(GROUP_ID)
    epoch: int = wire(UINT64)
    sender: Sender = wire(codec(Sender))
    authenticated_data: bytes = wire(OPAQUE_V)
    content_type: ContentType = wire(CONTENT_TYPE)
    proposal_type: ProposalType = wire(PROPOSAL_TYPE)


def _head_of_proposal(reader: Reader) -> _ProposalHead | None:
    """Read up to the body of a proposal that RFC 9420 does not define; return None for any other content."""
    try:
        head = codec(_ProposalHead).read(reader)
    except WireError:
        return None
    other = head.content_type is not ContentType.PROPOSAL or head.proposal_type in DEFAULT_PROPOSALS
    return None if other else head


def _write_content_and_auth(
    content: FramedContent, signature: bytes, confirmation_tag: bytes | None, out: bytearray
) -> None:
    if (confirmation_tag is not None) != (content.content_type is ContentType.COMMIT):
        raise ValueError("a confirmation tag is for commits, and only for them")
    codec(FramedContent).write(content, out)
    out += _opaque(signature)
    if confirmation_tag is not None:
        out += _opaque(confirmation_tag)


def _within(place: str, by: Codec[T], reader: Reader) -> T:
    try:
        return by.read(reader)
    except WireError as error:
        raise error.within(place) from None


@struct
class PrivateMessage:
    """An encrypted message (RFC 9420 section 6.3); the sender is not visible."""

    group_id: GroupId = wire(GROUP_ID)
    epoch: int = wire(UINT64)
    content_type: ContentType = wire(CONTENT_TYPE)
    authenticated_data: bytes = wire(OPAQUE_V)
    encrypted_sender_data: bytes = wire(OPAQUE_V)
    ciphertext: bytes = wire(OPAQUE_V)


@struct
class MLSMessage(Kept):
    """An MLS message of any kind (RFC 9420 section 6); `encoded` has the octets as received, for forwarding."""

    version: ProtocolVersion = wire(MLS10_ONLY)
    wire_format: WireFormat = wire(WIRE_FORMAT)
    message: PublicMessage | PrivateMessage | Welcome | GroupInfo | KeyPackageIn = select(
        "wire_format",
        {
            WireFormat.PUBLIC_MESSAGE: codec(PublicMessage),
            WireFormat.PRIVATE_MESSAGE: codec(PrivateMessage),
            WireFormat.WELCOME: codec(Welcome),
            WireFormat.GROUP_INFO: codec(GroupInfo),
            WireFormat.KEY_PACKAGE: codec(KeyPackageIn),
        },
    )

    @property
    def group_id(self) -> GroupId | None:
        """Return the group id in the message, None if it has none."""
        message = self.message
        if isinstance(message, PrivateMessage | PublicMessage):
            return message.group_id
        return message.group_context.group_id if isinstance(message, GroupInfo) else None

    @property
    def epoch(self) -> int | None:
        """Return the epoch that the message was sent in or that a GroupInfo describes, else None."""
        message = self.message
        if isinstance(message, PrivateMessage | PublicMessage):
            return message.epoch
        return message.group_context.epoch if isinstance(message, GroupInfo) else None

    @property
    def content_type(self) -> ContentType | None:
        """Return the content type of a PublicMessage or PrivateMessage, None for other messages."""
        return self.message.content_type if isinstance(self.message, PrivateMessage | PublicMessage) else None


MLS_MESSAGE: Final[Codec[MLSMessage]] = codec(MLSMessage)
"""Reads one MLSMessage inline: inside other structures it has no length prefix."""

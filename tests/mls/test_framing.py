"""Framing: parsing, signed octets, and the handwritten codecs."""

from __future__ import annotations

from typing import Any

import pytest

from mimids.mls.code_points import ContentType, ProposalType, SenderType, WireFormat
from mimids.mls.framing import (
    MLS_MESSAGE,
    AuthenticatedContent,
    FramedContent,
    MLSMessage,
    PrivateMessage,
    PublicMessage,
    Sender,
)
from mimids.mls.group_info import GroupContext, GroupInfo
from mimids.mls.leaf_node import HpkePublicKey, LeafNode
from mimids.mls.proposals import Ciphertexts, Commit, Proposal, SelfRemove, UpdatePath, UpdatePathNode
from mimids.mls.welcome import Welcome
from mimids.wire.codec import Reader, WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, GroupId
from tests.support.mls_makers import Signer, key_package, leaf_node, replace

GROUP = GroupId(b"mimi://a.example/g/room")
SELF_REMOVE = Proposal(ProposalType.SELF_REMOVE, SelfRemove())
CONTEXT = b"an encoded GroupContext"


def content(sender: Sender, content_type: ContentType = ContentType.PROPOSAL, what: Any = SELF_REMOVE) -> FramedContent:
    return FramedContent(GROUP, 7, sender, b"aad", content_type, what)


def authenticated(sender: Sender) -> AuthenticatedContent:
    return AuthenticatedContent(WireFormat.PUBLIC_MESSAGE, content(sender), b"signature", None)


def private(ciphertext: bytes = b"secret") -> MLSMessage:
    message = PrivateMessage(GROUP, 7, ContentType.COMMIT, b"", b"sender data", ciphertext)
    return MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, message)


@pytest.mark.parametrize(
    ("sender", "covers_context"),
    [
        (Sender(SenderType.MEMBER, 3), True),
        (Sender(SenderType.NEW_MEMBER_COMMIT, None), True),
        (Sender(SenderType.EXTERNAL, 0), False),
        (Sender(SenderType.NEW_MEMBER_PROPOSAL, None), False),
    ],
)
def test_members_and_joiners_sign_the_group_context_and_others_do_not(sender: Sender, covers_context: bool) -> None:
    message = authenticated(sender)
    expected = b"\0\1\0\1" + message.content.encoded + (CONTEXT if covers_context else b"")
    assert message.tbs(CONTEXT) == expected

    signer = Signer.of(1)
    signed = replace(message, signature=signer.sign(b"FramedContentTBS", expected))
    assert signed.verifies(signer.suite, signer.public, CONTEXT)
    assert signed.verifies(signer.suite, signer.public, b"that of another fork") != covers_context


def test_the_wire_format_is_signed() -> None:
    message = authenticated(Sender(SenderType.MEMBER, 3))
    other = replace(message, wire_format=WireFormat.PRIVATE_MESSAGE)
    assert message.tbs(b"")[:4] == b"\0\1\0\1"
    assert other.tbs(b"")[:4] == b"\0\1\0\2"


@pytest.mark.parametrize(
    ("sender_type", "index", "content_type", "confirmation_tag", "membership_tag"),
    [
        (SenderType.MEMBER, 0, ContentType.PROPOSAL, None, None),
        (SenderType.EXTERNAL, 0, ContentType.PROPOSAL, None, b"tag"),
        (SenderType.MEMBER, 0, ContentType.PROPOSAL, b"tag", b"tag"),
        (SenderType.MEMBER, 0, ContentType.COMMIT, None, b"tag"),
    ],
)
def test_tags_are_present_exactly_where_the_sender_and_content_require_them(
    sender_type: SenderType,
    index: int,
    content_type: ContentType,
    confirmation_tag: bytes | None,
    membership_tag: bytes | None,
) -> None:
    what = Commit((), None) if content_type is ContentType.COMMIT else SELF_REMOVE
    message = PublicMessage(
        content(Sender(sender_type, index), content_type, what), b"signature", confirmation_tag, membership_tag
    )
    with pytest.raises(ValueError, match="tag is for"):
        encode(message)


def test_headers_are_read_from_every_wire_format() -> None:
    public = PublicMessage(content(Sender(SenderType.EXTERNAL, 0)), b"signature", None, None)
    info = GroupInfo(GroupContext(MLS10, CipherSuite(1), GROUP, 9, b"", b"", ()), (), b"", 0, b"")
    found = {}
    for wire_format, message in (
        (WireFormat.PUBLIC_MESSAGE, public),
        (WireFormat.PRIVATE_MESSAGE, private().message),
        (WireFormat.GROUP_INFO, info),
        (WireFormat.WELCOME, Welcome(CipherSuite(1), (), b"")),
        (WireFormat.KEY_PACKAGE, key_package(Signer.of(1))),
    ):
        read = MLS_MESSAGE.decode(MLS_MESSAGE.encode(MLSMessage(MLS10, wire_format, message)))
        found[wire_format] = read.group_id, read.epoch, read.content_type
    assert found == {
        WireFormat.PUBLIC_MESSAGE: (GROUP, 7, ContentType.PROPOSAL),
        WireFormat.PRIVATE_MESSAGE: (GROUP, 7, ContentType.COMMIT),
        WireFormat.GROUP_INFO: (GROUP, 9, None),
        WireFormat.WELCOME: (None, None, None),
        WireFormat.KEY_PACKAGE: (None, None, None),
    }


def test_a_message_is_read_inline_and_keeps_its_octets() -> None:
    first, second = private(b"first").encoded, private(b"second" * 100).encoded
    reader = Reader(first + second + b"what follows")
    assert [MLS_MESSAGE.read(reader).encoded for _ in range(2)] == [first, second]
    assert reader.take(12) == b"what follows"


@pytest.mark.parametrize(
    ("head", "place"),
    [
        ("0000 0002", "version"),
        ("0002 0002", "version"),
        ("0001 0000", "wire_format"),
        ("0001 0006", "wire_format"),
        ("0001 f001", "wire_format"),
        ("0001 0002 00 0000000000000000 00", "message.content_type"),
        ("0001 0002 00 0000000000000000 04", "message.content_type"),
        ("0001 0001 00 0000000000000000 00", "message.content.sender.sender_type"),
        ("0001 0001 00 0000000000000000 05", "message.content.sender.sender_type"),
        ("0001 0001 00 0000000000000000 02 00000000 00 02 0008 0022 00", "message.content.content.body.op"),
    ],
)
def test_unknown_closed_values_are_refused_with_their_path(head: str, place: str) -> None:
    with pytest.raises(WireError) as caught:
        MLS_MESSAGE.decode(bytes.fromhex(head) + bytes(40))
    assert ".".join(caught.value.path) == place


def test_a_path_longer_than_a_tree_can_be_high_is_refused() -> None:
    leaf = decode(LeafNode, leaf_node(Signer.of(1)).encoded)
    node = UpdatePathNode(HpkePublicKey(b""), Ciphertexts.of())
    assert decode(UpdatePath, encode(UpdatePath(leaf, (node,) * 32))).nodes == (node,) * 32
    with pytest.raises(WireError, match=r"UpdatePath\.nodes\.32: more than 32 items"):
        decode(UpdatePath, encode(UpdatePath(leaf, (node,) * 33)))

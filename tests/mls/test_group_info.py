"""GroupInfo and its extensions."""

from __future__ import annotations

import pytest

from mimids.mls.code_points import CredentialType, ExtensionType, ProposalType
from mimids.mls.framing import MLS_MESSAGE
from mimids.mls.group_info import (
    EXTERNAL_SENDERS,
    ExternalPub,
    ExternalSender,
    GroupInfo,
    RequiredCapabilities,
    external_senders,
    required_capabilities,
)
from mimids.mls.leaf_node import Credential, Extension, HpkePublicKey, LeafNode, SignaturePublicKey
from mimids.mls.suites import suite_of
from mimids.wire.codec import WireError
from mimids.wire.declare import encode
from tests import vectors
from tests.support.mls_makers import replace


def recorded(name: str, line_name: str) -> GroupInfo:
    for line in vectors.load_lines(f"conversations/{name}.jsonl"):
        if line.get("name") == line_name:
            message = MLS_MESSAGE.decode(bytes.fromhex(line["bytes"])).message
            assert isinstance(message, GroupInfo)
            return message
    raise LookupError(line_name)


@pytest.mark.parametrize("name", ["public", "private", "policy"])
def test_every_recorded_group_info_with_a_tree_is_signed_by_the_leaf_it_names(name: str) -> None:
    checked = 0
    for line in vectors.load_lines(f"conversations/{name}.jsonl"):
        if line["kind"] != "group_info":
            continue
        info = MLS_MESSAGE.decode(bytes.fromhex(line["bytes"])).message
        assert isinstance(info, GroupInfo)
        suite = suite_of(info.group_context.cipher_suite)
        tree = info.ratchet_tree()
        assert suite is not None
        assert info.external_pub() is not None
        if tree is not None:
            checked += 1
            signer = tree[2 * info.signer]
            assert signer is not None
            assert isinstance(signer.node, LeafNode)
            assert info.verifies(suite, signer.node.signature_key)
            assert not replace(info, signer=info.signer + 1).verifies(suite, signer.node.signature_key)
    assert checked


def test_external_pub_is_read_with_its_length_or_as_ts_mls_writes_it() -> None:
    info = recorded("public", "group_info_epoch0")
    key = HpkePublicKey(bytes(range(32)))
    for data in (encode(ExternalPub(key)), key):
        extension = Extension(ExtensionType.EXTERNAL_PUB, data)
        assert replace(info, extensions=(extension,)).external_pub() == key
    assert replace(info, extensions=()).external_pub() is None
    with pytest.raises(WireError):
        replace(info, extensions=(Extension(ExtensionType.EXTERNAL_PUB, key[:-1]),)).external_pub()
    assert recorded("public", "group_info_no_external_pub").external_pub() is None


def test_external_senders_are_a_vector_or_the_one_that_ts_mls_writes() -> None:
    sender = ExternalSender(SignaturePublicKey(bytes(32)), Credential(CredentialType.BASIC, b"mimi://a.example/u/bot"))
    for data, expected in (
        (EXTERNAL_SENDERS.encode(()), ()),
        (EXTERNAL_SENDERS.encode((sender, sender)), (sender, sender)),
        (encode(sender), (sender,)),
    ):
        assert external_senders((Extension(ExtensionType.EXTERNAL_SENDERS, data),)) == expected
    with pytest.raises(WireError):
        external_senders((Extension(ExtensionType.EXTERNAL_SENDERS, encode(sender)[:-1]),))


def test_a_broken_ratchet_tree_is_a_wire_error() -> None:
    info = recorded("public", "group_info_epoch0")
    with pytest.raises(WireError):
        replace(info, extensions=(Extension(ExtensionType.RATCHET_TREE, b"\x02\x01\x03"),)).ratchet_tree()


def test_required_capabilities_and_external_senders_are_parsed() -> None:
    required = RequiredCapabilities(
        (ExtensionType(0xF001),), (ProposalType.SELF_REMOVE,), (CredentialType.BASIC, CredentialType(0x0A0A))
    )
    sender = ExternalSender(SignaturePublicKey(b"key"), Credential(CredentialType.BASIC, b"mimi://a.example/u/bot"))
    extensions = (
        Extension(ExtensionType(0x0A0A), b"grease"),
        Extension(ExtensionType.REQUIRED_CAPABILITIES, encode(required)),
        Extension(ExtensionType.EXTERNAL_SENDERS, EXTERNAL_SENDERS.encode((sender, sender))),
    )
    assert required_capabilities(extensions) == required
    assert external_senders(extensions) == (sender, sender)
    assert required_capabilities(()) is None
    assert external_senders(()) == ()
    for wrong in (ExtensionType.REQUIRED_CAPABILITIES, ExtensionType.EXTERNAL_SENDERS):
        with pytest.raises(WireError):
            (required_capabilities if wrong is ExtensionType.REQUIRED_CAPABILITIES else external_senders)(
                (Extension(wrong, b"\x03\x00"),)
            )

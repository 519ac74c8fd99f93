"""The working group's test vectors and the recordings: structures, hashes and signatures."""

from __future__ import annotations

from typing import Any

import pytest

from mimids.mls.framing import MLS_MESSAGE, AuthenticatedContent, PublicMessage
from mimids.mls.group_info import GroupContext
from mimids.mls.leaf_node import RATCHET_TREE
from mimids.mls.proposals import (
    Add,
    Commit,
    ExternalInit,
    GroupContextExtensions,
    PreSharedKey,
    Proposal,
    ReInit,
    Remove,
    Update,
)
from mimids.mls.suites import SUITES, ref_hash, sign_with_label, verify_with_label
from mimids.mls.welcome import GroupSecrets
from mimids.wire import varint
from mimids.wire.codec import OPAQUE_V, Codec, WireError
from mimids.wire.declare import codec, decode, encode
from mimids.wire.ids import MLS10, GroupId
from tests import vectors
from tests.support.strategies import rebuilt

_BARE: dict[str, Codec[Any]] = {
    "ratchet_tree": RATCHET_TREE,
    "group_secrets": codec(GroupSecrets),
    "add_proposal": codec(Add),
    "update_proposal": codec(Update),
    "remove_proposal": codec(Remove),
    "pre_shared_key_proposal": codec(PreSharedKey),
    "re_init_proposal": codec(ReInit),
    "external_init_proposal": codec(ExternalInit),
    "group_context_extensions_proposal": codec(GroupContextExtensions),
    "commit": codec(Commit),
}

RFC9420 = range(1, 8)  # the suites of the vectors
RECORDINGS = ["conversations/public.jsonl", "conversations/private.jsonl", "conversations/policy.jsonl"]


def test_every_message_reads_and_writes_back() -> None:
    for case in vectors.load("mls/messages.json"):
        for name, text in case.items():
            by, octets = _BARE.get(name, MLS_MESSAGE), bytes.fromhex(text)
            assert by.encode(rebuilt(by.decode(octets))) == octets, name


def test_lengths() -> None:
    for case in vectors.load("mls/deserialization.json"):
        header = bytes.fromhex(case["vlbytes_header"])
        assert varint.read_mls(header, 0, len(header)) == (case["length"], len(header))
        assert varint.mls(case["length"]) == header
        with pytest.raises(WireError):
            OPAQUE_V.decode(header + bytes(case["length"] + 1))


@pytest.mark.parametrize("code", RFC9420)
def test_references_and_signatures(code: int) -> None:
    suite = SUITES[code]
    case = next(each for each in vectors.load("mls/crypto-basics.json") if each["cipher_suite"] == code)
    ref = case["ref_hash"]
    assert ref_hash(suite, ref["label"].encode(), bytes.fromhex(ref["value"])).hex() == ref["out"]

    sign = case["sign_with_label"]
    label, content, key = sign["label"].encode(), bytes.fromhex(sign["content"]), bytes.fromhex(sign["pub"])
    assert verify_with_label(suite, key, label, content, bytes.fromhex(sign["signature"]))
    own = sign_with_label(suite, bytes.fromhex(sign["priv"]), label, content)
    assert verify_with_label(suite, key, label, content, own)
    assert not verify_with_label(suite, key, label, content + b"\0", own)
    assert not verify_with_label(suite, key, label + b" ", content, own)


@pytest.mark.parametrize("code", RFC9420)
def test_public_messages_are_signed_over_the_group_context(code: int) -> None:
    suite = SUITES[code]
    case = next(each for each in vectors.load("mls/message-protection.json") if each["cipher_suite"] == code)
    context = GroupContext(
        MLS10,
        suite.code,
        GroupId(bytes.fromhex(case["group_id"])),
        case["epoch"],
        bytes.fromhex(case["tree_hash"]),
        bytes.fromhex(case["confirmed_transcript_hash"]),
        (),
    ).encoded
    key = bytes.fromhex(case["signature_pub"])
    for name, kind in (("proposal", codec(Proposal)), ("commit", codec(Commit))):
        message = MLS_MESSAGE.decode(bytes.fromhex(case[f"{name}_pub"]))
        assert isinstance(message.message, PublicMessage)
        content = message.message.authenticated_content()
        assert encode(content.content.content) == bytes.fromhex(case[name])
        assert content.content.content == kind.decode(bytes.fromhex(case[name]))
        assert content.verifies(suite, key, context)
        assert not content.verifies(suite, key, context[:-1] + b"\1")


def test_transcript_hashes() -> None:
    for case in vectors.load("mls/transcript-hashes.json"):
        suite = SUITES[case["cipher_suite"]]
        content = decode(AuthenticatedContent, bytes.fromhex(case["authenticated_content"]))
        before = bytes.fromhex(case["interim_transcript_hash_before"])
        confirmed = suite.hash(before + content.confirmed_transcript_hash_input())
        assert confirmed.hex() == case["confirmed_transcript_hash_after"]
        interim = suite.hash(confirmed + content.interim_transcript_hash_input())
        assert interim.hex() == case["interim_transcript_hash_after"]
        assert content.encoded.hex() == case["authenticated_content"]


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_recorded_message_reads_and_writes_back(name: str) -> None:
    for line in vectors.load_lines(name):
        if "bytes" not in line:
            continue
        octets = bytes.fromhex(line["bytes"])
        by: Codec[Any] = RATCHET_TREE if line["kind"] == "ratchet_tree" else MLS_MESSAGE
        try:
            value = by.decode(octets)
        except WireError:
            assert line["kind"] == "tampered", line["name"]
            assert line["expect"] in ("reject", "policy"), line["name"]
            continue
        assert by.encode(rebuilt(value)) == octets, line["name"]


@pytest.mark.parametrize("name", RECORDINGS)
def test_headers_match_the_recording(name: str) -> None:
    for line in vectors.load_lines(name):
        if line["kind"] not in ("commit", "proposal", "application", "group_info"):
            continue
        message = MLS_MESSAGE.decode(bytes.fromhex(line["bytes"]))
        assert message.epoch == line["epoch"]
        assert f"mls_{message.wire_format.name.lower()}" == line["wire_format"]
        content_type = message.content_type
        assert (None if content_type is None else content_type.name.lower()) == line.get("content_type")
        if "proposal_ref" in line and isinstance(message.message, PublicMessage):
            assert message.message.authenticated_content().proposal_ref(SUITES[1]).hex() == line["proposal_ref"]


def test_a_large_commit_has_its_ciphertexts_counted() -> None:
    lines = vectors.load_lines("large/group-1000.jsonl")
    for line in lines[1:-1]:
        octets = bytes.fromhex(line["bytes"])
        message = MLS_MESSAGE.decode(octets)
        assert message.encoded == octets
        assert MLS_MESSAGE.encode(rebuilt(message)) == octets
        assert isinstance(message.message, PublicMessage)
        commit = message.message.content.content
        assert isinstance(commit, Commit)
        path = commit.path
        assert (path is not None) == line["has_path"]
        for node in () if path is None else path.nodes:
            secrets = node.encrypted_path_secret
            assert len(secrets.unpack()) == secrets.count > 0

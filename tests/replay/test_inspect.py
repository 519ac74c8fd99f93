"""MLS objects as text: the required lines, and that every object that parses can be printed."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.mls.code_points import NodeType
from mimids.mls.framing import MLS_MESSAGE
from mimids.mls.leaf_node import RATCHET_TREE, Node
from mimids.replay.inspect import inspect
from mimids.wire.codec import WireError
from tests import vectors
from tests.support.mls_makers import Signer, key_package, leaf_node
from tests.support.strategies import values


def test_a_bare_key_package_is_distinguished_from_a_message() -> None:
    package = key_package(Signer.of(2))
    lines = inspect(package.encoded)
    assert lines[0] == f"KeyPackage, {len(package.encoded)} octets"
    assert "  cipher_suite: 2 (MLS_128_DHKEMP256_AES128GCM_SHA256_P256)" in lines
    assert "      = user: mimi://b.example/u/bob" in lines
    assert f"  = reference: {package.ref(Signer.of(2).suite).hex()}" in lines
    assert lines[-1] == "  = check without lifetime: valid"


def test_a_file_may_hold_hex_or_base64() -> None:
    octets = key_package(Signer.of(1)).encoded
    lines = inspect(octets)
    assert inspect(octets.hex().encode() + b"\n") == lines
    assert inspect(base64.b64encode(octets) + b"\n") == lines
    assert inspect(base64.urlsafe_b64encode(octets).rstrip(b"=")) == lines
    assert inspect(base64.encodebytes(octets)) == lines


def test_the_error_is_that_of_the_kind_that_parsed_furthest() -> None:
    octets = b"\0\1\0\5" + key_package(Signer.of(1)).encoded
    assert inspect(octets)[0].startswith("MLSMessage")
    with pytest.raises(WireError, match=r"^MLSMessage\.message\.signature: truncated"):
        inspect(octets[:-1])
    with pytest.raises(WireError):
        inspect(b"not an MLS object at all")


@pytest.mark.parametrize("name", ["public", "private", "policy"])
def test_every_recorded_object_is_printed_with_its_kind(name: str) -> None:
    for line in vectors.load_lines(f"conversations/{name}.jsonl"):
        if "bytes" not in line or line["kind"] == "tampered":
            continue
        lines = inspect(bytes.fromhex(line["bytes"]))
        kind = "ratchet tree" if line["kind"] == "ratchet_tree" else "MLSMessage"
        assert lines[0] == f"{kind}, {len(line['bytes']) // 2} octets"
        if line["kind"] in ("commit", "proposal", "application", "group_info"):
            assert any(each.strip() == f"epoch: {line['epoch']}" for each in lines)


def test_policy_and_trees_inside_extensions_are_parsed() -> None:
    lines = vectors.load_lines("conversations/policy.jsonl")
    text = "\n".join(inspect(bytes.fromhex(next(each["bytes"] for each in lines if each["kind"] == "group_info"))))
    assert 'role_name: "banned"' in text
    assert "leaf 0:" in text
    assert "= user: mimi://a.example/u/alice" in text


def test_blank_nodes_are_shown() -> None:
    leaf = leaf_node(Signer.of(1))
    lines = inspect(RATCHET_TREE.encode((None, None, Node(NodeType.LEAF, leaf))))
    assert lines[1:4] == ("  leaf 0: blank", "  parent at 1: blank", "  leaf 1:")


@given(data=st.data())
def test_every_object_that_parses_is_printed(data: st.DataObject) -> None:
    kinds: list[Any] = [MLS_MESSAGE, RATCHET_TREE]
    by = data.draw(st.sampled_from(kinds))
    lines = inspect(by.encode(data.draw(values(by))))
    assert all(line.isprintable() for line in lines)


@given(st.binary(max_size=60))
def test_any_octets_give_lines_or_a_wire_error(octets: bytes) -> None:
    try:
        inspect(octets)
    except WireError:
        return

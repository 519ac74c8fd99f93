"""Every declared structure of `mimids.mls`, by its declaration."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mimids.mls
from mimids.mls.leaf_node import EXTENSIONS, RATCHET_TREE, HpkePublicKey
from mimids.mls.proposals import Ciphertexts, HpkeCiphertext, UpdatePathNode
from mimids.wire.codec import Codec
from mimids.wire.declare import codec
from tests.strategies import check_no_other_length, check_round_trip, check_total, values


def _declared() -> dict[str, Codec[Any]]:
    found: dict[str, Codec[Any]] = {"RATCHET_TREE": RATCHET_TREE, "EXTENSIONS": EXTENSIONS}
    for module in pkgutil.iter_modules(mimids.mls.__path__, "mimids.mls."):
        for name, thing in vars(importlib.import_module(module.name)).items():
            if isinstance(thing, type) and "__wire_codec__" in vars(thing) and thing.__module__ == module.name:
                found[name] = codec(thing)
    return found


DECLARED = _declared()
every_struct = pytest.mark.parametrize("by", DECLARED.values(), ids=DECLARED.keys())
a_few = settings(max_examples=max(20, (settings.default or settings()).max_examples // 5))


def test_the_list_is_not_empty() -> None:
    assert len(DECLARED) > 40


@every_struct
@a_few
@given(data=st.data())
def test_a_value_has_one_encoding_and_no_other_length_is_read(by: Codec[Any], data: st.DataObject) -> None:
    encoded = check_round_trip(by, data.draw(values(by)))
    check_no_other_length(by, encoded)


@every_struct
@a_few
@given(octets=st.binary(max_size=80))
def test_random_octets_are_a_value_or_a_wire_error(by: Codec[Any], octets: bytes) -> None:
    check_total(by, octets)


@every_struct
@a_few
@given(data=st.data())
def test_a_damaged_encoding_is_a_value_or_a_wire_error(by: Codec[Any], data: st.DataObject) -> None:
    encoded = bytearray(by.encode(data.draw(values(by))))
    if encoded:
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] ^= data.draw(st.integers(1, 255))
        check_total(by, bytes(encoded))


_SIZES = st.tuples(st.integers(0, 140), st.integers(0, 140))


@given(st.lists(_SIZES, max_size=6) | st.tuples(_SIZES, st.integers(1, 8)).map(lambda it: [it[0]] * it[1]))
def test_ciphertexts_are_counted_alike_whether_their_shapes_are_equal_or_not(sizes: list[tuple[int, int]]) -> None:
    packed = Ciphertexts.of(*(HpkeCiphertext(bytes(kem), bytes(sealed)) for kem, sealed in sizes))
    node = codec(UpdatePathNode).decode(codec(UpdatePathNode).encode(UpdatePathNode(HpkePublicKey(b"key"), packed)))
    assert node.encrypted_path_secret.count == len(sizes)
    assert node.encrypted_path_secret.unpack() == packed.unpack()

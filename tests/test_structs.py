"""Tests of every declared structure and every named codec, found by its declaration."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mimids.mls
import mimids.ohttp
import mimids.wire
from mimids.ohttp.config import KEY_CONFIG
from mimids.wire.codec import Codec
from tests.support.strategies import (
    a_few,
    check_no_other_length,
    check_round_trip,
    check_total,
    declared,
    has_inferred_end,
    values,
)


def _everything() -> dict[Codec[Any], str]:
    found: dict[Codec[Any], str] = {}
    for package in (mimids.wire, mimids.mls, mimids.ohttp):
        for name, by in declared(package):
            found.setdefault(by, name)  # the first of its names, since many are imported
    del found[KEY_CONFIG]  # it has a notation of its own, which tests/ohttp/test_config.py tests
    return found


EVERYTHING = _everything()
every_codec = pytest.mark.parametrize("by", EVERYTHING.keys(), ids=EVERYTHING.values())


def test_structures_are_found() -> None:
    assert len(EVERYTHING) > 120
    assert {"SendRequest", "LeafNode", "StoredKey", "PROVIDER_ID", "EXTENSIONS"} <= set(EVERYTHING.values())


@every_codec
@a_few
@given(data=st.data())
def test_a_value_has_one_encoding_and_no_other_length_is_accepted(by: Codec[Any], data: st.DataObject) -> None:
    value = data.draw(values(by))
    if has_inferred_end(value):  # in several ways, or in none
        check_total(by, by.encode(value))
    else:
        check_no_other_length(by, check_round_trip(by, value))


@every_codec
@a_few
@given(octets=st.binary(max_size=80))
def test_random_octets_are_a_value_or_a_wire_error(by: Codec[Any], octets: bytes) -> None:
    check_total(by, octets)


@every_codec
@a_few
@given(data=st.data())
def test_a_damaged_encoding_is_a_value_or_a_wire_error(by: Codec[Any], data: st.DataObject) -> None:
    encoded = bytearray(by.encode(data.draw(values(by))))
    if encoded:
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] ^= data.draw(st.integers(1, 255))
        check_total(by, bytes(encoded))

"""The codec engine, by the rules of RFC 9420 section 2.1."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NewType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.wire.codec import (
    NOTHING,
    OPAQUE_V,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Codec,
    Reader,
    WireError,
    fixed,
    opaque,
    optional,
    vector,
)
from mimids.wire.varint import MLS_MAX
from tests.support.strategies import a_few, check_no_other_length, check_round_trip, check_total, values


class Light(IntEnum):
    RED = 1
    GREEN = 2


LIGHT = UINT8.of(Light)
TEXT = opaque(80).of(lambda octets: octets.decode("ascii"), str.encode)
EVERY: dict[str, Codec[Any]] = {
    "fixed": fixed(5),
    "opaque": opaque(64),
    "enum": LIGHT,
    "mapped": opaque(80).of(bytes.hex, bytes.fromhex),
    "uint8s": vector(UINT8),
    "uint32s": vector(UINT32),
    "two uint16s": vector(UINT16, at_least=2),
    "few uint64s": vector(UINT64, most=2),
    "opaques": vector(OPAQUE_V),
    "vectors": vector(vector(vector(UINT16))),
    "optional": optional(UINT16),
    "optionals": vector(optional(opaque(10))),
}
every = pytest.mark.parametrize("by", EVERY.values(), ids=EVERY.keys())


def refusal(by: Codec[Any], octets: str) -> str:
    with pytest.raises(WireError) as caught:
        by.decode(bytes.fromhex(octets))
    return str(caught.value)


@every
@a_few
@given(data=st.data())
def test_a_value_has_one_encoding_and_no_other_length_is_accepted(by: Codec[Any], data: st.DataObject) -> None:
    check_no_other_length(by, check_round_trip(by, data.draw(values(by))))


@every
@a_few
@given(octets=st.binary(max_size=12) | st.lists(st.integers(0, 3), max_size=12).map(bytes))
def test_any_octets_are_a_value_or_a_wire_error(by: Codec[Any], octets: bytes) -> None:
    check_total(by, octets)


@pytest.mark.parametrize(
    ("by", "value", "octets"),
    [
        (UINT8, 0xA1, "a1"),
        (UINT16, 0xA1, "00a1"),
        (UINT32, 0x01020304, "01020304"),
        (UINT64, 0x0102030405060708, "0102030405060708"),
        (fixed(3), b"abc", "616263"),
        (fixed(0), b"", ""),
        (OPAQUE_V, b"", "00"),
        (OPAQUE_V, b"abc", "03 616263"),
        (OPAQUE_V, bytes(63), "3f" + "00" * 63),
        (OPAQUE_V, bytes(64), "4040" + "00" * 64),
        (OPAQUE_V, bytes(16384), "80004000" + "00" * 16384),
        (vector(UINT8), (1, 2), "02 01 02"),
        (vector(UINT16), (1, 2), "04 0001 0002"),
        (vector(UINT32), (1,), "04 00000001"),
        (vector(UINT64), (1,), "08 0000000000000001"),
        (vector(UINT16), tuple(range(40)), "4050" + "".join(f"{item:04x}" for item in range(40))),
        (vector(UINT16, most=2), (1, 2), "04 0001 0002"),
        (vector(OPAQUE_V), (b"a", b"", b"bc"), "06 01 61 00 02 6263"),
        (vector(vector(OPAQUE_V)), ((), (b"a",)), "04 00 02 01 61"),
        (optional(UINT16), None, "00"),
        (optional(UINT16), 7, "01 0007"),
        (optional(OPAQUE_V), b"", "01 00"),
        (NOTHING, None, ""),
        (LIGHT, Light.GREEN, "02"),
        (TEXT, "abc", "03 616263"),
    ],
)
def test_encodings_are_those_of_the_rfc(by: Codec[Any], value: object, octets: str) -> None:
    assert by.encode(value) == bytes.fromhex(octets)
    assert by.decode(bytes.fromhex(octets)) == value


@pytest.mark.parametrize(
    ("by", "octets", "error"),
    [
        (UINT8, "", "truncated"),
        (UINT32, "010203", "truncated"),
        (UINT32, "01020304 05", "trailing bytes"),
        (fixed(3), "6162", "truncated"),
        (fixed(3), "61626364", "trailing bytes"),
        (NOTHING, "00", "trailing bytes"),
        (OPAQUE_V, "", "truncated"),
        (OPAQUE_V, "03 6162", "truncated"),
        (OPAQUE_V, "03 616263 64", "trailing bytes"),
        (OPAQUE_V, "40", "truncated"),
        (OPAQUE_V, "4003 616263", "length is not in its shortest form"),
        (OPAQUE_V, "80000003 616263", "length is not in its shortest form"),
        (OPAQUE_V, "c000000000000003 616263", "length prefix is reserved"),
        (OPAQUE_V, "bfffffff 616263", "truncated"),
        (opaque(2), "03 616263", "longer than 2 octets"),
        (opaque(2), "03 6162", "truncated"),
        (opaque(64), "4041" + "61" * 65, "longer than 64 octets"),
        (optional(UINT8), "", "truncated"),
        (optional(UINT8), "01", "truncated"),
        (optional(UINT8), "02 07", "presence octet is neither 0 nor 1"),
        (optional(UINT8), "ff 07", "presence octet is neither 0 nor 1"),
        (optional(UINT8), "00 07", "trailing bytes"),
        (vector(UINT8), "02 01", "truncated"),
        (vector(UINT8), "02 01 02 03", "trailing bytes"),
        (vector(UINT8), "4001 01", "length is not in its shortest form"),
        (vector(UINT16), "05 0001 0002 00", "2: truncated"),
        (vector(UINT64), "07 00000000000001", "0: truncated"),
        (vector(UINT16, most=2), "05 0001 0002 00", "2: more than 2 items"),
        (vector(UINT16, most=3), "05 0001 0002 00", "2: truncated"),
        (vector(UINT16, most=2), "06 0001 0002 0003", "2: more than 2 items"),
        (vector(UINT16, at_least=1), "00", "empty"),
        (vector(OPAQUE_V, at_least=1), "00", "empty"),
        (vector(UINT16, limit=4), "06 0001 0002 0003", "longer than 4 octets"),
        (vector(OPAQUE_V, limit=1), "02 00 00", "longer than 1 octets"),
        (vector(OPAQUE_V, most=1), "02 00 00", "1: more than 1 items"),
        # The end of a block limits its content, even if more octets follow it.
        (vector(OPAQUE_V), "03 00 02 61 61", "1: truncated"),
        (vector(OPAQUE_V), "01 40 40" + "00" * 64, "0: truncated"),
        (vector(UINT32, most=9), "03 000000 00", "0: truncated"),
        (vector(optional(UINT8)), "01 01 01", "0: truncated"),
        (vector(vector(UINT16)), "06 00 02 0001 01 00", "2.0: truncated"),
        (vector(vector(opaque(1))), "05 00 03 02 6161", "1.0: longer than 1 octets"),
        (LIGHT, "00", "value not allowed"),
        (LIGHT, "03", "value not allowed"),
        (vector(LIGHT), "03 01 02 03", "2: value not allowed"),
        (TEXT, "04 61ff6161", "value not allowed"),
    ],
)
def test_a_wrong_encoding_is_refused_with_its_place(by: Codec[Any], octets: str, error: str) -> None:
    assert refusal(by, octets) == error


@pytest.mark.parametrize("by", [opaque(100), vector(UINT8, limit=100), vector(OPAQUE_V, limit=100)])
def test_a_length_is_compared_with_the_rest_and_the_limit_before_slicing(by: Codec[Any]) -> None:
    class Watched(bytes):
        def __getitem__(self, at: Any) -> Any:
            assert not isinstance(at, slice) or at.stop - at.start <= 4, "sliced what was not looked at"
            return super().__getitem__(at)

    for octets, error in (("bfffffff 00", "truncated"), ("4065" + "00" * 101, "longer than 100 octets")):
        with pytest.raises(WireError, match=f"^{error}$"):
            by.read(Reader(Watched(bytes.fromhex(octets))))


def test_a_reader_moves_past_what_it_read_and_stops_at_its_end() -> None:
    reader = Reader(b"\1\0\2\1a\3")
    assert (UINT8.read(reader), UINT16.read(reader), OPAQUE_V.read(reader), reader.pos) == (1, 2, b"a", 5)
    with pytest.raises(WireError, match="trailing bytes"):
        reader.finish()
    reader.end = 5
    reader.finish()
    for by in (UINT8, fixed(1), OPAQUE_V, vector(UINT8), optional(UINT8)):
        with pytest.raises(WireError, match="truncated"):
            by.read(reader)
    assert (fixed(0).read(reader), reader.pos) == (b"", 5)


def test_the_outer_end_is_restored_after_a_block() -> None:
    reader = Reader(bytes.fromhex("03 01 61 00 0007"))
    assert (vector(OPAQUE_V).read(reader), UINT16.read(reader)) == ((b"a", b""), 7)


def test_a_newtype_keeps_the_codec_and_other_types_wrap_it() -> None:
    assert UINT32.of(NewType("Count", int)) is UINT32
    assert vector(LIGHT).decode(b"\2\1\2") == (Light.RED, Light.GREEN)
    assert isinstance(LIGHT.decode(b"\1"), Light)
    assert TEXT.of(str.upper, str.lower).decode(b"\1a") == "A"
    assert TEXT.of(str.upper, str.lower).encode("A") == b"\1a"


def test_a_wire_error_of_a_conversion_keeps_its_reason_and_place() -> None:
    def make(value: int) -> int:
        raise WireError("reserved", ("flags",))

    assert refusal(vector(UINT8.of(make)), "01 07") == "0.flags: reserved"


def test_an_error_names_the_place_outermost_first_and_is_a_value_error() -> None:
    error = WireError("truncated")
    assert (str(error), error.path) == ("truncated", ())
    inside = error.within("group_info").within("commit_data").within("SendRequest")
    assert str(inside) == "SendRequest.commit_data.group_info: truncated"
    assert (inside.reason, inside.path) == ("truncated", ("SendRequest", "commit_data", "group_info"))
    assert isinstance(inside, ValueError)


@every
@a_few
@given(before=st.binary(max_size=3), after=st.binary(max_size=3))
def test_no_error_repeats_received_bytes(by: Codec[Any], before: bytes, after: bytes) -> None:
    try:
        by.decode(before + b"hunter2" + after)
    except WireError as error:
        assert "hunter2" not in f"{error} {error!r} {error.path}"  # noqa: PT017  # only if it is refused


@pytest.mark.parametrize(
    ("by", "value", "error"),
    [
        (UINT8, 256, OverflowError),
        (UINT32, 2**32, OverflowError),
        (UINT64, -1, OverflowError),
        (vector(UINT8), (1, 256), OverflowError),
        (vector(UINT32), (2**32,), OverflowError),
        (vector(UINT16, most=3), (2**16,), OverflowError),
        (fixed(3), b"ab", ValueError),
        (fixed(3), b"abcd", ValueError),
        (NOTHING, b"", ValueError),
        (optional(fixed(3)), b"", ValueError),
    ],
)
def test_a_value_without_an_encoding_is_refused(by: Codec[Any], value: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        by.encode(value)


def test_the_longest_opaque_is_that_of_the_largest_length() -> None:
    class Endless(bytes):
        def __len__(self) -> int:
            return MLS_MAX + 1

    with pytest.raises(ValueError, match="at most"):
        OPAQUE_V.encode(Endless())

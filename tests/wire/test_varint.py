"""Variable-length integers, against the examples of RFC 9420 section 2.1.2 and RFC 9000 appendix A.1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.wire import varint
from mimids.wire.varint import MLS_MAX, QUIC_MAX, VarintError

Read = Callable[[bytes, int, int], tuple[int, int]]

READERS = pytest.mark.parametrize("read", [varint.read_mls, varint.read_quic])
# Values around every change of size, so that integers of every length are frequent.
MLS = st.integers(0, MLS_MAX) | st.sampled_from([0, 1, 0x3F, 0x40, 0x3FFF, 0x4000, MLS_MAX])
QUIC = st.integers(0, QUIC_MAX) | MLS | st.sampled_from([MLS_MAX + 1, QUIC_MAX])


@pytest.mark.parametrize(
    ("octets", "value"),
    [
        ("25", 37),
        ("7bbd", 15293),
        ("9d7f3e7d", 494878333),
        ("00", 0),
        ("3f", 63),
        ("4040", 64),
        ("7fff", 16383),
        ("80004000", 16384),
        ("bfffffff", 2**30 - 1),
    ],
)
def test_both_kinds_write_what_the_rfcs_say_and_read_it_again(octets: str, value: int) -> None:
    encoded = bytes.fromhex(octets)
    assert varint.mls(value) == varint.quic(value) == encoded
    assert (
        varint.read_mls(encoded, 0, len(encoded)) == varint.read_quic(encoded, 0, len(encoded)) == (value, len(encoded))
    )


@pytest.mark.parametrize(
    ("octets", "value"),
    [
        ("c2197c5eff14e88c", 151288809941952652),
        ("c000000040000000", 2**30),
        ("ffffffffffffffff", 2**62 - 1),
    ],
)
def test_only_quic_has_integers_of_eight_octets(octets: str, value: int) -> None:
    encoded = bytes.fromhex(octets)
    assert varint.quic(value) == encoded
    assert varint.read_quic(encoded, 0, 8) == (value, 8)
    with pytest.raises(VarintError, match="reserved"):
        varint.read_mls(encoded, 0, 8)
    with pytest.raises(ValueError, match=r"2\*\*30 - 1"):
        varint.mls(value)


@pytest.mark.parametrize("value", [2**62, 2**64])
def test_neither_kind_writes_more_than_62_bits(value: int) -> None:
    for write in (varint.mls, varint.quic):
        with pytest.raises(ValueError, match="at most"):
            write(value)


@pytest.mark.parametrize(
    ("octets", "value"),
    [("4000", 0), ("4025", 37), ("403f", 63), ("80000000", 0), ("8000003f", 63), ("80000040", 64), ("80003fff", 16383)],
)
def test_a_longer_form_than_needed_is_refused_by_mls_and_read_by_quic(octets: str, value: int) -> None:
    encoded = bytes.fromhex(octets)
    with pytest.raises(VarintError, match="not in its shortest form"):
        varint.read_mls(encoded, 0, len(encoded))
    assert varint.read_quic(encoded, 0, len(encoded)) == (value, len(encoded))


@pytest.mark.parametrize("first", ["c0", "d5", "ff"])
def test_the_reserved_prefix_is_refused_by_mls_whatever_follows(first: str) -> None:
    for rest in (b"", bytes(7), b"\xff" * 7):
        octets = bytes.fromhex(first) + rest
        with pytest.raises(VarintError, match="reserved"):
            varint.read_mls(octets, 0, len(octets))


@READERS
@pytest.mark.parametrize("octets", ["25", "7bbd", "9d7f3e7d"])
def test_an_integer_beyond_the_end_of_its_block_is_truncated(read: Read, octets: str) -> None:
    encoded = b"before" + bytes.fromhex(octets)
    for end in range(6, len(encoded)):
        with pytest.raises(VarintError, match="truncated"):
            read(encoded, 6, end)
        with pytest.raises(VarintError, match="truncated"):
            read(encoded[:end], 6, end)
    assert read(encoded, 6, len(encoded))[1] == len(encoded)


@given(value=MLS, before=st.binary(max_size=3), after=st.binary(max_size=3))
def test_an_mls_integer_is_read_back_at_any_position(value: int, before: bytes, after: bytes) -> None:
    data = before + varint.mls(value) + after
    assert varint.read_mls(data, len(before), len(data)) == (value, len(data) - len(after))


@given(value=QUIC, size=st.sampled_from([1, 2, 4, 8]), before=st.binary(max_size=3), after=st.binary(max_size=3))
def test_a_quic_integer_is_read_back_from_any_of_its_forms(value: int, size: int, before: bytes, after: bytes) -> None:
    size = max(size, len(varint.quic(value)))
    form = (value | (size.bit_length() - 1) << (8 * size - 2)).to_bytes(size, "big")
    data = before + form + after
    assert varint.read_quic(data, len(before), len(data)) == (value, len(before) + size)


@given(st.binary(max_size=9))
def test_any_octets_begin_with_the_only_form_of_an_mls_integer_or_are_refused(octets: bytes) -> None:
    try:
        value, end = varint.read_mls(octets, 0, len(octets))
    except VarintError:
        return
    assert varint.mls(value) == octets[:end]


@given(st.binary(max_size=9))
def test_any_octets_begin_with_a_quic_integer_unless_they_are_too_few(octets: bytes) -> None:
    needed = 1 << (octets[0] >> 6) if octets else 1
    try:
        value, end = varint.read_quic(octets, 0, len(octets))
    except VarintError:
        assert len(octets) < needed  # refused only if it is truncated
        return
    assert end == needed <= len(octets)
    assert len(varint.quic(value)) <= needed

"""Declared structs: what `@struct` makes of a class."""

from __future__ import annotations

import copy
from enum import IntEnum
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.wire.codec import NOTHING, OPAQUE_V, UINT8, UINT16, UINT32, Codec, Reader, WireError, optional, vector
from mimids.wire.declare import Kept, codec, decode, encode, select, struct, wire, written_by


@struct
class Point:
    """Two coordinates, the second one first."""

    y: int = wire(UINT16)
    x: int = wire(UINT16)


@struct
class Signed(Kept):
    """A point and its signature."""

    point: Point = wire(codec(Point))
    signature: bytes = wire(OPAQUE_V)


class Shape(IntEnum):
    DOT = 0
    LINE = 1
    NOTE = 2


@struct
class Drawn:
    """A shape that decides the type of the next field."""

    shape: Shape = wire(UINT8.of(Shape))
    body: Point | tuple[Point, ...] | None = select(
        "shape", {Shape.DOT: codec(Point), Shape.LINE: vector(codec(Point)), Shape.NOTE: NOTHING}
    )


class Size(int):
    """A number with two parts that a `select` may name."""

    @property
    def is_odd(self) -> bool:
        return self % 2 == 1

    @property
    def half(self) -> int:
        return self // 2


@struct
class Labelled:
    """A size, a body whose layout depends on whether the size is odd, and one whose layout depends on half of it."""

    size: Size = wire(UINT8.of(Size))
    odd: int | bytes = select("size.is_odd", {True: UINT32}, otherwise=OPAQUE_V)
    last: int | None = select("size.half", {0: NOTHING, 1: UINT8})


@struct
class Sheet:
    """Shapes, and a signed one."""

    shapes: tuple[Drawn, ...] = wire(vector(codec(Drawn)))
    signed: Signed | None = wire(optional(codec(Signed)))


@struct
class Empty:
    """A struct without fields."""


POINT = "0001 0002"


def refusal(cls: type[Any], octets: str) -> str:
    with pytest.raises(WireError) as caught:
        decode(cls, bytes.fromhex(octets))
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "octets"),
    [
        (Point(1, 2), POINT),
        (Point(y=1, x=2), POINT),
        (Signed(Point(1, 2), b"ab"), f"{POINT} 02 6162"),
        (Drawn(Shape.DOT, Point(1, 2)), f"00 {POINT}"),
        (Drawn(Shape.LINE, (Point(1, 2), Point(1, 2))), f"01 08 {POINT} {POINT}"),
        (Drawn(Shape.NOTE, None), "02"),
        (Labelled(Size(1), 7, None), "01 00000007"),
        (Labelled(Size(2), b"ab", 8), "02 02 6162 08"),
        (Labelled(Size(3), 7, 8), "03 00000007 08"),
        (Sheet((), None), "00 00"),
        (
            Sheet((Drawn(Shape.NOTE, None), Drawn(Shape.DOT, Point(1, 2))), Signed(Point(1, 2), b"")),
            f"06 02 00 {POINT} 01 {POINT} 00",
        ),
        (Empty(), ""),
    ],
)
def test_fields_are_written_in_the_order_they_are_declared_in(value: Any, octets: str) -> None:
    assert encode(value) == codec(type(value)).encode(value) == bytes.fromhex(octets)
    assert decode(type(value), bytes.fromhex(octets)) == value


@pytest.mark.parametrize(
    ("cls", "octets", "error"),
    [
        (Empty, "00", "Empty: trailing bytes"),
        (Point, "", "Point.y: truncated"),
        (Point, "0001 00", "Point.x: truncated"),
        (Point, f"{POINT} 00", "Point: trailing bytes"),
        (Signed, "0001 00", "Signed.point.x: truncated"),
        (Signed, f"{POINT} 02 61", "Signed.signature: truncated"),
        (Drawn, "03", "Drawn.shape: value not allowed"),
        (Drawn, "00 00", "Drawn.body.y: truncated"),
        (Drawn, f"01 06 {POINT} 0000 0000", "Drawn.body.1.x: truncated"),
        (Labelled, "01 000000", "Labelled.odd: truncated"),
        (Labelled, "03 00000007", "Labelled.last: truncated"),
        (Labelled, "04 03 616263", "Labelled.last: no such case"),
        (Labelled, "05 00000007", "Labelled.last: no such case"),
        (Sheet, f"06 02 00 {POINT} 02", "Sheet.signed: presence octet is neither 0 nor 1"),
        (Sheet, f"06 02 00 {POINT} 01 0001 00", "Sheet.signed.point.x: truncated"),
        (Sheet, f"05 02 00 {POINT} 00", "Sheet.shapes.1.body.x: truncated"),
        (Sheet, "02 02 07 00", "Sheet.shapes.1.shape: value not allowed"),
    ],
)
def test_an_error_names_the_place_from_the_class_down(cls: type[Any], octets: str, error: str) -> None:
    assert refusal(cls, octets) == error
    with pytest.raises(WireError) as caught:
        codec(cls).decode(bytes.fromhex(octets))
    assert str(caught.value.within(cls.__name__)) == error


def test_an_error_has_no_other_error_as_context() -> None:
    with pytest.raises(WireError) as caught:
        decode(Drawn, b"\xc8")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_value_is_a_frozen_record() -> None:
    point: Any = Point(1, 2)
    assert (point, hash(point), repr(point)) == (Point(1, 2), hash(Point(1, 2)), "Point(y=1, x=2)")
    assert point != Point(2, 1)
    made_and_read: list[Any] = [point, decode(Point, bytes.fromhex(POINT))]
    for read in made_and_read:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            read.x = 3
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            read.z = 3
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[call-arg]


def test_a_body_of_the_wrong_case_is_not_written() -> None:
    for value in (Drawn(Shape.NOTE, Point(1, 2)), Drawn(Shape.DOT, None), Labelled(Size(3), b"ab", 8)):
        with pytest.raises((ValueError, AttributeError)):
            encode(value)
    with pytest.raises(WireError, match="no such case"):
        encode(Labelled(Size(4), b"", None))


# --- structs that keep their octets ------------------------------------------------------------------------------


def test_a_kept_value_is_written_as_the_octets_it_was_read_from() -> None:
    octets = bytes.fromhex(f"{POINT} 02 6162")
    reader = Reader(b"before" + octets + b"after")
    reader.pos = 6
    assert codec(Signed).read(reader).encoded == octets
    assert reader.take(5) == b"after"
    sheet = decode(Sheet, b"\0\1" + octets)
    assert sheet.signed is not None
    assert sheet.signed.encoded == octets


class ReadOnly(Codec[int]):
    def read(self, reader: Reader) -> int:
        return UINT8.read(reader)

    def write(self, value: int, out: bytearray) -> None:
        raise AssertionError("what was received is not written anew")


@struct
class PassedOn(Kept):
    """A struct that cannot be encoded from its fields."""

    number: int = wire(ReadOnly())


def test_kept_octets_are_written_without_encoding_the_fields() -> None:
    read = decode(PassedOn, b"\7")
    assert (read.number, read.encoded, encode(read), vector(codec(PassedOn)).encode((read, read))) == (
        7,
        b"\7",
        b"\7",
        b"\2\7\7",
    )


def test_a_value_made_here_is_encoded_once_when_first_asked() -> None:
    made = Signed(Point(1, 2), b"ab")
    assert made.encoded == encode(made) == bytes.fromhex(f"{POINT} 02 6162")
    assert made.encoded is made.encoded


def test_a_changed_copy_does_not_keep_the_octets() -> None:
    read: Any = decode(Signed, bytes.fromhex(f"{POINT} 02 6162"))
    changed = attrs.evolve(read, signature=b"")
    assert changed.encoded == encode(changed) == bytes.fromhex(f"{POINT} 00")
    assert copy.copy(read).encoded == read.encoded


def test_kept_octets_do_not_count_for_equality_and_cannot_be_changed() -> None:
    read: Any = decode(Signed, bytes.fromhex(f"{POINT} 02 6162"))
    made = Signed(Point(1, 2), b"ab")
    assert (read, hash(read), repr(read)) == (made, hash(made), repr(made))
    for name in ("_encoded", "encoded"):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(read, name, b"")


@given(y=st.integers(0, 0xFFFF), signature=st.binary(max_size=80))
def test_kept_octets_are_the_encoding_of_the_fields(y: int, signature: bytes) -> None:
    made = Signed(Point(y, 2), signature)
    read = decode(Signed, encode(made))
    assert (read, read.encoded) == (made, encode(made))


# --- by hand ------------------------------------------------------------------------------------------------------


class Swapped(Codec["Pair"]):
    def read(self, reader: Reader) -> Pair:
        second = UINT8.read(reader)
        return Pair(UINT8.read(reader), second)

    def write(self, value: Pair, out: bytearray) -> None:
        out += bytes((value.second, value.first))


@attrs.frozen
class Pair:
    first: int
    second: int


written_by(Pair, Swapped())


@struct
class Pairs:
    """A struct whose layout a list of fields cannot express."""

    pairs: tuple[Pair, ...] = wire(vector(codec(Pair)))


def test_a_hand_written_codec_works_as_a_declared_one() -> None:
    assert encode(Pair(1, 2)) == b"\2\1"
    assert decode(Pairs, b"\4\2\1\4\3") == Pairs((Pair(1, 2), Pair(3, 4)))
    assert refusal(Pair, "02") == "Pair: truncated"
    assert refusal(Pairs, "03 02 01 04") == "Pairs.pairs.1: truncated"

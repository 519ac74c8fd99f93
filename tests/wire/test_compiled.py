"""Compiled structs against an interpreter that calls each field's codec in turn: the results must be the same."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from types import new_class
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.mls.code_points import EXTENSION_TYPE, WIRE_FORMAT
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
from mimids.wire.compiled import Select
from mimids.wire.declare import Kept, Struct, codec, select, struct, wire
from mimids.wire.ids import BEARER_TOKEN, MASKED_PARTITION_KEY, PARTITION_KEY, PROVIDER_ID
from tests.support.strategies import a_few, values


class Kind(IntEnum):
    NONE = 0
    NUMBER = 1
    OCTETS = 2
    MANY = 3

    @property
    def following(self) -> Kind:
        return Kind((self + 1) % 4)

    @property
    def number_if_any(self) -> Kind | None:
        return Kind.NUMBER if self else None


def low(value: int) -> int:
    if value > 199:
        raise ValueError(f"{value} is too high")
    return value


def flipped(value: int) -> int:
    return value ^ 0x0F


def open_ended(octets: bytes) -> bytes:
    if octets.endswith(b"\1"):
        raise WireError("at an end", ("inside",))
    return octets


@struct
class Inner:
    """A struct in a struct."""

    number: int = wire(UINT16)
    octets: bytes = wire(opaque(3))


@struct
class KeptInner(Kept):
    """A struct that keeps its octets."""

    octets: bytes = wire(OPAQUE_V)
    number: int = wire(UINT8)


CASES: dict[Any, Codec[Any]] = {
    Kind.NONE: NOTHING,
    Kind.NUMBER: UINT16,
    Kind.OCTETS: opaque(5),
    Kind.MANY: vector(codec(Inner)),
}
ONE: dict[str, Codec[Any]] = {
    "uint8": UINT8,
    "uint16": UINT16,
    "uint32": UINT32,
    "uint64": UINT64,
    "fixed": fixed(3),
    "fixed nothing": fixed(0),
    "opaque": OPAQUE_V,
    "opaque with a limit": opaque(2),
    "opaque with a limit of two octets": opaque(65),
    "nothing": NOTHING,
    "enum": UINT8.of(Kind),
    "open code point": EXTENSION_TYPE,
    "closed code point": WIRE_FORMAT,
    "mapped uint": UINT8.of(low),
    "mapped opaque": opaque(8).of(open_ended),
    "mapped twice": UINT8.of(flipped, flipped).of(lambda value: low(value) + 1, lambda value: value - 1),
    "mapped vector": vector(UINT8).of(list, tuple),
    "secret": PARTITION_KEY,
    "token": BEARER_TOKEN,
    "mask": MASKED_PARTITION_KEY,
    "provider": PROVIDER_ID,
    "uints": vector(UINT16, at_least=1),
    "vector": vector(opaque(3), limit=8, most=2),
    "optional": optional(UINT16),
    "struct": codec(Inner),
    "kept struct": codec(KeptInner),
    "vector of structs": vector(codec(KeptInner)),
    "optional struct": optional(codec(Inner)),
}


def declared(name: str, fields: dict[str, Any], *bases: type) -> Codec[Any]:
    """Return the codec of a struct with these fields."""
    body = {**fields, "__annotations__": dict.fromkeys(fields, Any), "__doc__": name}
    return codec(struct(new_class(name, bases, {}, lambda space: space.update(body))))


def selected(on: str = "kind") -> dict[str, Any]:
    return {"kind": wire(UINT8.of(Kind)), "between": wire(UINT8), "body": select(on, CASES)}


STRUCTS = {
    name: declared("One", {"before": wire(UINT8), "it": wire(by), "after": wire(UINT8)}) for name, by in ONE.items()
}
STRUCTS |= {
    "no field": declared("Empty", {}),
    "every field": declared("Every", {f"field_{at}": wire(by) for at, by in enumerate(list(ONE.values())[::3])}),
    "kept": declared("KeptOne", {"first": wire(OPAQUE_V), "second": wire(codec(KeptInner))}, Kept),
    "select": declared("Selected", selected()),
    "select of a number": declared(
        "Numbered", {"on": wire(UINT8), "body": select("on", dict.fromkeys(range(160), UINT16) | CASES)}
    ),
    "select by an attribute": declared("ByAttribute", selected("kind.following")),
    "select by an attribute of some": declared("BySome", selected("kind.number_if_any")),
    "select otherwise": declared("Other", {"on": wire(UINT8), "body": select("on", {0: UINT16}, otherwise=OPAQUE_V)}),
    "select otherwise by an attribute": declared(
        "OtherByAttribute",
        {"on": wire(UINT8.of(Kind)), "body": select("on.number_if_any", {Kind.NUMBER: UINT8}, otherwise=NOTHING)},
    ),
    "select by what was selected": declared(
        "Twice",
        {
            "kind": wire(UINT8.of(Kind)),
            "body": select("kind", {Kind.NUMBER: UINT8.of(Kind)}, otherwise=NOTHING),
            "more": select("body", {Kind.OCTETS: opaque(3), None: NOTHING}, otherwise=UINT16),
        },
    ),
}
each = pytest.mark.parametrize("by", STRUCTS.values(), ids=STRUCTS.keys())


def fields_of(by: Codec[Any]) -> list[tuple[str, Any]]:
    assert isinstance(by, Struct)
    return by.fields


def interpreted(by: Codec[Any], reader: Reader) -> tuple[Any, ...]:
    """Read a struct's fields one by one and return their values."""
    found: dict[str, Any] = {}
    for name, field in fields_of(by):
        try:
            chosen = field.choose(found[field.on]) if isinstance(field, Select) else field
            found[name] = chosen.read(reader)
        except WireError as error:
            raise error.within(name) from None
    return tuple(found.values())


def compiled(by: Codec[Any], reader: Reader) -> tuple[Any, ...]:
    start = reader.pos
    made = by.read(reader)
    if isinstance(made, Kept):
        assert made.encoded == reader.data[start : reader.pos]
    return tuple(getattr(made, name) for name, _ in fields_of(by))


def outcome(read: Callable[[Codec[Any], Reader], Any], by: Codec[Any], data: bytes, start: int, end: int) -> Any:
    """Return what was read and where it ended, or why and at which place it was refused."""
    reader = Reader(data)
    reader.pos, reader.end = start, end
    try:
        return read(by, reader), reader.pos, reader.end
    except WireError as error:
        return error.reason, error.path


def check_alike(by: Codec[Any], data: bytes, start: int, end: int) -> None:
    assert outcome(compiled, by, data, start, end) == outcome(interpreted, by, data, start, end)


def written(by: Codec[Any], value: Any) -> bytes:
    """Return the fields of a value, written one by one."""
    out = bytearray()
    for name, field in fields_of(by):
        chosen = field.choose(getattr(value, field.on)) if isinstance(field, Select) else field
        chosen.write(getattr(value, name), out)
    return bytes(out)


@each
@a_few
@given(data=st.data())
def test_a_value_is_read_and_written_as_its_fields_are(by: Codec[Any], data: st.DataObject) -> None:
    value = data.draw(values(by))
    before, after = data.draw(st.binary(max_size=2)), data.draw(st.binary(max_size=2))
    encoded = by.encode(value)
    assert encoded == written(by, value)
    whole = before + encoded + after
    assert outcome(compiled, by, whole, len(before), len(whole))[1] == len(before) + len(encoded)
    for end in range(len(before), len(whole) + 1):
        check_alike(by, whole, len(before), end)


@each
@a_few
@given(data=st.data())
def test_a_damaged_encoding_is_read_or_refused_as_its_fields_are(by: Codec[Any], data: st.DataObject) -> None:
    octets = bytearray(by.encode(data.draw(values(by))) + b"\0")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(octets) - 1))
        octets[at] = data.draw(st.integers(0, 4) | st.integers(0, 255))
    check_alike(by, bytes(octets), 0, len(octets))


@each
@a_few
@given(octets=st.binary(max_size=20) | st.lists(st.integers(0, 5), max_size=20).map(bytes), data=st.data())
def test_any_octets_are_read_or_refused_as_its_fields_are(by: Codec[Any], octets: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(octets)))
    check_alike(by, octets, start, data.draw(st.integers(start, len(octets))))


LENGTHS = ("3f", "40", "403f", "4040", "4041", "7fff", "80", "80003fff", "80004000", "bfffffff", "c0", "ff")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("limit", [0, 63, 64, 65, 16384, None])
def test_a_length_read_inline_is_read_as_by_the_codec(length: str, limit: int | None) -> None:
    by = declared("Long", {"it": wire(OPAQUE_V if limit is None else opaque(limit))})
    for size in (0, 62, 63, 64, 65, 16383, 16384):
        octets = bytes.fromhex(length) + bytes(size)
        check_alike(by, octets, 0, len(octets))


MISFITS: list[Any] = [None, b"", b"ab", "", -1, 256, 2**16, 2**32, 2**64, (), (1,), (2**16,), Kind.MANY]


@each
@a_few
@given(data=st.data())
def test_a_value_of_another_type_or_size_fails_as_its_fields_would(by: Codec[Any], data: st.DataObject) -> None:
    value = data.draw(values(by))
    names = [name for name, _ in fields_of(by)]
    if not names:
        return
    fields = {name: getattr(value, name) for name in names}
    made = type(value)(**fields | {data.draw(st.sampled_from(names)): data.draw(st.sampled_from(MISFITS))})

    def result(write: Callable[[], bytes]) -> bytes | tuple[type[Exception], str]:
        try:
            return write()
        except (WireError, ValueError, OverflowError, TypeError, AttributeError, KeyError) as error:
            return type(error), str(error)

    assert result(lambda: by.encode(made)) == result(lambda: written(by, made))


def test_a_field_may_have_any_name() -> None:
    names = [
        "read",
        "write",
        "reader",
        "data",
        "pos",
        "end",
        "start",
        "at",
        "out",
        "v",
        "v0",
        "cls",
        "new",
        "names",
        "made",
    ]
    names += ["value", "block", "length", "keep", "stop", "error", "struct", "WireError", "set_0", "read_0"]
    by = declared("Named", {name: wire(UINT8) for name in names}, Kept)
    octets = bytes(range(len(names)))
    assert compiled(by, Reader(octets)) == tuple(octets)
    assert by.encode(by.decode(octets)) == written(by, by.decode(octets)) == octets


@pytest.mark.parametrize("on", ["nowhere", "body", "later"])
def test_a_select_on_a_later_field_is_refused_at_its_declaration(on: str) -> None:
    with pytest.raises(ValueError, match=f"^body depends on {on}, which is not declared before it$"):
        declared("Lost", {"first": wire(UINT8), "body": select(on, CASES), "later": wire(UINT8)})

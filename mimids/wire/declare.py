"""Declaring structures: the fields, in the order of the specification, define both the reader and the writer.

    @struct
    class ReceiveRequest:
        partition_key: PartitionKey = wire(PARTITION_KEY)
        counter: Counter = wire(UINT32.of(Counter))

`ReceiveRequest` is a frozen attrs class; `codec(ReceiveRequest)` reads and writes it. A class that derives from `Kept`
also keeps the octets that it was read from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar, cast, dataclass_transform

import attrs

from mimids.wire.codec import Codec, Reader, WireError
from mimids.wire.compiled import Field, Select, check_order, reader_of, writer_of

T = TypeVar("T")

_CODEC = "__wire_codec__"
_FIELD = "wire"


def wire(codec: Codec[T]) -> T:
    """Declare a field. The return type is the type of the field's value, so that the class is typed like a record."""
    return cast("T", attrs.field(metadata={_FIELD: codec}))


def select(
    on: str,
    cases: Mapping[Any, Codec[Any]],
    *,
    otherwise: Codec[Any] | None = None,
) -> Any:
    """Declare a field whose codec depends on `on`: the name of an earlier field, or FIELD.ATTRIBUTE of its value."""
    field, _, attribute = on.partition(".")
    return attrs.field(metadata={_FIELD: Select(field, attribute or None, cases, otherwise)})


class Kept:
    """Base of a `@struct` whose exact octets are hashed, signed or forwarded: `encoded` is the octets received.

    Encoding a decoded value again would give the same octets, but keeping the slice is cheaper. A value that was made
    here is encoded when `encoded` is first read.
    """

    __slots__ = ("_encoded",)
    _encoded: bytes

    @property
    def encoded(self) -> bytes:
        """Return the value's encoding."""
        try:
            return self._encoded
        except AttributeError:
            out = bytearray()
            getattr(type(self), _CODEC).write_fields(self, out)
            keep(self, bytes(out))
            return self._encoded


keep: Callable[[Kept, bytes], None] = vars(Kept)["_encoded"].__set__  # the class is frozen otherwise
"""Attach to a value the octets that it was read from."""


class Struct(Codec[T]):
    """The codec of a `@struct` class: one generated function reads its fields, another writes them.

    A function is generated when it is first used: most programs use few structs.
    """

    def __init__(self, cls: type[T]) -> None:
        self.cls = cls
        self.fields: list[Field] = [(field.name, field.metadata[_FIELD]) for field in attrs.fields(cast("Any", cls))]
        check_order(self.fields)

    @cached_property
    def read(self) -> Callable[[Reader], T]:
        """Return the function that reads a value."""
        return reader_of(self.cls, self.fields, keep if issubclass(self.cls, Kept) else None)

    @cached_property
    def write(self) -> Callable[[T, bytearray], None]:
        """Return the function that appends the encoding of a value."""
        return _write_kept if issubclass(self.cls, Kept) else self.write_fields  # type: ignore[return-value]

    @cached_property
    def write_fields(self) -> Callable[[T, bytearray], None]:
        """Return the function that encodes the fields of a value again."""
        return writer_of(self.fields)


def _write_kept(value: Kept, out: bytearray) -> None:
    out += value.encoded


@dataclass_transform(frozen_default=True, field_specifiers=(wire, select))
def struct(cls: type[T]) -> type[T]:
    """Make `cls` a frozen record with a codec for its fields."""
    made = attrs.frozen(cls)
    return written_by(made, Struct(made))


def written_by(cls: type[T], by: Codec[T]) -> type[T]:
    """Set the codec of `cls`; for a layout that a list of fields cannot express, pass a hand-written codec."""
    setattr(cls, _CODEC, by)
    return cls


def codec(cls: type[T]) -> Codec[T]:
    """Return the codec of a `@struct` class."""
    return cast("Codec[T]", getattr(cls, _CODEC))


def decode(cls: type[T], data: bytes) -> T:
    """Return the `cls` that `data` encodes as a whole; raise `WireError` with a path that begins with the class."""
    try:
        return codec(cls).decode(data)
    except WireError as error:
        raise error.within(cls.__name__) from None


def encode(value: object) -> bytes:
    """Return the encoding of a `@struct` value."""
    return codec(type(value)).encode(value)

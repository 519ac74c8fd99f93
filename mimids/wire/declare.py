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
from typing import Any, TypeVar, cast, dataclass_transform

import attrs

from mimids.wire.codec import Codec, WireError
from mimids.wire.compiled import Field, Select, reader_of, writer_of

T = TypeVar("T")

_CODEC = "__wire_codec__"
_FIELD = "wire"


def wire(codec: Codec[T]) -> T:
    """Declare a field; the return type is that of the value, so that the class is typed like a record."""
    return cast("T", attrs.field(metadata={_FIELD: codec}))


def select(
    on: str,
    cases: Mapping[Any, Codec[Any]],
    *,
    key: Callable[[Any], Any] | None = None,
    otherwise: Codec[Any] | None = None,
) -> Any:
    """Declare a field whose codec is that of the case `key(value of the earlier field)`."""
    return attrs.field(metadata={_FIELD: Select(on, key, cases, otherwise)})


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
    """The codec of a `@struct` class: one generated function reads its fields, another writes them."""

    def __init__(self, cls: type[T]) -> None:
        self.cls = cls
        self.fields: list[Field] = [(field.name, field.metadata[_FIELD]) for field in attrs.fields(cast("Any", cls))]
        kept = issubclass(cls, Kept)
        self.read = reader_of(cls, self.fields, keep if kept else None)  # type: ignore[method-assign, assignment]
        self.write_fields = writer_of(self.fields)
        self.write = _write_kept if kept else self.write_fields  # type: ignore[method-assign, assignment]


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
    """Return the `cls` whose encoding is all of `data`; raise `WireError` with a path that begins with the class."""
    try:
        return codec(cls).decode(data)
    except WireError as error:
        raise error.within(cls.__name__) from None


def encode(value: object) -> bytes:
    """Return the encoding of a `@struct` value."""
    return codec(type(value)).encode(value)

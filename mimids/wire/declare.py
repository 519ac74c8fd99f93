"""Structures declared once: the fields, in the order of the specification, are both reader and writer.

    @struct
    class ReceiveRequest:
        partition_key: PartitionKey = wire(PARTITION_KEY)
        counter: Counter = wire(UINT32.of(Counter))

`ReceiveRequest` is a frozen attrs class; `codec(ReceiveRequest)` reads and writes it. A class that
derives from `Kept` also keeps the octets it was read from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast, dataclass_transform

import attrs

from mimids.wire.codec import NOTHING, Codec, Reader, WireError

T = TypeVar("T")

_CODEC = "__wire_codec__"
_FIELD = "wire"


@attrs.frozen
class Select:
    """A field whose layout hangs on an earlier one, like `select` of RFC 8446 section 3.8."""

    on: str
    key: Callable[[Any], Any]
    cases: Mapping[Any, Codec[Any]]
    otherwise: Codec[Any] | None

    def choose(self, value: object) -> Codec[Any]:
        """Return the codec for this value of the earlier field; raise `WireError` if it has none."""
        found = self.cases.get(self.key(value), self.otherwise)
        if found is None:
            raise WireError("no such case")
        return found


def wire(codec: Codec[T]) -> T:
    """Declare a field (typed as its value, so that the class reads like a record)."""
    return cast("T", attrs.field(metadata={_FIELD: codec}))


def select(
    on: str,
    cases: Mapping[Any, Codec[Any]],
    *,
    key: Callable[[Any], Any] = lambda value: value,
    otherwise: Codec[Any] | None = None,
) -> Any:
    """Declare a field read by the codec of the case that `key(earlier field)` names."""
    return attrs.field(metadata={_FIELD: Select(on, key, cases, otherwise)})


class Kept:
    """Base of a `@struct` whose exact octets are hashed, signed or passed on: `encoded` is what was received.

    Decoding is a bijection, so encoding again would give the same octets; keeping the slice is cheaper. A value that
    was made here, not read, is encoded when first asked for.
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


def keep(value: Kept, encoded: bytes) -> None:
    """Attach to a value the octets it was read from."""
    object.__setattr__(value, "_encoded", encoded)  # frozen for everybody else


class _Struct(Codec[T]):
    """Reads field after field; an error on the way out gathers the names it passes."""

    def __init__(self, cls: type[T]) -> None:
        self._cls: Callable[..., T] = cls
        self._fields: list[tuple[str, Codec[Any] | Select]] = [
            (field.name, field.metadata[_FIELD]) for field in attrs.fields(cast("Any", cls))
        ]
        self._names = [name for name, _ in self._fields]
        # For each field how to read it; for a Select the choice, and the place of the earlier field, decide that.
        self._plan: list[tuple[Callable[[Reader], Any], Select | None, int]] = [
            (NOTHING.read, field, self._names.index(field.on)) if isinstance(field, Select) else (field.read, None, 0)
            for _, field in self._fields
        ]

    def read(self, reader: Reader) -> T:
        values: list[Any] = []
        try:
            for read, choice, on in self._plan:
                if choice is not None:
                    read = choice.choose(values[on]).read
                values.append(read(reader))
        except WireError as error:
            raise error.within(self._names[len(values)]) from None
        return self._cls(*values)

    def write(self, value: T, out: bytearray) -> None:
        for name, codec in self._fields:
            if isinstance(codec, Select):
                codec = codec.choose(getattr(value, codec.on))
            codec.write(getattr(value, name), out)


class _KeptStruct(_Struct[T]):
    """As `_Struct`, and the value keeps the slice it was read from."""

    def read(self, reader: Reader) -> T:
        start = reader.pos
        value = super().read(reader)
        keep(cast("Kept", value), reader.data[start : reader.pos])
        return value

    def write(self, value: T, out: bytearray) -> None:
        out += cast("Kept", value).encoded

    def write_fields(self, value: T, out: bytearray) -> None:
        """Append the encoding, made from the fields."""
        super().write(value, out)


@dataclass_transform(frozen_default=True, field_specifiers=(wire, select))
def struct(cls: type[T]) -> type[T]:
    """Make `cls` a frozen record whose fields are its wire layout."""
    made = attrs.frozen(cls)
    return written_by(made, _KeptStruct(made) if issubclass(made, Kept) else _Struct(made))


def written_by(cls: type[T], by: Codec[T]) -> type[T]:
    """Give `cls` its codec: for a layout that no list of fields can say, a hand-written one."""
    setattr(cls, _CODEC, by)
    return cls


def codec(cls: type[T]) -> Codec[T]:
    """Return the codec of a `@struct` class."""
    return cast("Codec[T]", getattr(cls, _CODEC))


def decode(cls: type[T], data: bytes) -> T:
    """Return the `cls` that is exactly `data`; raise `WireError`, naming the place from the class down."""
    try:
        return codec(cls).decode(data)
    except WireError as error:
        raise error.within(cls.__name__) from None


def encode(value: object) -> bytes:
    """Return the encoding of a `@struct` value."""
    return codec(type(value)).encode(value)

"""The TLS presentation language as values: a `Codec` reads and writes one type, combinators make larger ones.

Rules kept here: decoding is total (any bytes give a value or `WireError`), a declared length is
compared with what remains and with its limit before anything is sliced, left-over bytes are an
error at the end of every block, and an error names the place but never the peer's bytes. An
encoding is the only one of its value, so what was decoded encodes to the same bytes again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, Generic, NewType, TypeVar, cast

from mimids.wire import varint

T = TypeVar("T")
U = TypeVar("U")


class WireError(ValueError):
    """These bytes are not what the structure says; `path` is the place, outermost field first."""

    def __init__(self, reason: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path

    def within(self, place: str) -> WireError:
        """Return the same error as seen from the structure around it."""
        return WireError(self.reason, (place, *self.path))

    def __str__(self) -> str:
        """Render as `SendRequest.commit_data.group_info: truncated`."""
        return f"{'.'.join(self.path)}: {self.reason}" if self.path else self.reason


class Reader:
    """A position in received bytes; `end` is where the innermost block ends."""

    __slots__ = ("data", "end", "pos")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pos = 0
        self.end = len(data)

    def take(self, size: int) -> bytes:
        """Return the next `size` octets."""
        start = self.pos
        stop = start + size
        if stop > self.end:
            raise WireError("truncated")
        self.pos = stop
        return self.data[start:stop]

    def uint(self, size: int) -> int:
        """Return the next `size` octets as an unsigned integer in network order."""
        start = self.pos
        stop = start + size
        if stop > self.end:
            raise WireError("truncated")
        self.pos = stop
        return int.from_bytes(self.data[start:stop], "big")

    def block(self, limit: int = varint.MLS_MAX) -> int:
        """Read the length of a `<V>` block, check it, and return the position where the block ends."""
        data, pos = self.data, self.pos
        if pos < self.end and data[pos] < 0x40:
            length = data[pos]
            self.pos = pos + 1
        else:
            try:
                length, self.pos = varint.read_mls(data, pos, self.end)
            except varint.VarintError as error:
                raise WireError(str(error)) from None
        if length > self.end - self.pos:
            raise WireError("truncated")
        if length > limit:
            raise WireError(f"longer than {limit} octets")
        return self.pos + length

    def opaque(self, limit: int = varint.MLS_MAX) -> bytes:
        """Return the content of an `opaque<V>`."""
        stop = self.block(limit)
        start, self.pos = self.pos, stop
        return self.data[start:stop]

    def finish(self) -> None:
        """Raise `WireError` if anything is left."""
        if self.pos != self.end:
            raise WireError("trailing bytes")


class Codec(Generic[T]):
    """How one type is read and written."""

    def read(self, reader: Reader) -> T:
        """Read one value and leave the reader behind it; raise `WireError` if there is none."""
        raise NotImplementedError

    def write(self, value: T, out: bytearray) -> None:
        """Append the encoding of `value`."""
        raise NotImplementedError

    def decode(self, data: bytes) -> T:
        """Return the value that is exactly `data`; raise `WireError` otherwise."""
        reader = Reader(data)
        value = self.read(reader)
        reader.finish()
        return value

    def encode(self, value: T) -> bytes:
        """Return the encoding of `value`."""
        out = bytearray()
        self.write(value, out)
        return bytes(out)

    def of(self, make: Callable[[T], U], back: Callable[[U], T] | None = None) -> Codec[U]:
        """Return this codec for a type made from its value; a `ValueError` of `make` is a `WireError`.

        `back` undoes `make`; where it is absent the made value is one of this codec's own (an
        `IntEnum`, a `NewType`).
        """
        if isinstance(make, NewType):  # nothing to do at run time
            return cast("Codec[U]", self)
        return Mapped(self, make, back)


class Mapped(Codec[U]):
    """What `Codec.of` makes."""

    def __init__(self, inner: Codec[Any], make: Callable[[Any], U], back: Callable[[U], Any] | None) -> None:
        self.inner = inner
        self.make = make
        self.back = back

    def read(self, reader: Reader) -> U:
        """Read one value and make the other of it."""
        value = self.inner.read(reader)
        try:
            return self.make(value)
        except WireError:
            raise
        except ValueError as error:
            raise WireError("value not allowed") from error

    def write(self, value: U, out: bytearray) -> None:
        """Append the encoding of what it was made of."""
        self.inner.write(value if self.back is None else self.back(value), out)


class Uint(Codec[int]):
    """`uint8` to `uint64`, by their size in octets."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, reader: Reader) -> int:
        """Read an integer in network order."""
        return reader.uint(self.size)

    def write(self, value: int, out: bytearray) -> None:
        """Append an integer; raise `OverflowError` if it is too large."""
        out += value.to_bytes(self.size, "big")


class Fixed(Codec[bytes]):
    """`opaque x[size]`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, reader: Reader) -> bytes:
        """Read the octets."""
        return reader.take(self.size)

    def write(self, value: bytes, out: bytearray) -> None:
        """Append the octets; raise `ValueError` unless there are as many."""
        if len(value) != self.size:
            raise ValueError(f"{self.size} octets needed, not {len(value)}")
        out += value


class Opaque(Codec[bytes]):
    """`opaque x<V>` of at most `limit` octets."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def read(self, reader: Reader) -> bytes:
        """Read a length and as many octets."""
        return reader.opaque(self.limit)

    def write(self, value: bytes, out: bytearray) -> None:
        """Append the length and the octets."""
        out += varint.mls(len(value))
        out += value

    def encode(self, value: bytes) -> bytes:
        """Return the length and the octets; in one step, for it may be large."""
        return varint.mls(len(value)) + value


class _Vector(Codec[tuple[T, ...]]):
    def __init__(self, item: Codec[T], limit: int, at_least: int, most: int) -> None:
        self._item = item
        self._limit = limit
        self._at_least = at_least
        self._most = most

    def read(self, reader: Reader) -> tuple[T, ...]:
        stop = reader.block(self._limit)
        outer, reader.end = reader.end, stop
        items: list[T] = []
        read, most = self._item.read, self._most
        try:
            while reader.pos < stop:
                if len(items) == most:
                    raise WireError(f"more than {most} items")
                items.append(read(reader))
        except WireError as error:
            raise error.within(str(len(items))) from None
        reader.end = outer
        if len(items) < self._at_least:
            raise WireError("empty")
        return tuple(items)

    def write(self, value: tuple[T, ...], out: bytearray) -> None:
        block = bytearray()
        for item in value:
            self._item.write(item, block)
        out += varint.mls(len(block))
        out += block


class _UintVector(Codec[tuple[int, ...]]):
    """As `_Vector`, in one step for all: such a list may be long."""

    def __init__(self, size: int, limit: int, at_least: int) -> None:
        self._size = size
        self._limit = limit
        self._at_least = at_least
        self._letter = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]

    def read(self, reader: Reader) -> tuple[int, ...]:
        stop = reader.block(self._limit)
        count, rest = divmod(stop - reader.pos, self._size)
        if rest:
            raise WireError("truncated", (str(count),))
        if count < self._at_least:
            raise WireError("empty")
        values = struct.unpack_from(f">{count}{self._letter}", reader.data, reader.pos)
        reader.pos = stop
        return values

    def write(self, value: tuple[int, ...], out: bytearray) -> None:
        out += varint.mls(len(value) * self._size)
        try:
            out += struct.pack(f">{len(value)}{self._letter}", *value)
        except struct.error:
            raise OverflowError(f"an item is no unsigned integer of {self._size} octets") from None


class _Optional(Codec["T | None"]):
    def __init__(self, item: Codec[T]) -> None:
        self._item = item

    def read(self, reader: Reader) -> T | None:
        present = reader.uint(1)
        if present > 1:
            raise WireError("presence octet is neither 0 nor 1")
        return self._item.read(reader) if present else None

    def write(self, value: T | None, out: bytearray) -> None:
        if value is None:
            out.append(0)
        else:
            out.append(1)
            self._item.write(value, out)


class _Nothing(Codec[None]):
    def read(self, reader: Reader) -> None:
        return None

    def write(self, value: None, out: bytearray) -> None:
        if value is not None:
            raise ValueError("this case carries nothing")


UINT8: Final[Codec[int]] = Uint(1)
UINT16: Final[Codec[int]] = Uint(2)
UINT32: Final[Codec[int]] = Uint(4)
UINT64: Final[Codec[int]] = Uint(8)
OPAQUE_V: Final[Codec[bytes]] = Opaque(varint.MLS_MAX)
NOTHING: Final[Codec[None]] = _Nothing()


def fixed(size: int) -> Codec[bytes]:
    """`opaque x[size]`."""
    return Fixed(size)


def opaque(limit: int) -> Codec[bytes]:
    """`opaque x<V>` of at most `limit` octets."""
    return Opaque(limit)


def vector(
    item: Codec[T], *, limit: int = varint.MLS_MAX, at_least: int = 0, most: int = varint.MLS_MAX
) -> Codec[tuple[T, ...]]:
    """`T x<V>`: at most `limit` octets, `at_least` to `most` items.

    Give `most` where the items are small and more of them make no sense: a megabyte of empty ones costs a second.
    """
    if isinstance(item, Uint) and most == varint.MLS_MAX:
        return cast("Codec[tuple[T, ...]]", _UintVector(item.size, limit, at_least))
    return _Vector(item, limit, at_least, most)


def optional(item: Codec[T]) -> Codec[T | None]:
    """`optional<T>` (RFC 9420 section 2.1.1)."""
    return _Optional(item)

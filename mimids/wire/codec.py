"""Codecs for the TLS presentation language: a `Codec` reads and writes one type; codecs combine into larger ones.

Rules of this module: decoding is total (any bytes give a value or `WireError`). A declared length is compared with the
remaining bytes and with its limit before anything is sliced. Bytes that are left over at the end of a block are an
error. An error names the place, never the peer's bytes. A value has exactly one encoding, so a decoded value encodes to
the same bytes again.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Generic, NewType, TypeVar, cast

from mimids.wire import varint

T = TypeVar("T")
U = TypeVar("U")
N = TypeVar("N", bound=int)


class WireError(ValueError):
    """The bytes are not a valid encoding; `path` is the place, outermost field first."""

    def __init__(self, reason: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path

    def within(self, place: str) -> WireError:
        """Return the same error with the name of the enclosing place before its path."""
        return WireError(self.reason, (place, *self.path))

    def __str__(self) -> str:
        """Render as `SendRequest.commit_data.group_info: truncated`."""
        return f"{'.'.join(self.path)}: {self.reason}" if self.path else self.reason


class Reader:
    """A position in received bytes; `end` is the end of the innermost block."""

    __slots__ = ("data", "end", "pos")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pos = 0
        self.end = len(data)

    def take(self, size: int) -> bytes:
        """Return the next `size` octets; raise `WireError` if there are fewer."""
        start = self.pos
        stop = start + size
        if stop > self.end:
            raise WireError("truncated")
        self.pos = stop
        return self.data[start:stop]

    def uint(self, size: int) -> int:
        """Return the next `size` octets as an unsigned integer in network byte order."""
        start = self.pos
        stop = start + size
        if stop > self.end:
            raise WireError("truncated")
        self.pos = stop
        return int.from_bytes(self.data[start:stop], "big")

    def block(self, limit: int = varint.MLS_MAX) -> int:
        """Read and check the length of a `<V>` block; return the position where the block ends."""
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
        """Raise `WireError` if any bytes are left."""
        if self.pos != self.end:
            raise WireError("trailing bytes")


class Codec(Generic[T]):
    """How one type is read and written."""

    def read(self, reader: Reader) -> T:
        """Read one value and move the reader past it; raise `WireError` if the bytes are not valid."""
        raise NotImplementedError

    def write(self, value: T, out: bytearray) -> None:
        """Append the encoding of `value`."""
        raise NotImplementedError

    def decode(self, data: bytes) -> T:
        """Return the value whose encoding is all of `data`; raise `WireError` otherwise."""
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
        """Return a codec for the type to which `make` converts this codec's values.

        A `ValueError` of `make` becomes a `WireError`.

        `back` is the inverse of `make`. Without it, this codec must be able to write the made values themselves, such
        as values of an `IntEnum` or a `NewType`.
        """
        if isinstance(make, NewType):  # a NewType is the identity at run time
            return cast("Codec[U]", self)
        return Mapped(self, make, back)


class Mapped(Codec[U]):
    """A codec that converts the values of another codec; made by `Codec.of`."""

    def __init__(self, inner: Codec[Any], make: Callable[[Any], U], back: Callable[[U], Any] | None) -> None:
        self.inner = inner
        self.make = make
        self.back = back

    def read(self, reader: Reader) -> U:
        """Read one value of the inner codec and convert it."""
        value = self.inner.read(reader)
        try:
            return self.make(value)
        except WireError:
            raise
        except ValueError as error:
            raise WireError("value not allowed") from error

    def write(self, value: U, out: bytearray) -> None:
        """Append the encoding of the inner value that `value` was made from."""
        self.inner.write(value if self.back is None else self.back(value), out)


# Arguments for `Codec.of` that refuse values. They are data, not code, so that codecs for other languages can be
# generated.


class InRanges:
    """Refuses numbers that are in none of the ranges."""

    def __init__(self, *ranges: range) -> None:
        self.ranges = ranges

    def __call__(self, value: N) -> N:
        """Return the number; raise `ValueError` if it is in no range."""
        if not any(value in each for each in self.ranges):
            raise ValueError("the number is in none of the allowed ranges")
        return value


class OfSizes:
    """Refuses octets whose number is not one of `sizes`."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def __call__(self, octets: bytes) -> bytes:
        """Return the octets; raise `ValueError` if they have another size."""
        if len(octets) not in self.sizes:
            raise ValueError(f"{len(octets)} octets are not allowed here")
        return octets


class AsciiText:
    """Makes text of ASCII octets; refuses text that the pattern does not match as a whole."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern = pattern
        self._texts = lru_cache(maxsize=256)(self._check)  # the same few names are in each request

    def __call__(self, octets: bytes) -> str:
        """Return the text; raise `ValueError` if it has another form."""
        return self._texts(octets)

    def _check(self, octets: bytes) -> str:
        text = octets.decode("ascii")
        if not self.pattern.fullmatch(text):
            raise ValueError("the text does not have the required form")
        return text


class Uint(Codec[int]):
    """`uint8` to `uint64`, by their size in octets; reading a value larger than `most` is an error."""

    def __init__(self, size: int, most: int | None = None) -> None:
        self.size = size
        self.most = (1 << 8 * size) - 1 if most is None else most

    @property
    def bounded(self) -> bool:
        """Tell whether some values that fit in the octets are too large."""
        return self.most < (1 << 8 * self.size) - 1

    def read(self, reader: Reader) -> int:
        """Read an integer in network byte order."""
        value = reader.uint(self.size)
        if value > self.most:
            raise WireError(f"larger than {self.most}")
        return value

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
        """Append the octets; raise `ValueError` unless there are `size` of them."""
        if len(value) != self.size:
            raise ValueError(f"{self.size} octets needed, not {len(value)}")
        out += value


class Opaque(Codec[bytes]):
    """`opaque x<V>` of at most `limit` octets."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def read(self, reader: Reader) -> bytes:
        """Read a length and that many octets."""
        return reader.opaque(self.limit)

    def write(self, value: bytes, out: bytearray) -> None:
        """Append the length and the octets."""
        out += varint.mls(len(value))
        out += value

    def encode(self, value: bytes) -> bytes:
        """Return the length and the octets, in one step because the value may be large."""
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
    """A `_Vector` that reads all items in one step, because such a list may be long."""

    def __init__(self, item: Uint, limit: int, at_least: int, most: int) -> None:
        self._uint = item
        self._size = item.size
        self._limit = limit
        self._at_least = at_least
        self._most = most
        self._letter = {1: "B", 2: "H", 4: "I", 8: "Q"}[item.size]

    def read(self, reader: Reader) -> tuple[int, ...]:
        stop = reader.block(self._limit)
        count, rest = divmod(stop - reader.pos, self._size)
        if count > self._most or (rest and count == self._most):
            raise WireError(f"more than {self._most} items", (str(self._most),))
        if rest:
            raise WireError("truncated", (str(count),))
        if count < self._at_least:
            raise WireError("empty")
        values = struct.unpack_from(f">{count}{self._letter}", reader.data, reader.pos)
        if self._uint.bounded and values and max(values) > self._uint.most:
            raise WireError(f"an item is larger than {self._uint.most}")
        reader.pos = stop
        return values

    def write(self, value: tuple[int, ...], out: bytearray) -> None:
        out += varint.mls(len(value) * self._size)
        try:
            out += struct.pack(f">{len(value)}{self._letter}", *value)
        except struct.error:
            raise OverflowError(f"an item does not fit in an unsigned integer of {self._size} octets") from None


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
            raise ValueError("this case of a select has no value: pass None")


UINT8: Final[Codec[int]] = Uint(1)
UINT16: Final[Codec[int]] = Uint(2)
UINT32: Final[Codec[int]] = Uint(4)
UINT64: Final[Codec[int]] = Uint(8)
OPAQUE_V: Final[Codec[bytes]] = Opaque(varint.MLS_MAX)
NOTHING: Final[Codec[None]] = _Nothing()


def uint(size: int, *, most: int) -> Codec[int]:
    """Return a codec for an unsigned integer of `size` octets that is at most `most`."""
    return Uint(size, most)


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

    Pass `most` if items are small: decoding a megabyte of empty items takes a second.
    """
    if isinstance(item, Uint):
        return cast("Codec[tuple[T, ...]]", _UintVector(item, limit, at_least, most))
    return _Vector(item, limit, at_least, most)


def optional(item: Codec[T]) -> Codec[T | None]:
    """`optional<T>` (RFC 9420 section 2.1.1)."""
    return _Optional(item)

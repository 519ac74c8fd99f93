"""One function that reads a struct and one that writes it, made from its fields.

A struct is read by a call for each of its fields, and for each of theirs, which costs more than what the calls do: so
the text of one function is put together from the fields, and compiled when the class is declared. Integers and opaque
vectors are read in line; whatever else a field may be is called, as it would be without. What is accepted, and which
error is raised at which place, is what the codecs of the fields say (docs/decisions/0001).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from mimids.wire import varint
from mimids.wire.codec import NOTHING, Codec, Fixed, Mapped, Opaque, Reader, Uint, WireError

_WORDS: Final = {size: struct.Struct(f">{letter}").unpack_from for size, letter in ((2, "H"), (4, "I"), (8, "Q"))}


@attrs.frozen
class Select:
    """A field whose layout hangs on an earlier one, like `select` of RFC 8446 section 3.8."""

    on: str
    key: Callable[[Any], Any] | None  # of the earlier value; None: itself
    cases: Mapping[Any, Codec[Any]]
    otherwise: Codec[Any] | None

    def choose(self, value: object) -> Codec[Any]:
        """Return the codec for this value of the earlier field; raise `WireError` if it has none."""
        found = self.cases.get(value if self.key is None else self.key(value), self.otherwise)
        if found is None:
            raise WireError("no such case")
        return found


Field = tuple[str, "Codec[Any] | Select"]


def reader_of(
    cls: type[Any], fields: Sequence[Field], keep: Callable[[Any, bytes], None] | None
) -> Callable[[Reader], Any]:
    """Return the function that reads the fields in order and makes a `cls` of them.

    An error on its way out gathers the names it passes. `keep` is given the value and the octets it was read from.
    """
    names = [name for name, _ in fields]
    scope: dict[str, Any] = {"WireError": WireError, "block": _block, "names": names, "cls": cls, "new": cls.__new__}
    lines = [
        "def read(reader):",
        "    data, pos, end = reader.data, reader.pos, reader.end",
        "    start = pos",
        "    try:",
        "        at = 0",
    ]
    for at, (_, field) in enumerate(fields):
        lines += [f"        at = {at}"] * (at > 0)
        lines += [f"        {step}" for step in _reading(field, at, names, scope)]
    lines += [
        "    except WireError as error:",
        "        raise error.within(names[at]) from None",
        "    except ValueError as error:",  # of what makes the value: all else raises WireError
        "        raise WireError('value not allowed', (names[at],)) from error",
        "    reader.pos = pos",
        "    made = new(cls)",  # what attrs' __init__ does, by way of the slots
    ]
    for at, name in enumerate(names):
        scope[f"set_{at}"] = getattr(cls, name).__set__
        lines.append(f"    set_{at}(made, v{at})")
    if keep is not None:
        scope["keep"] = keep
        lines.append("    keep(made, data[start:pos])")
    return _function("read", [*lines, "    return made"], scope)


def writer_of(fields: Sequence[Field]) -> Callable[[Any, bytearray], None]:
    """Return the function that appends the encodings of the fields of a value."""
    scope: dict[str, Any] = {"length": varint.mls}
    lines = ["def write(value, out):"]
    for at, (name, field) in enumerate(fields):
        lines += [f"    v = value.{name}"]
        lines += [f"    {step}" for step in _writing(field, at, scope)]
    return _function("write", [*lines, "    return"], scope)


def _reading(field: Codec[Any] | Select, at: int, names: Sequence[str], scope: dict[str, Any]) -> Iterator[str]:
    """Yield the steps that read a field into its variable, from `pos` on."""
    if isinstance(field, Select):
        if field.on not in names[:at]:
            raise ValueError(f"{names[at]} hangs on {field.on}, which does not stand before it")
        scope[f"choose_{at}"], scope[f"key_{at}"] = field.choose, field.key
        scope[f"reads_{at}"] = {value: case.read for value, case in field.cases.items()}
        on = f"v{names.index(field.on)}"
        value = on if field.key is None else f"key_{at}({on})"
        yield from _call(f"(reads_{at}.get({value}) or choose_{at}({on}).read)", at)
    elif isinstance(field, Mapped):
        yield from _reading(field.inner, at, names, scope)
        make = f"make_{len(scope)}"  # the inner one may be mapped too
        scope[make] = field.make
        yield f"v{at} = {make}(v{at})"
    elif isinstance(field, Uint | Fixed):
        yield f"if pos + {field.size} > end: raise WireError('truncated')"
        if isinstance(field, Fixed):
            yield f"v{at} = data[pos:pos + {field.size}]"
        elif field.size == 1:
            yield f"v{at} = data[pos]"
        else:
            scope[f"word_{at}"] = _WORDS[field.size]
            yield f"(v{at},) = word_{at}(data, pos)"
        yield f"pos += {field.size}"
    elif isinstance(field, Opaque):
        yield "if pos < end and data[pos] < 0x40 and pos + data[pos] < end:"
        yield "    stop = pos + 1 + data[pos]; pos += 1"
        yield "else: pos, stop = block(data, pos, end)"
        if field.limit < varint.MLS_MAX:
            yield f"if stop - pos > {field.limit}: raise WireError('longer than {field.limit} octets')"
        yield f"v{at} = data[pos:stop]"
        yield "pos = stop"
    elif field is NOTHING:
        yield f"v{at} = None"
    else:
        scope[f"read_{at}"] = field.read
        yield from _call(f"read_{at}", at)


def _writing(field: Codec[Any] | Select, at: int, scope: dict[str, Any]) -> Iterator[str]:
    """Yield the steps that append `v`."""
    if isinstance(field, Select):
        scope[f"choose_{at}"] = field.choose
        yield f"choose_{at}(value.{field.on}).write(v, out)"
    elif isinstance(field, Mapped):
        if field.back is not None:
            back = f"back_{len(scope)}"
            scope[back] = field.back
            yield f"v = {back}(v)"
        yield from _writing(field.inner, at, scope)
    elif isinstance(field, Uint):
        yield f"out += v.to_bytes({field.size}, 'big')"
    elif isinstance(field, Opaque):
        yield "if len(v) < 0x40: out.append(len(v))"
        yield "else: out += length(len(v))"
        yield "out += v"
    else:
        scope[f"write_{at}"] = field.write
        yield f"write_{at}(v, out)"


def _call(read: str, at: int) -> Iterator[str]:
    yield "reader.pos = pos"
    yield f"v{at} = {read}(reader)"
    yield "pos = reader.pos"


def _block(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read the length of a `<V>` block at `pos` as `Reader.block` does; return where its content begins and ends."""
    try:
        length, pos = varint.read_mls(data, pos, end)
    except varint.VarintError as error:
        raise WireError(str(error)) from None
    if length > end - pos:
        raise WireError("truncated")
    return pos, pos + length


def _function(name: str, lines: Sequence[str], scope: dict[str, Any]) -> Callable[..., Any]:
    exec("\n".join(lines), scope)  # noqa: S102  # a text of ours: of what is outside, only field names are in it
    made: Callable[..., Any] = scope[name]
    return made

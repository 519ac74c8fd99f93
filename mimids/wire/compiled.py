"""Code generation: for each struct, one function that reads it and one that writes it.

If each field of a struct, and each field inside a field, were read by a call of its own, the calls would cost more than
the reading. So the source of one function is generated from the fields, and compiled when it is first used. Integers
and opaque vectors are read inline; every other field is read by a call to its codec. The generated functions accept the
same bytes, and raise the same errors at the same places, as the codecs of the fields (docs/decisions/0001).
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
    """A field whose layout depends on an earlier field, as `select` of RFC 8446 section 3.8."""

    on: str
    # the attribute of the earlier field's value that selects the case; None: the value itself selects it
    attribute: str | None
    cases: Mapping[Any, Codec[Any]]
    otherwise: Codec[Any] | None

    def choose(self, value: object) -> Codec[Any]:
        """Return the codec for this value of the earlier field; raise `WireError` if there is no case for the value."""
        found = self.cases.get(value if self.attribute is None else getattr(value, self.attribute), self.otherwise)
        if found is None:
            raise WireError("no such case")
        return found


Field = tuple[str, "Codec[Any] | Select"]


def check_order(fields: Sequence[Field]) -> None:
    """Raise `ValueError` if the layout of a field depends on a field that is not declared before it."""
    for at, (name, field) in enumerate(fields):
        if isinstance(field, Select) and field.on not in (earlier for earlier, _ in fields[:at]):
            raise ValueError(f"{name} depends on {field.on}, which is not declared before it")


def reader_of(
    cls: type[Any], fields: Sequence[Field], keep: Callable[[Any, bytes], None] | None
) -> Callable[[Reader], Any]:
    """Return a function that reads the fields in order and makes a `cls` of them.

    A `WireError` gets the field's name before its path. `keep` is called with the value and the octets that it was read
    from.
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
        "    except ValueError as error:",  # raised by a conversion (`make`); everything else raises WireError
        "        raise WireError('value not allowed', (names[at],)) from error",
        "    reader.pos = pos",
        "    made = new(cls)",  # the slots are set directly, as the __init__ of attrs does
    ]
    for at, name in enumerate(names):
        scope[f"set_{at}"] = getattr(cls, name).__set__
        lines.append(f"    set_{at}(made, v{at})")
    if keep is not None:
        scope["keep"] = keep
        lines.append("    keep(made, data[start:pos])")
    return _function("read", [*lines, "    return made"], scope)


def writer_of(fields: Sequence[Field]) -> Callable[[Any, bytearray], None]:
    """Return a function that appends the encodings of a value's fields."""
    scope: dict[str, Any] = {"length": varint.mls}
    lines = ["def write(value, out):"]
    for at, (name, field) in enumerate(fields):
        lines += [f"    v = value.{name}"]
        lines += [f"    {step}" for step in _writing(field, at, scope)]
    return _function("write", [*lines, "    return"], scope)


def _reading(field: Codec[Any] | Select, at: int, names: Sequence[str], scope: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that read a field at `pos` into its variable."""
    if isinstance(field, Select):
        scope[f"choose_{at}"] = field.choose
        scope[f"reads_{at}"] = {value: case.read for value, case in field.cases.items()}
        on = f"v{names.index(field.on)}"
        value = on if field.attribute is None else f"{on}.{field.attribute}"
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
        if isinstance(field, Uint) and field.bounded:
            yield f"if v{at} > {field.most}: raise WireError('larger than {field.most}')"
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
    """Yield the lines that append the encoding of `v`."""
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
    """Read the length of a `<V>` block at `pos` as `Reader.block` does; return the start and end of its content."""
    try:
        length, pos = varint.read_mls(data, pos, end)
    except varint.VarintError as error:
        raise WireError(str(error)) from None
    if length > end - pos:
        raise WireError("truncated")
    return pos, pos + length


def _function(name: str, lines: Sequence[str], scope: dict[str, Any]) -> Callable[..., Any]:
    exec("\n".join(lines), scope)  # noqa: S102  # the source is made here; only the field names come from outside
    made: Callable[..., Any] = scope[name]
    return made

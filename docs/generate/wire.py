"""Prints the structures of `wire.messages` in the notation of RFC 9420 section 2.1, from their declarations.

It reads private attributes of the codecs. Nothing else needs them, so they stay private.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final

import attrs

from mimids.mls.framing import MLS_MESSAGE
from mimids.wire import codec as engine
from mimids.wire import messages, varint
from mimids.wire.codec import NOTHING, Codec
from mimids.wire.compiled import Select
from mimids.wire.ids import MASKED_PARTITION_KEY, PARTITION_KEY, PROVIDER_ID

_OPAQUE: Final = "opaque"
_NAMED: Final[tuple[tuple[Codec[Any], str], ...]] = (
    (PARTITION_KEY, "PartitionKey"),
    (MASKED_PARTITION_KEY, "MaskedPartitionKey"),
    (PROVIDER_ID, "ServiceProviderId"),
    (MLS_MESSAGE, "MLSMessage"),
    (messages.KEY_PACKAGE, "KeyPackage"),
    (messages.RATCHET_TREE, "RatchetTree"),
)
_COMMENT: Final = re.compile(r"^ +(\w+): .*?  # (.+)$", re.MULTILINE)
_ITEM: Final = re.compile(r"tuple\[(\w+), \.\.\.\]")
_COLUMN: Final = 44  # where comments begin


def structures() -> str:
    """Return every structure and enumeration of the protocol, in the order of their declaration."""
    kinds = [kind for kind in vars(messages).values() if inspect.isclass(kind) and kind.__module__ == messages.__name__]
    parts = []
    for kind in kinds:
        if issubclass(kind, IntEnum):
            parts.append("\n".join(_enumeration(kind)))
        elif attrs.has(kind):
            parts.append("\n".join(_structure(kind)))
    return "```text\n" + "\n\n".join(parts) + "\n```\n"


def _enumeration(kind: type[IntEnum]) -> Iterator[str]:
    yield f"// {_sentence(kind)}"
    values = ", ".join(f"{each.name.lower()}({each.value})" for each in kind)
    yield f"enum {{ {values}, (255) }} {kind.__name__};"


def _structure(kind: type[attrs.AttrsInstance]) -> Iterator[str]:
    comments = dict(_COMMENT.findall(inspect.getsource(kind)))
    yield f"// {_sentence(kind)}"
    yield "struct {"
    for field in attrs.fields(kind):
        declared = field.metadata["wire"]
        if isinstance(declared, Select):
            on = declared.on if declared.attribute is None else f"{declared.on}.{declared.attribute}"
            yield f"  select ({kind.__name__}.{on}) {{"
            for case, codec in declared.cases.items():
                empty = codec is NOTHING
                yield f"    case {case.name.lower()}: {'struct {}' if empty else _declared(codec, field.name, '')[0]};"
            yield "  };"
            continue
        line, bound = _declared(declared, field.name, str(field.type))
        notes = "; ".join(note for note in (comments.get(field.name), bound) if note)
        yield f"  {line};".ljust(_COLUMN if notes else 0) + (f"// {notes}" if notes else "")
    yield f"}} {kind.__name__};"


def _declared(codec: Codec[Any], name: str, annotation: str) -> tuple[str, str]:
    """Return the declaration of a field, and a note on its limit."""
    if isinstance(codec, engine._Optional):
        return f"optional<{_type(codec._item)}> {name}", ""
    if isinstance(codec, engine._Vector | engine._UintVector):
        item = codec._item if isinstance(codec, engine._Vector) else codec._uint
        kind = _type(item)
        most = getattr(codec, "_most", varint.MLS_MAX)
        bound = "" if most == varint.MLS_MAX else f"at most {most:,} items"
        return f"{_ITEM.findall(annotation)[0] if kind == _OPAQUE else kind} {name}<V>", bound
    kind = _type(codec)
    if kind != _OPAQUE:
        return f"{kind} {name}", f"at most {codec.most:,}" if isinstance(codec, engine.Uint) and codec.bounded else ""
    limit = getattr(_innermost(codec), "limit", varint.MLS_MAX)
    return f"opaque {name}<V>", "" if limit == varint.MLS_MAX else f"at most {limit} octets"


def _type(codec: Codec[Any]) -> str:
    for known, name in _NAMED:
        if codec is known:
            return name
    inner = _innermost(codec)
    if isinstance(codec, engine.Mapped) and inspect.isclass(codec.make) and issubclass(codec.make, IntEnum):
        return codec.make.__name__
    if isinstance(inner, engine.Uint):
        return f"uint{8 * inner.size}"
    if isinstance(inner, engine.Opaque):
        return _OPAQUE
    for kind in vars(messages).values():
        if getattr(kind, "__wire_codec__", None) is inner:
            return str(kind.__name__)
    raise TypeError(f"add the name of {type(inner).__name__} to _NAMED in {__name__}")


def _innermost(codec: Codec[Any]) -> Codec[Any]:
    while isinstance(codec, engine.Mapped):
        codec = codec.inner
    return codec


def _sentence(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())

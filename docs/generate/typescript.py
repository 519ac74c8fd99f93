"""Prints the codecs of the TypeScript client from the declarations of the Python ones.

`mls.ts` has the MLS structures that are parsed to find where an MLSMessage ends, and `messages.ts` all of
`wire.messages`. Structures that a list of fields cannot express are written by hand in `framing.ts`; their names are
listed here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import attrs

from mimids.mls import code_points, framing, group_info, key_package, proposals, welcome
from mimids.mls.code_points import CodePoint, OpenEnum
from mimids.wire import codec as engine
from mimids.wire import ids, messages, varint
from mimids.wire.codec import NOTHING, Codec
from mimids.wire.compiled import Select
from mimids.wire.declare import codec
from mimids.wire.ids import Secret

_HEAD: Final = "// Printed by `make clients` from the declarations in Python. Change those.\n"
_ROOTS: Final = (
    proposals.Commit,
    welcome.Welcome,
    group_info.GroupInfo,
    group_info.ExternalSender,
    key_package.KeyPackageIn,
    framing.Sender,
)
_RENAMED: Final = {"KeyPackageIn": "KeyPackage"}  # parsed and not validated, which is all that the client does
_MLS_ENUMS: Final = ("WireFormat", "ContentType", "SenderType")  # those that framing.ts uses
_CODE_POINTS: Final = engine.vector(engine.UINT16, most=code_points.MOST_CODE_POINTS)

# Types that have a name of their own in TypeScript, with the name of the codec.
_NAMED: Final[tuple[tuple[Codec[Any], str, str], ...]] = (
    (framing.MLS_MESSAGE, "MLSMessage", "MLSMessage"),
    (messages.KEY_PACKAGE, "Octets", "octetsOf(KeyPackage)"),
    (messages.RATCHET_TREE, "Octets", "UNPARSED_VECTOR"),
    (proposals.CIPHERTEXTS, "HpkeCiphertext[]", "vector(HpkeCiphertext)"),
    (NOTHING, "null", "NOTHING"),
)
_LISTS: Final = ("KEY_PACKAGES", "SEND_REQUESTS", "SEND_RESULTS", "INBOX_WELCOMES")  # bodies without a struct


def mls() -> str:
    """Return mls.ts."""
    parts = [_enumeration(getattr(code_points, name)) for name in _MLS_ENUMS]
    parts += [_structure(kind) for kind in _in_order(*_ROOTS, framing.PrivateMessage)]
    return _file(parts)


def wire_messages() -> str:
    """Return messages.ts."""
    parts = []
    for kind in vars(messages).values():
        if not inspect.isclass(kind) or kind.__module__ != messages.__name__:
            continue
        if issubclass(kind, IntEnum):
            parts.append(_enumeration(kind))
        elif attrs.has(kind):
            parts.append(_structure(kind))
    parts += [f"export const {name} = {_printed(getattr(messages, name))};" for name in _LISTS]
    parts.append(f"export const NO_LONGER_FOLLOWED = {ids.NO_LONGER_FOLLOWED};")
    imports = 'import { MLSMessage } from "./framing.js";\nimport { KeyPackage } from "./mls.js";\n'
    return _file(parts, imports)


def _file(parts: list[str], imports: str = "") -> str:
    body = "\n\n".join(parts) + "\n"
    used = [name for name in ("Codec", *_FUNCTIONS) if re.search(rf"\b{name}\b", body)]
    types = 'import type { Octets } from "./octets.js";\n'
    listed = "".join(f"  {'type ' if name == 'Codec' else ''}{name},\n" for name in used)
    return f'{_HEAD}\nimport {{\n{listed}}} from "./codec.js";\n{imports}{types}\n{body}'


_FUNCTIONS: Final = (
    "NOTHING",
    "OPAQUE",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "UNPARSED_VECTOR",
    "fixed",
    "octetsOf",
    "oneOf",
    "opaque",
    "optional",
    "select",
    "struct",
    "text",
    "uint",
    "uint64",
    "vector",
)


# --- structures ---------------------------------------------------------------------------------------------------


def _in_order(*kinds: type[Any]) -> list[type[Any]]:
    """Return these structs and those within them, each after those that it contains."""
    found: dict[type[Any], None] = {}

    def visit(by: Codec[Any]) -> None:
        for inner in _within(by):
            visit(inner)
        if hasattr(by, "cls") and attrs.has(by.cls):
            found[by.cls] = None

    for kind in kinds:
        visit(codec(kind))
    return list(found)


def _within(by: Codec[Any]) -> Iterator[Codec[Any]]:
    if by is proposals.CIPHERTEXTS:
        yield codec(proposals.HpkeCiphertext)
    for _, field in getattr(by, "fields", ()):
        if isinstance(field, Select):
            yield from field.cases.values()
        else:
            yield field
    for name in ("inner", "_item"):
        if hasattr(by, name):
            yield getattr(by, name)


def _structure(kind: type[Any]) -> str:
    name = _name(kind)
    fields = getattr(codec(kind), "fields")  # noqa: B009  # a `Struct`
    if not fields:
        return (
            f"{_comment(kind)}\nexport type {name} = Record<string, never>;\n"
            f'export const {name}: Codec<{name}> = struct("{name}", {{}});'
        )
    types = "".join(f"  {_camel(field)}: {_type(by)};\n" for field, by in fields)
    codecs = "".join(f"  {_camel(field)}: {_printed(by)},\n" for field, by in fields)
    return (
        f"{_comment(kind)}\nexport interface {name} {{\n{types}}}\n"
        f'export const {name}: Codec<{name}> = struct("{name}", {{\n{codecs}}});'
    )


def _enumeration(kind: type[IntEnum]) -> str:
    name = kind.__name__
    values = "".join(f"  {each.name}: {each.value},\n" for each in kind)
    return (
        f"{_comment(kind)}\nexport const {name} = {{\n{values}}} as const;\n"
        f"export type {name} = (typeof {name})[keyof typeof {name}];"
    )


def _comment(kind: type[Any]) -> str:
    text = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    if len(text) < 110:
        return f"/** {text} */"
    return "/**\n" + fill(text, 115, initial_indent=" * ", subsequent_indent=" * ") + "\n */"


def _name(kind: type[Any]) -> str:
    return _RENAMED.get(kind.__name__, kind.__name__)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


# --- fields -------------------------------------------------------------------------------------------------------


def _type(by: Codec[Any] | Select) -> str:
    """Return the TypeScript type of a codec's values."""
    if isinstance(by, Select):
        kinds = [_type(each) for each in by.cases.values()] + ([] if by.otherwise is None else [_type(by.otherwise)])
        return " | ".join(dict.fromkeys(kinds))
    if named := next((kind for known, kind, _ in _NAMED if known is by), None):
        return named
    if isinstance(by, engine._Optional):
        return f"{_type(by._item)} | null"
    if isinstance(by, engine._Vector):
        return f"{_type(by._item)}[]"
    if isinstance(by, engine._UintVector):
        return f"{_type(by._uint)}[]"
    if isinstance(by, code_points._CodePoints):
        return "number[]"
    if isinstance(by, engine.Mapped):
        enum = _enum_of(by)
        if enum is not None:
            return enum.__name__ if _is_printed(enum) else "number"
        return "string" if isinstance(by.make, engine.AsciiText) else _type(by.inner)
    if isinstance(by, engine.Uint):
        return "bigint" if by.size == 8 else "number"
    if isinstance(by, engine.Fixed | engine.Opaque):
        return "Octets"
    return _name(by.cls)  # type: ignore[attr-defined]  # a `Struct`


def _printed(by: Codec[Any] | Select) -> str:
    """Return the TypeScript expression of a codec."""
    if isinstance(by, Select):
        return _select(by)
    if named := next((text for known, _, text in _NAMED if known is by), None):
        return named
    if isinstance(by, engine._Optional):
        return f"optional({_printed(by._item)})"
    if isinstance(by, engine._Vector | engine._UintVector):
        item = by._item if isinstance(by, engine._Vector) else by._uint
        return f"vector({_arguments(_printed(item), _unless(by._most, varint.MLS_MAX))})"
    if isinstance(by, code_points._CodePoints):
        return _printed(_CODE_POINTS)
    if isinstance(by, engine.Mapped):
        return _mapped(by)
    if isinstance(by, engine.Uint):
        if by.size == 8:
            return f"uint64({by.most}n)" if by.bounded else "UINT64"
        return f"uint({by.size}, {by.most})" if by.bounded else f"UINT{8 * by.size}"
    if isinstance(by, engine.Fixed):
        return f"fixed({by.size})"
    if isinstance(by, engine.Opaque):
        return f"opaque({by.limit})" if by.limit != varint.MLS_MAX else "OPAQUE"
    return _name(by.cls)  # type: ignore[attr-defined]  # a `Struct`


def _select(field: Select) -> str:
    on = field.on if field.attribute is None else f"{field.on}.{field.attribute}"
    path = ".".join(map(_camel, on.split(".")))
    cases = "".join(f"    {int(value)}: {_printed(by)},\n" for value, by in field.cases.items())
    otherwise = "" if field.otherwise is None else f", {_printed(field.otherwise)}"
    return f'select("{path}", {{\n{cases}  }}{otherwise})'


def _mapped(by: engine.Mapped[Any]) -> str:
    make, inner = by.make, by.inner
    enum = _enum_of(by)
    if enum is not None:
        size = inner.size  # type: ignore[attr-defined]  # a `Uint`
        if issubclass(enum, OpenEnum):
            return f"UINT{8 * size}"
        values = enum.__name__ if _is_printed(enum) else "{ " + ", ".join(f"{e.name}: {e.value}" for e in enum) + " }"
        return f"oneOf({size}, {values})"
    if isinstance(make, engine.InRanges):
        ranges = ", ".join(f"[{each.start}, {each.stop - 1}]" for each in make.ranges)
        size, most = inner.size, inner.most  # type: ignore[attr-defined]  # a `Uint`
        return f"uint({size}, {most}, [{ranges}])"
    if isinstance(make, engine.OfSizes):
        return f"opaque({inner.limit}, [{', '.join(map(str, make.sizes))}])"  # type: ignore[attr-defined]
    if isinstance(make, engine.AsciiText):
        return f"text({inner.limit}, /^(?:{make.pattern.pattern})$/)"  # type: ignore[attr-defined]
    if inspect.isclass(make) and issubclass(make, Secret):
        return _printed(inner)
    raise TypeError(f"{make!r} is code: say it with data, such as InRanges, or the TypeScript codec will not have it")


def _enum_of(by: engine.Mapped[Any]) -> type[IntEnum] | None:
    if isinstance(by, CodePoint):
        return by.cls
    return by.make if inspect.isclass(by.make) and issubclass(by.make, IntEnum) else None


def _is_printed(enum: type[IntEnum]) -> bool:
    return enum.__name__ in _MLS_ENUMS or enum.__module__ == messages.__name__


def _unless(value: int, usual: int) -> int | None:
    return None if value == usual else value


def _arguments(*arguments: object) -> str:
    return ", ".join(str(each) for each in arguments if each is not None)


PRINTED: Final = {"messages.ts": wire_messages, "mls.ts": mls}
SOURCE: Final = Path(__file__).parents[2] / "clients" / "typescript" / "src"

if __name__ == "__main__":
    for file, printed in PRINTED.items():
        (SOURCE / file).write_text(printed(), encoding="utf-8")

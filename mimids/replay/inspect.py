"""Print any MLS object as an indented tree of text lines, for people to read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final

import attrs

from mimids.mls.code_points import ComponentId, ExtensionType
from mimids.mls.components import AppDataDictionary, ComponentData, ParticipantList, RolesList
from mimids.mls.framing import MLS_MESSAGE, AuthenticatedContent
from mimids.mls.group_info import EXTERNAL_SENDERS, ExternalPub, GroupContext, GroupInfo, RequiredCapabilities
from mimids.mls.identity import user_of
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.leaf_node import RATCHET_TREE, Credential, Extension, LeafNode, Lifetime, Node
from mimids.mls.proposals import Ciphertexts, Proposal
from mimids.mls.suites import suite_of
from mimids.mls.welcome import Welcome
from mimids.wire.codec import OPAQUE_V, Codec, Reader, WireError
from mimids.wire.declare import codec

_SHOWN_OCTETS: Final = 32  # how much of a longer field is shown

# Kinds of object in a file, the most specific first. Decoding is strict, so the first that fits is nearly always right.
_KINDS: Final[tuple[tuple[str, Codec[Any]], ...]] = (
    ("MLSMessage", MLS_MESSAGE),
    ("KeyPackage", codec(KeyPackageIn)),
    ("GroupInfo", codec(GroupInfo)),
    ("Welcome", codec(Welcome)),
    ("ratchet tree", RATCHET_TREE),
    ("GroupContext", codec(GroupContext)),
    ("AuthenticatedContent", codec(AuthenticatedContent)),
    ("LeafNode", codec(LeafNode)),
    ("Proposal", codec(Proposal)),
)

_EXTENSIONS: Final[dict[ExtensionType, Codec[Any]]] = {
    ExtensionType.APPLICATION_ID: OPAQUE_V,
    ExtensionType.RATCHET_TREE: RATCHET_TREE,
    ExtensionType.REQUIRED_CAPABILITIES: codec(RequiredCapabilities),
    ExtensionType.EXTERNAL_PUB: codec(ExternalPub),
    ExtensionType.EXTERNAL_SENDERS: EXTERNAL_SENDERS,
    ExtensionType.APP_DATA_DICTIONARY: codec(AppDataDictionary),
}
_COMPONENTS: Final[dict[ComponentId, Codec[Any]]] = {
    ComponentId.PARTICIPANT_LIST: codec(ParticipantList),
    ComponentId.ROLES_LIST: codec(RolesList),
}


def inspect(data: bytes) -> tuple[str, ...]:
    """Return an MLS object as lines of text; the first line is its kind. Raise `WireError` if no known kind fits.

    `data` is the content of a file: the object's octets, in binary, hex or base64.
    """
    furthest, meant = -1, WireError("the file is empty")
    for octets in _possible_octets(data):
        for name, by in _KINDS:
            reader = Reader(octets)
            try:
                value = by.read(reader)
                reader.finish()
            except WireError as error:
                if reader.pos > furthest:  # report the error of the kind that parsed furthest
                    furthest, meant = reader.pos, error.within(name)
            else:
                return (f"{name}, {len(octets)} octets", *_indented(_tree(value)))
    raise meant


def _possible_octets(data: bytes) -> Iterator[bytes]:
    """Yield the octets that a file's content may represent."""
    text = b"".join(data.split())
    try:
        yield bytes.fromhex(text.decode("ascii"))
    except ValueError:
        pass
    else:
        return
    yield data
    try:
        yield base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return ("  " + line for line in lines)


def _tree(value: object) -> Iterator[str]:
    """Yield the lines for the parts of a value."""
    if isinstance(value, tuple):
        if any(isinstance(item, Node) for item in value):
            yield from _ratchet_tree(value)
            return
        for index, item in enumerate(value):
            yield from _field(f"[{index}]", item)
        return
    for field in attrs.fields(type(value)):  # type: ignore[arg-type]  # every struct is an attrs class
        yield from _field(field.name, getattr(value, field.name), value)
    yield from _findings(value)


def _field(name: str, value: Any, owner: object = None) -> Iterator[str]:
    """Yield the line for a field, and indented lines for its parts."""
    known = _inside(owner) if name in ("extension_data", "data") else None
    if known is not None:
        try:
            value = known.decode(value)
        except WireError as error:
            yield f"{name}: does not parse ({error}): {_octets(value)}"
            return
    if isinstance(value, Ciphertexts):
        yield f"{name}: {value.count} ciphertexts, {len(value.encoded)} octets"
    elif isinstance(value, Extension):
        yield f"{name}: {_scalar(value.extension_type)}"
        yield from _indented(_field("extension_data", value.extension_data, value))
    elif isinstance(value, tuple) and not any(map(_is_inner, value)):
        yield f"{name}: [{', '.join(_named(name, item) for item in value)}]"
    elif isinstance(value, tuple):
        yield f"{name}: {len(value)}"
        yield from _indented(_tree(value))
    elif _is_inner(value):
        yield f"{name}: {type(value).__name__}"
        yield from _indented(_tree(value))
    else:
        yield f"{name}: {_named(name, value)}"


def _is_inner(value: object) -> bool:
    return isinstance(value, tuple) or attrs.has(type(value))


def _inside(owner: object) -> Codec[Any] | None:
    if isinstance(owner, Extension):
        return _EXTENSIONS.get(owner.extension_type)
    return _COMPONENTS.get(owner.component_id) if isinstance(owner, ComponentData) else None


def _named(name: str, value: object) -> str:
    """Return a value without parts as text; for some fields, the meaning of the number is added."""
    if name in ("cipher_suite", "cipher_suites") and isinstance(value, int):
        suite = suite_of(value)
        return f"{value} ({suite.name if suite else 'unknown'})"
    if name in ("not_before", "not_after") and isinstance(value, int):
        return f"{value} ({_date(value)})"
    return _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, IntEnum):
        return f"{value.name.lower()} ({int(value)})"
    if isinstance(value, bytes):
        return _octets(value)
    return "none" if value is None else str(value)


def _octets(octets: bytes) -> str:
    if octets and all(0x20 <= octet < 0x7F for octet in octets):
        return f'"{octets.decode()}"'
    shown = octets[:_SHOWN_OCTETS].hex() or "empty"
    return shown if len(octets) <= _SHOWN_OCTETS else f"{shown}... ({len(octets)} octets)"


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "after the year 9999"


def _ratchet_tree(nodes: tuple[Node | None, ...]) -> Iterator[str]:
    """Yield the lines for a ratchet tree in array order, with leaves at even positions (RFC 9420 appendix C)."""
    for index, node in enumerate(nodes):
        place = f"leaf {index // 2}" if index % 2 == 0 else f"parent at {index}"
        if node is None:
            yield f"{place}: blank"
        else:
            yield f"{place}:"
            yield from _indented(_tree(node.node))


def _findings(value: object) -> Iterator[str]:
    """Yield lines for facts that are computed from a value."""
    if isinstance(value, Credential):
        user = user_of(value)
        yield f"= user: {'unknown' if user is None else user.decode()}"
    elif isinstance(value, KeyPackageIn):
        suite = suite_of(value.cipher_suite)
        if suite is not None:
            yield f"= reference: {value.ref(suite).hex()}"
        yield f"= check without lifetime: {value.fault() or 'valid'}"
    elif isinstance(value, Lifetime):
        yield f"= days: {(value.not_after - value.not_before) / 86_400:.1f}"

"""Hypothesis strategies for all declared structs, made from the declarations.

`declared(package)` finds the codecs, `values(codec)` draws values of a codec, and the `check_...` functions are
properties that hold for every codec.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from enum import IntEnum
from functools import cache
from types import ModuleType
from typing import Any, TypeVar, cast

import attrs
from hypothesis import assume, settings
from hypothesis import strategies as st

from mimids.mls import code_points, framing, proposals
from mimids.mls.group_info import MLS10_ONLY
from mimids.mls.key_package import KeyPackageIn
from mimids.wire import codec as engine
from mimids.wire import compiled, declare, messages
from mimids.wire.codec import OPAQUE_V, Codec, WireError
from mimids.wire.ids import MASKED_PARTITION_KEY, MLS10, PROVIDER_ID
from mimids.wire.messages import EncodedKeyPackage
from mimids.wire.varint import MLS_MAX

T = TypeVar("T")

a_few = settings(max_examples=max(20, (settings.default or settings()).max_examples // 5))
"""Settings with fewer examples, for properties that are tested on many codecs."""


def _octets(most: int) -> st.SearchStrategy[bytes]:
    """Draw short octet strings, and some of about 64 octets, where the length takes a second octet."""
    short = st.binary(max_size=min(4, most))
    return short if most < 62 else short | st.binary(max_size=min(4, most - 62)).map(lambda tail: bytes(62) + tail)


_OCTETS = _octets(MLS_MAX)
_GIVEN: dict[Codec[Any], st.SearchStrategy[Any]] = {
    MLS10_ONLY: st.just(MLS10),
    MASKED_PARTITION_KEY: st.sampled_from((32, 48, 64)).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    PROVIDER_ID: st.from_regex(r"[a-z]([a-z0-9-]{0,9}[a-z0-9])?(\.[a-z]{1,7}){0,2}", fullmatch=True),
}


def declared(package: ModuleType) -> Iterator[tuple[str, Codec[Any]]]:
    """Yield name and codec of all structs and named codecs in the modules of a package."""
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        for name, thing in vars(module).items():
            if isinstance(thing, type) and thing.__module__ == found.name and declare._CODEC in vars(thing):
                yield name, declare.codec(thing)
            elif isinstance(thing, Codec):
                yield name, thing


def values(by: Codec[T]) -> st.SearchStrategy[T]:
    """Draw values of a codec."""
    return _deferred(by)


@cache  # making a strategy takes longer than drawing from it
def _deferred(by: Codec[Any]) -> st.SearchStrategy[Any]:
    return st.deferred(lambda: _values(by))


# Longer than 40 lines: one case for each codec.
def _values(by: Codec[Any]) -> st.SearchStrategy[Any]:
    if by in _GIVEN:
        return _GIVEN[by]
    match by:
        case engine.Uint():
            return st.integers(0, by.most)
        case engine.Fixed():
            return st.binary(min_size=by.size, max_size=by.size)
        case engine.Opaque():
            return _octets(by.limit)
        case engine._UintVector():
            item = st.integers(0, by._uint.most)
            return st.lists(item, min_size=by._at_least, max_size=min(max(40, by._at_least), by._most)).map(tuple)
        case code_points._CodePoints():
            return st.lists(_code_points(by._cls, 2), max_size=40).map(tuple)
        case engine._Vector():
            return st.lists(values(by._item), min_size=by._at_least, max_size=min(max(2, by._at_least), by._most)).map(
                tuple
            )
        case engine._Optional():
            return st.none() | values(by._item)
        case engine._Nothing():
            return st.none()
        case code_points.CodePoint():
            return _code_points(by.cls, cast("engine.Uint", by.inner).size)
        case engine.Mapped(make=type() as cls) if issubclass(cls, IntEnum):
            return st.sampled_from(list(cls))
        case engine.Mapped():
            return _mapped(by)
        case messages._KeyPackageCodec():
            return values(declare.codec(KeyPackageIn)).map(lambda value: EncodedKeyPackage(value.encoded))
        case messages._RatchetTreeCodec():
            return _OCTETS.map(lambda octets: messages.RatchetTree(OPAQUE_V.encode(octets)))
        case proposals._Ciphertexts():
            return st.lists(values(declare.codec(proposals.HpkeCiphertext)), max_size=3).map(
                lambda each: proposals.Ciphertexts.of(*each)
            )
        case framing._PublicMessage():
            return _public_messages()
        case framing._AuthenticatedContent():
            return _public_messages().map(lambda message: message.authenticated_content())
        case declare.Struct():
            return _structs(by)
    raise NotImplementedError(f"no strategy for {type(by).__name__}")


@st.composite
def _mapped(draw: st.DrawFn, by: engine.Mapped[Any]) -> Any:
    """Draw values of the inner codec that `make` accepts."""
    try:
        return by.make(draw(values(by.inner)))
    except ValueError:
        assume(False)


def _code_points(cls: type[IntEnum], size: int) -> st.SearchStrategy[Any]:
    known = st.sampled_from(list(cls))
    return known | st.integers(0, 256**size - 1).map(cls) if issubclass(cls, code_points.OpenEnum) else known


@st.composite
def _structs(draw: st.DrawFn, by: declare.Struct[Any]) -> Any:
    drawn: dict[str, Any] = {}
    hung_on = {field.on for _, field in by.fields if isinstance(field, compiled.Select)}
    for name, field in by.fields:
        if field is framing.MLS_MESSAGE and name in hung_on:
            drawn[name] = draw(_framed())
        else:
            drawn[name] = draw(values(_choose(field, drawn) if isinstance(field, compiled.Select) else field))
    return by.cls(*drawn.values())


def _choose(field: compiled.Select, drawn: dict[str, Any]) -> Codec[Any]:
    """Return the case for the value of an earlier field; discard the example if there is none."""
    try:
        return field.choose(drawn[field.on])
    except WireError:
        assume(False)
        raise


@cache
def _framed() -> st.SearchStrategy[framing.MLSMessage]:
    """Draw messages with a content type; no other kind of MLSMessage selects a case."""
    public = values(declare.codec(framing.PublicMessage)).map(
        lambda message: framing.MLSMessage(MLS10, code_points.WireFormat.PUBLIC_MESSAGE, message)
    )
    private = values(declare.codec(framing.PrivateMessage)).map(
        lambda message: framing.MLSMessage(MLS10, code_points.WireFormat.PRIVATE_MESSAGE, message)
    )
    return public | private


@st.composite
def _public_messages(draw: st.DrawFn) -> framing.PublicMessage:
    content = draw(values(declare.codec(framing.FramedContent)))
    commit = content.content_type is code_points.ContentType.COMMIT
    member = content.sender.sender_type is code_points.SenderType.MEMBER
    return framing.PublicMessage(
        content, draw(_OCTETS), draw(_OCTETS) if commit else None, draw(_OCTETS) if member else None
    )


def rebuilt(value: T) -> T:
    """Return an equal value without the octets it was decoded from, so that it is encoded from its fields."""
    if isinstance(value, tuple):
        return tuple(map(rebuilt, value))  # type: ignore[return-value]  # a tuple is one
    cls: Any = type(value)
    if not attrs.has(cls):
        return value
    return cast("T", cls(*(rebuilt(getattr(value, field.name)) for field in attrs.fields(cls))))


def has_inferred_end(value: object) -> bool:
    """Tell whether the value has a proposal whose end may be inferred: its type is not in RFC 9420.

    tests/mls/test_extents.py has what must be found of such proposals.
    """
    if isinstance(value, proposals.Proposal) and value.proposal_type not in code_points.DEFAULT_PROPOSALS:
        return True
    if isinstance(value, tuple):
        return any(map(has_inferred_end, value))
    cls: Any = type(value)
    return attrs.has(cls) and any(has_inferred_end(getattr(value, field.name)) for field in attrs.fields(cls))


def check_round_trip(by: Codec[T], value: T) -> bytes:
    """Check that the value decodes to an equal one with the same encoding; return the encoding."""
    encoded = by.encode(value)
    again = by.decode(encoded)
    assert again == value
    assert by.encode(again) == by.encode(rebuilt(again)) == encoded
    return encoded


def check_no_other_length(by: Codec[Any], encoded: bytes) -> None:
    """Check that every proper prefix is refused, and also one octet more."""
    for octets in (*(encoded[:size] for size in range(len(encoded))), encoded + b"\0"):
        try:
            by.decode(octets)
        except WireError:
            continue
        raise AssertionError(f"{len(octets)} of {len(encoded)} octets were read as a whole value")


def check_total(by: Codec[Any], octets: bytes) -> None:
    """Check that octets decode to a value that encodes to them again, or raise `WireError`."""
    try:
        value = by.decode(octets)
    except WireError:
        return
    assert by.encode(rebuilt(value)) == octets

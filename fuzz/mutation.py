"""Mutations by structure: a decoded value with some of its fields changed, so that all lengths around them stay right.

Mutations of octets rarely get past the first length. Here a random place in the value gets another value: an edge of
its range, one that a recording has at a place of the same type, or a changed one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from random import Random
from typing import Any, Final, cast

import attrs

from mimids.mls import code_points, framing, proposals
from mimids.mls.code_points import ComponentId, ExtensionType
from mimids.mls.components import AppDataDictionary, ComponentData, ParticipantList, RolesList
from mimids.mls.framing import FramedContent, PublicMessage
from mimids.mls.group_info import EXTERNAL_SENDERS, ExternalPub, RequiredCapabilities
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.leaf_node import RATCHET_TREE, Extension
from mimids.wire import codec as engine
from mimids.wire import messages
from mimids.wire.codec import Codec, WireError
from mimids.wire.compiled import Select
from mimids.wire.declare import Struct, codec

DEPTH: Final = 8  # of values that are made from nothing
DONORS: Final = 64  # values kept of one type
_NUMBERS: Final = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, (1 << 63) - 1, (1 << 64) - 1)
_MANY: Final = (16, 256, 4096)  # times that an item is repeated: work that is quadratic then takes long
_INSIDE: Final[dict[int, Codec[Any]]] = {
    ExtensionType.RATCHET_TREE: RATCHET_TREE,
    ExtensionType.EXTERNAL_SENDERS: EXTERNAL_SENDERS,
    ExtensionType.REQUIRED_CAPABILITIES: codec(RequiredCapabilities),
    ExtensionType.EXTERNAL_PUB: codec(ExternalPub),
    ExtensionType.APP_DATA_DICTIONARY: codec(AppDataDictionary),
}
_COMPONENTS: Final[dict[int, Codec[Any]]] = {
    ComponentId.PARTICIPANT_LIST: codec(ParticipantList),
    ComponentId.ROLES_LIST: codec(RolesList),
}


class Unmakeable(Exception):
    """No value of this type can be made here."""


class Donors:
    """Values of each type, taken from recordings."""

    def __init__(self) -> None:
        self._values: dict[Codec[Any], dict[Any, None]] = {}

    def pick(self, by: Codec[Any], random: Random) -> Any:
        """Return one of the values of a type; raise `Unmakeable` if there are none."""
        found = self._values.get(by)
        if not found:
            raise Unmakeable
        return random.choice(list(found))

    def structs(self) -> Iterator[tuple[Codec[Any], Any]]:
        """Yield the values that are structs, each with its type."""
        for by, values in self._values.items():
            if isinstance(by, Struct):
                yield from ((by, value) for value in values)

    def add(self, by: Codec[Any], value: Any) -> None:
        """Keep a value and all values inside it."""
        kept = self._values.setdefault(by, {})
        if len(kept) < DONORS:
            kept[value] = None
        match by:
            case engine._Vector():
                for item in value:
                    self.add(by._item, item)
            case engine._Optional():
                if value is not None:
                    self.add(by._item, value)
            case framing._PublicMessage():
                self.add(codec(FramedContent), value.content)
            case Struct():
                for name, field in by.fields:
                    used = field.choose(getattr(value, field.on)) if isinstance(field, Select) else field
                    self.add(used, getattr(value, name))


class Mutator:
    """Changes values, with all choices from one source of randomness."""

    def __init__(self, random: Random, donors: Donors) -> None:
        self._random = random
        self._donors = donors

    def changed(self, by: Codec[Any], value: Any) -> Any:
        """Return a value of this type that usually differs from `value` in one place; raise `Unmakeable`."""
        if self._random.random() < 0.1:
            return self.made(by)
        match by:
            case engine._Vector():
                return self._items(value, lambda: self.made(by._item), lambda item: self.changed(by._item, item))
            case engine._UintVector() | code_points._CodePoints():
                return self._items(value, lambda: self._number(by), lambda _: self._number(by))
            case engine._Optional():
                again = value is not None and self._random.random() < 0.7
                return self.changed(by._item, value) if again else None if value is not None else self.made(by._item)
            case framing._PublicMessage():
                return self._public(self.changed(codec(FramedContent), value.content), value)
            case proposals._Ciphertexts():
                item = codec(proposals.HpkeCiphertext)
                ciphertexts = self._items(
                    value.unpack(), lambda: self.made(item), lambda ciphertext: self.changed(item, ciphertext)
                )
                return proposals.Ciphertexts.of(*ciphertexts)
            case messages._KeyPackageCodec():
                return self._inside(codec(KeyPackageIn), value)
            case messages._RatchetTreeCodec():
                return self._inside(RATCHET_TREE, value)
            case Struct() if isinstance(value, proposals.Unparsed):
                return value  # in place of a structure whose layout it does not have
            case Struct():
                return self._struct(by, value)
            case engine.Opaque():
                if isinstance(value, proposals.Unparsed):
                    return proposals.Unparsed(self._octets(value.octets)[: by.limit])
                return self._octets(value)[: by.limit]
        return self.made(by)

    def made(self, by: Codec[Any], depth: int = DEPTH) -> Any:
        """Return a value of this type: one from the recordings, or one made from nothing; raise `Unmakeable`."""
        if depth == 0:
            raise Unmakeable
        if self._random.random() < 0.7:
            try:
                return self._donors.pick(by, self._random)
            except Unmakeable:
                pass
        match by:
            case engine.Uint():
                return self._number(by)
            case engine.Fixed():
                return self._random.randbytes(by.size)
            case engine.Opaque():
                return self._random.randbytes(self._random.choice((0, 1, 32, 64)))[: by.limit]
            case engine._Nothing():
                return None
            case engine._Optional():
                return None if self._random.random() < 0.5 else self.made(by._item, depth - 1)
            case engine._Vector():
                return tuple(self.made(by._item, depth - 1) for _ in range(self._random.choice((0, 1, 1, 2))))
            case engine._UintVector() | code_points._CodePoints():
                return tuple(self._number(by) for _ in range(self._random.choice((0, 1, 3))))
            case code_points.CodePoint():
                return self._member(by.cls)
            case engine.Mapped():
                return self._mapped(by, depth)
            case Struct():
                return self._made_struct(by, depth)
        return self._donors.pick(by, self._random)

    def _mapped(self, by: engine.Mapped[Any], depth: int) -> Any:
        try:
            return by.make(self.made(by.inner, depth - 1))
        except ValueError:
            raise Unmakeable from None

    def _made_struct(self, by: Struct[Any], depth: int) -> Any:
        made: dict[str, Any] = {}
        for name, field in by.fields:
            try:
                used = field.choose(made[field.on]) if isinstance(field, Select) else field
            except WireError:
                raise Unmakeable from None
            made[name] = self.made(used, depth - 1)
        return by.cls(*made.values())

    def _struct(self, by: Struct[Any], value: Any) -> Any:
        """Change one field, and make those anew whose type depends on it and is another one now."""
        if not by.fields:
            return value
        if isinstance(value, Extension) and value.extension_type in _INSIDE and self._random.random() < 0.8:
            return attrs.evolve(
                cast("Any", value), extension_data=self._inside(_INSIDE[value.extension_type], value.extension_data)
            )
        if isinstance(value, ComponentData) and value.component_id in _COMPONENTS and self._random.random() < 0.8:
            return attrs.evolve(cast("Any", value), data=self._inside(_COMPONENTS[value.component_id], value.data))
        wanted = self._random.randrange(len(by.fields))
        made: dict[str, Any] = {}
        for at, (name, field) in enumerate(by.fields):
            now = getattr(value, name)
            used = before = field
            try:
                if isinstance(field, Select):
                    used, before = field.choose(made[field.on]), field.choose(getattr(value, field.on))
            except WireError:
                raise Unmakeable from None
            assert isinstance(used, Codec)
            made[name] = self.made(used) if used is not before else self.changed(used, now) if at == wanted else now
        return by.cls(*made.values())

    def _public(self, content: FramedContent, value: PublicMessage) -> PublicMessage:
        """Return a message with this content, which decides what tags there are."""
        commit = content.content_type is code_points.ContentType.COMMIT
        member = content.sender.sender_type is code_points.SenderType.MEMBER
        tag = value.confirmation_tag or value.membership_tag or bytes(32)
        return PublicMessage(content, value.signature, tag if commit else None, tag if member else None)

    def _inside(self, by: Codec[Any], octets: bytes) -> bytes:
        """Change the encoded value in octets; the octets themselves if they are none."""
        try:
            return by.encode(self.changed(by, by.decode(octets)))
        except WireError:
            return self._octets(octets)

    def _items(self, items: tuple[Any, ...], make: Callable[[], Any], change: Callable[[Any], Any]) -> tuple[Any, ...]:
        found = list(items)
        at = self._random.randrange(len(found) + 1)
        what = self._random.random()
        if what < 0.5 and at < len(found):
            found[at] = change(found[at])
        elif what < 0.65 and at < len(found):
            del found[at]
        elif what < 0.8 and at < len(found):
            found.insert(self._random.randrange(len(found) + 1), found[at])
        elif what < 0.9:
            self._random.shuffle(found)
        elif what < 0.94 and at < len(found):
            found[at:at] = [found[at]] * self._random.choice(_MANY)
        else:
            found.insert(at, make())
        return tuple(found)

    def _number(self, by: Codec[Any]) -> Any:
        if isinstance(by, engine.Uint):
            return min(by.most, self._random.choice((*_NUMBERS, self._random.randrange(1 << 16))))
        if isinstance(by, code_points._CodePoints):
            return self._member(by._cls)
        assert isinstance(by, engine._UintVector)
        return self._number(by._uint)

    def _member(self, cls: type[IntEnum]) -> IntEnum:
        return self._random.choice(list(cls))

    def _octets(self, octets: bytes) -> bytes:
        at = self._random.randrange(len(octets) + 1)
        what = self._random.randrange(4)
        if what == 0:
            return octets[:at]
        if what == 1:
            return octets + self._random.randbytes(self._random.randrange(1, 33))
        if what == 2:
            return b""
        return octets[:at] + self._random.randbytes(1) + octets[at + 1 :]


def swollen(octets: bytes, most: int, random: Random) -> bytes:
    """Return octets in which one short piece occurs again and again: work that is quadratic then takes long."""
    if not octets:
        return octets
    start = random.randrange(len(octets))
    piece = octets[start : start + random.randrange(1, 17)]
    times = (most - len(octets)) // len(piece)
    return octets[:start] + piece * max(0, times) + octets[start:]

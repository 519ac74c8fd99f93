"""Decoders of declared structures: of the wire format, of frames, and of MLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final

import mimids.mls
import mimids.wire
from fuzz import recordings
from fuzz.mutation import Donors
from fuzz.target import Shape, Target
from mimids.mls.code_points import SenderType
from mimids.mls.framing import MLS_MESSAGE, MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.knowledge import NotKnown, judge
from mimids.mls.rules.verdict import Invalid
from mimids.mls.suites import SUITES
from mimids.policy.rules import Case, refusals
from mimids.values import Follower
from mimids.wire.codec import Codec, WireError
from mimids.wire.declare import codec
from mimids.wire.ids import ProviderId
from mimids.wire.messages import Frame
from tests.support.strategies import declared, rebuilt
from tests.support.wire_examples import EXAMPLES

Table = tuple[tuple[str, Codec[Any]], ...]


def table(*packages: ModuleType) -> Table:
    """Return the codecs in the modules of packages, with their names and in the order of these."""
    found = {name: by for package in packages for name, by in declared(package)}
    return tuple(sorted(found.items()))


WIRE: Final = table(mimids.wire)
MLS: Final = table(mimids.mls)
_SENDER: Final = Follower(ProviderId("b.example"))


def decoded(by: Codec[Any], octets: bytes) -> Any:
    """Decode octets, and check that they are the only encoding of the value; None if they are not valid."""
    try:
        value = by.decode(octets)
    except WireError:
        return None
    again = by.encode(rebuilt(value))
    assert again == octets, f"encodes to {again.hex()}"
    return value


def _chosen(found: Table, octets: bytes) -> Codec[Any]:
    return found[octets[0] % len(found)][1]


def _table_target(name: str, found: Table, seeds: Callable[[], Iterator[tuple[Codec[Any], bytes]]]) -> Target:
    """Return a target for many codecs; the first octet of an input chooses one."""
    numbers = {id(by): at for at, (_, by) in reversed(list(enumerate(found)))}

    def run(octets: bytes) -> None:
        if octets:
            decoded(_chosen(found, octets), octets[1:])

    def shape(octets: bytes) -> Shape | None:
        return (1, _chosen(found, octets)) if octets else None

    def inputs() -> Iterator[bytes]:
        for by, encoded in seeds():
            if id(by) in numbers:
                yield bytes([numbers[id(by)]]) + encoded

    return Target(name=name, run=run, seeds=inputs, shape=shape)


def _wire_seeds() -> Iterator[tuple[Codec[Any], bytes]]:
    for value, written in EXAMPLES:
        yield codec(type(value)), bytes.fromhex(written.replace(" ", ""))
    for message in recordings.messages():
        if isinstance(message.message, KeyPackageIn):
            yield codec(KeyPackageIn), message.message.encoded


def _mls_seeds() -> Iterator[tuple[Codec[Any], bytes]]:
    kept = Donors()
    for message in recordings.messages():
        kept.add(MLS_MESSAGE, message)
    return ((by, by.encode(value)) for by, value in kept.structs())


def _run_frame(octets: bytes) -> None:
    decoded(codec(Frame), octets)


def _frame_seeds() -> Iterator[bytes]:
    return (bytes.fromhex(written.replace(" ", "")) for value, written in EXAMPLES if isinstance(value, Frame))


def _run_message(octets: bytes) -> None:
    message = decoded(MLS_MESSAGE, octets)
    if not isinstance(message, MLSMessage) or not isinstance(message.message, PublicMessage | PrivateMessage):
        return
    group_id, epoch = message.group_id, message.epoch
    for suite in (None, SUITES[1], SUITES[2]):
        found = judge(NotKnown(epoch, group_id, suite), message)
        if isinstance(found.verdict, Invalid):
            str(found.verdict)
    case = Case(message, NotKnown(epoch, group_id, SUITES[1]))
    for refusal in refusals(case, _SENDER):
        str(refusal)
    if isinstance(message.message, PublicMessage):
        covers = message.message.content.sender.sender_type in (SenderType.MEMBER, SenderType.NEW_MEMBER_COMMIT)
        context = b"context"
        assert message.message.authenticated_content().tbs(context).endswith(context) or not covers


TARGETS: Final = (
    _table_target("wire", WIRE, _wire_seeds),
    Target(name="frames", run=_run_frame, seeds=_frame_seeds, shape=lambda _: (0, codec(Frame))),
    _table_target("mls", MLS, _mls_seeds),
    Target(name="messages", run=_run_message, seeds=recordings.octets, shape=lambda _: (0, MLS_MESSAGE), most=8192),
)

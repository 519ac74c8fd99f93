"""Prints docs/octets.md: an example of each body and each frame of a device, field by field in octets.

The MLS objects are shortened: their octets have the right form, but keys and ciphertexts of a few octets only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final

import attrs

from docs.generate.markers import fill
from mimids.http.api.devices import DEVICES
from mimids.http.api.endpoints import AnyEndpoint
from mimids.mls.framing import MLS_MESSAGE, MLSMessage
from mimids.wire import codec as engine
from mimids.wire import messages, varint
from mimids.wire.codec import NOTHING, Codec
from mimids.wire.compiled import Select
from mimids.wire.declare import codec, decode
from mimids.wire.ids import (
    MLS10,
    BearerToken,
    CipherSuite,
    Counter,
    GroupId,
    KeyPackageRef,
    PartitionKey,
    ProviderId,
    UserId,
)
from mimids.wire.messages import (
    Ack,
    CaughtUp,
    CommitData,
    CommitHint,
    CreateGroupRequest,
    EncodedKeyPackage,
    Epoch,
    ExternalJoinRequest,
    ExternalProposalRequest,
    Frame,
    FrameType,
    GroupInfoBundle,
    GroupInfoRequest,
    GroupInfoResponse,
    Heartbeat,
    InboxWelcome,
    KeyPackageBundleRequest,
    KeyPackageBundleResponse,
    KeyPackageRequest,
    KeyPackageResponse,
    KeyPackageResult,
    KeyPackageStatus,
    Message,
    Messages,
    Position,
    PositionsRequest,
    PositionsResponse,
    Present,
    PushedEpoch,
    RatchetTree,
    ReceiveRequest,
    ReceiveResponse,
    Result,
    Send,
    SendRequest,
    SendResponse,
    SendResult,
    SendStatus,
    SiblingsRequest,
    Stock,
    WelcomeData,
    WelcomeState,
    WelcomeStatus,
    WelcomeStatusRequest,
    WelcomeStatusResponse,
    Withdraw,
)

WIDTH: Final = 32  # octets in a line
NAME_COLUMNS: Final = 38
_INDENT: Final = "  "
_VECTOR: Final = re.compile(r"\w+ (\w+)<V>")
_KEPT_WHOLE: Final = {
    MLS_MESSAGE: lambda value: value.encoded,
    messages.KEY_PACKAGE: bytes,
    messages.RATCHET_TREE: bytes,
}

# --- the values of the examples -----------------------------------------------------------------------------------

SUITE: Final = CipherSuite(1)
HUB: Final = ProviderId("a.example")
OTHER: Final = ProviderId("b.example")
BOB: Final = UserId(b"mimi://b.example/u/bob")
GROUP: Final = GroupId(b"mimi://a.example/g/1")
TOKEN: Final = BearerToken(bytes(range(0x80, 0xA0)))
KEY: Final = PartitionKey(bytes(range(0x10)))
NEXT_KEY: Final = PartitionKey(bytes(range(0x10, 0x20)))
MASK: Final = KEY.mask(32)
NEXT_MASK: Final = NEXT_KEY.mask(32)
REF: Final = KeyPackageRef(bytes(range(0x20, 0x40)))
TREE: Final = RatchetTree(b"\x03\x00\x00\x00")  # three blank nodes
ACCEPTED_AT: Final = 1_795_514_400_000
PROBLEM: Final = (
    b'{"epoch":8,"type":"urn:mimids:problem:wrong-epoch","title":"wrong epoch","status":409,"detail":"wrong epoch"}'
)
_GROUP_HEX: Final = f"14 {GROUP.hex()} 0000000000000007"


def _mls(text: str) -> MLSMessage:
    return decode(MLSMessage, bytes.fromhex(text))


APPLICATION: Final = _mls(f"0001 0002 {_GROUP_HEX} 01 00 04 a0a1a2a3 06 b0b1b2b3b4b5")
COMMIT: Final = _mls(f"0001 0002 {_GROUP_HEX} 03 00 04 c0c1c2c3 06 d0d1d2d3d4d5")
EXTERNAL_COMMIT: Final = _mls(f"0001 0001 {_GROUP_HEX} 04 00 03 00 00 02 7369 02 6374")
EXTERNAL_PROPOSAL: Final = _mls(f"0001 0001 {_GROUP_HEX} 02 00000000 00 02 0003 00000001 02 7369")
SELF_REMOVE: Final = _mls(f"0001 0001 {_GROUP_HEX} 01 00000003 00 02 000a 02 7369 02 6d74")
WELCOME: Final = _mls(f"0001 0003 0001 27 20 {REF.hex()} 02 6b65 02 6374 04 e0e1e2e3")
GROUP_INFO: Final = _mls(f"0001 0004 0001 0001 {_GROUP_HEX} 02 7468 02 6368 00 00 02 6374 00000000 02 7369")
KEY_PACKAGE: Final = EncodedKeyPackage(
    bytes.fromhex(
        "0001 0001 02 696b 02 656b 02 736b 0001 16"
        + BOB.hex()
        + "02 0001 02 0001 00 00 02 0001 01 0000000067e00000 0000000069c20000 00 02 6c73 00 02 6b73"
    )
)
REQUEST: Final = KeyPackageRequest(BOB, TOKEN, MLS10, SUITE)
COMMIT_DATA: Final = CommitData(NEXT_KEY, None, WelcomeData(WELCOME, (OTHER,)))
SENT: Final = SendRequest(APPLICATION, KEY, None)
COMMITTED: Final = SendRequest(COMMIT, KEY, COMMIT_DATA)
ACCEPTED: Final = SendResponse(Counter(5), ACCEPTED_AT, MASK, 0, ())
OUTCOMES: Final = (SendResult(SendStatus.ACCEPTED, ACCEPTED), SendResult(SendStatus.REFUSED, PROBLEM))
EPOCH: Final = Epoch((Message(APPLICATION, None), Message(COMMIT, CommitHint(NEXT_MASK, None))))
POSITION_NOT_SAID: Final = Position(0, Counter(0), Counter(0), 0, ())

# A title, the codec of the value, and the value.
Example = tuple[str, Codec[Any], Any]


def _of(value: object, title: str = "") -> Example:
    return title or type(value).__name__, codec(type(value)), value


SEALED: Final = (
    _of(REQUEST),
    _of(KeyPackageResponse(KEY_PACKAGE)),
    _of(KeyPackageBundleRequest((REQUEST, REQUEST))),
    _of(
        KeyPackageBundleResponse(
            (KeyPackageResult(KeyPackageStatus.OK, KEY_PACKAGE), KeyPackageResult(KeyPackageStatus.EXHAUSTED, None))
        )
    ),
)
# By the name of the endpoint: requests and answers that are `application/mimi-ds`.
BODIES: Final[dict[str, tuple[Example, ...]]] = {
    "key-packages": (("KeyPackage key_packages<V>", messages.KEY_PACKAGES, (KEY_PACKAGE, KEY_PACKAGE)),),
    "siblings": (
        _of(SiblingsRequest(MLS10, SUITE)),
        _of(KeyPackageBundleResponse((KeyPackageResult(KeyPackageStatus.OK, KEY_PACKAGE),))),
    ),
    "create-group": (
        _of(CreateGroupRequest(GROUP, MLS10, SUITE, KEY, GROUP_INFO, TREE, None)),
        _of(CreateGroupRequest(GROUP, MLS10, SUITE, KEY, None, None, None), "CreateGroupRequest, the shortest"),
    ),
    "hub-send": (
        _of(SENT, "SendRequest, an application message"),
        _of(COMMITTED, "SendRequest, a commit"),
        _of(ACCEPTED),
    ),
    "hub-send-batch": (
        ("SendRequest requests<V>", messages.SEND_REQUESTS, (SENT, COMMITTED)),
        ("SendResult results<V>", messages.SEND_RESULTS, OUTCOMES),
    ),
    "hub-receive": (_of(ReceiveRequest(KEY, Counter(5))), _of(ReceiveResponse(EPOCH, ()))),
    "positions": (
        _of(PositionsRequest((KEY, NEXT_KEY))),
        _of(PositionsResponse((Position(1, Counter(2), Counter(5), 0, (NEXT_MASK,)), POSITION_NOT_SAID))),
    ),
    "hub-join": (_of(ExternalJoinRequest(EXTERNAL_COMMIT, CommitData(NEXT_KEY, GROUP_INFO, None))), _of(ACCEPTED)),
    "hub-propose": (_of(ExternalProposalRequest(EXTERNAL_PROPOSAL, None)), _of(ACCEPTED)),
    "hub-group-info": (
        _of(GroupInfoRequest(GROUP)),
        _of(GroupInfoResponse(GROUP_INFO, TREE)),
        _of(GroupInfoBundle(GroupInfoResponse(GROUP_INFO, None), (SELF_REMOVE,)), "GroupInfoBundle, with ?bundle"),
    ),
    "hub-welcome-status": (
        _of(WelcomeStatusRequest(NEXT_KEY)),
        _of(WelcomeStatusResponse((WelcomeStatus(REF, WelcomeState.WAITING, b"busy"),))),
    ),
    "welcomes": (("InboxWelcome welcomes<V>", messages.INBOX_WELCOMES, (InboxWelcome(6, HUB, WELCOME),)),),
}
PUSHED: Final = PushedEpoch(GROUP, MASK, Counter(5), None, EPOCH)
FRAMES: Final = (
    Frame(1, FrameType.PRESENT, Present(HUB, (ReceiveRequest(KEY, Counter(5)),))),
    Frame(2, FrameType.WITHDRAW, Withdraw((KEY,))),
    Frame(3, FrameType.SEND, Send(HUB, (SENT,))),
    Frame(4, FrameType.ACK, Ack((6,))),
    Frame(3, FrameType.RESULT, Result(OUTCOMES[:1])),
    Frame(0, FrameType.MESSAGES, Messages(HUB, PUSHED)),
    Frame(0, FrameType.WELCOME, InboxWelcome(6, HUB, WELCOME)),
    Frame(0, FrameType.STOCK, Stock(MLS10, SUITE, 4)),
    Frame(1, FrameType.PROBLEM, PROBLEM),
    Frame(8, FrameType.HEARTBEAT, Heartbeat()),
    Frame(9, FrameType.CAUGHT_UP, CaughtUp((OTHER,))),
)


def every_example() -> Iterator[Example]:
    """Return all examples of the document, in order."""
    yield from SEALED
    for row in DEVICES:
        yield from BODIES.get(row.name, ())
    yield from map(_of, FRAMES)


# --- printing -----------------------------------------------------------------------------------------------------


def bodies() -> str:
    """Return the examples of bodies in Markdown, by endpoint."""
    parts = ["### Inside a sealed request and its answer\n", *map(_example, SEALED)]
    for row in DEVICES:
        if row.name in BODIES:
            parts += [f"### `{row.method} {row.path}`\n", *map(_example, BODIES[row.name])]
    return "\n".join(parts)


def frames() -> str:
    """Return the examples of frames in Markdown."""
    return "\n".join(f"### `{each.type.name.lower()}`\n\n{_block(*_of(each)[1:])}" for each in FRAMES)


def written(text: str) -> str:
    """Return the document with its printed parts replaced; see `markers.fill`."""
    return fill(text, {"bodies": bodies, "frames": frames})


def has_octets(row: AnyEndpoint) -> bool:
    """Tell whether a body of an endpoint needs an example here."""
    both = (row.request_body, row.answer_body)
    return any(body is not None and body.media_type == "application/mimi-ds" for body in both)


def line(name: str, octets: bytes, note: str = "") -> str:
    """Return a name, octets in hex on as many lines as needed, and a note at the end."""
    pieces = [octets[at : at + WIDTH].hex() for at in range(0, len(octets), WIDTH)] or [""]
    lines = [name.ljust(NAME_COLUMNS) + pieces[0], *(" " * NAME_COLUMNS + piece for piece in pieces[1:])]
    lines[-1] += f"  // {note}" if note else ""
    return "\n".join(each.rstrip() for each in lines)


def _example(example: Example) -> str:
    title, how, value = example
    vector = _VECTOR.fullmatch(title)
    return f"{title}:\n\n{_block(how, value, vector[1] if vector else '')}"


def _block(how: Codec[Any], value: object, name: str = "") -> str:
    return "```text\n" + "\n".join(_rows(how, value, name, 0)) + "\n```\n"


def _rows(how: Codec[Any], value: Any, name: str, depth: int) -> Iterator[str]:
    """Yield the lines of one value; all octets in them, in order, are its encoding."""
    label = _INDENT * depth + name
    if how in _KEPT_WHOLE:
        octets = _KEPT_WHOLE[how](value)
        yield line(label, octets, f"{len(octets)} octets")
    elif isinstance(how, engine._Optional):
        yield line(label, bytes([value is not None]), "absent" if value is None else "present")
        if value is not None:
            yield from _rows(how._item, value, name, depth + 1)
    elif isinstance(how, engine._Vector):
        block = b"".join(map(how._item.encode, value))
        count = f"{len(value)} item{'s' * (len(value) != 1)}"
        yield line(f"{label}<V>", varint.mls(len(block)), f"{count}, {len(block)} octets")
        for index, item in enumerate(value):
            yield from _rows(how._item, item, f"{name}[{index}]", depth + 1)
    elif attrs.has(type(value)) and codec(type(value)) is how:
        if name:
            yield label
        yield from _fields(value, depth + bool(name))
    elif how is not NOTHING:
        yield _leaf(how, value, label)


def _fields(value: Any, depth: int) -> Iterator[str]:
    for field in attrs.fields(type(value)):
        declared = field.metadata["wire"]
        if isinstance(declared, Select):
            declared = declared.choose(getattr(value, declared.on))
        yield from _rows(declared, getattr(value, field.name), field.name, depth)


def _leaf(how: Codec[Any], value: Any, label: str) -> str:
    octets = how.encode(value)
    inner = how
    while isinstance(inner, engine.Mapped):
        inner = inner.inner
    if isinstance(inner, engine.Opaque):
        _, start = varint.read_mls(octets, 0, len(octets))
        text = octets[start:].decode("ascii", "replace")
        short = 0 < len(text) <= WIDTH and text.isascii() and text.isprintable()
        return line(f"{label}<V>", octets, f'"{text}"' if short else f"{len(octets) - start} octets")
    if isinstance(value, IntEnum):
        return line(label, octets, value.name.lower())
    return line(label, octets, f"{value:,}" if isinstance(inner, engine.Uint) else "")

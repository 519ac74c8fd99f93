"""Messages with a proposal whose body is not delimited: where they end, alone and among other octets."""

from __future__ import annotations

import sys
import tracemalloc
from random import Random
from types import FrameType
from typing import Any

import pytest

from mimids.mls import extents
from mimids.mls.code_points import ProposalOrRefType, ProposalType, SenderType
from mimids.mls.extents import end_of_message
from mimids.mls.framing import MLS_MESSAGE, MLSMessage, PublicMessage, Sender
from mimids.mls.proposals import Add, Commit, ExternalInit, Proposal, ProposalOrRef, ProposalRef, Remove, Unparsed
from mimids.wire.codec import OPAQUE_V, WireError
from mimids.wire.declare import codec, decode, encode
from mimids.wire.ids import PartitionKey
from mimids.wire.messages import SEND_REQUESTS, Epoch, ExternalProposalRequest, Message, SendRequest
from tests.support.signing import Client, Room, by_reference, by_value, crowd
from tests.support.strategies import rebuilt

KEY = PartitionKey(bytes(range(16)))
BODIES = {
    "empty": b"",
    "one octet": b"\x07",
    "fixed size": bytes.fromhex("0022 00000001"),
    "with a signature inside": b"\x40\x40" + bytes(64) + b"\x20" + bytes(32) + b"\x00",
    "with a message header inside": bytes.fromhex("00010002") * 3,
    "long": bytes(range(256)) * 8,
}


def rooms() -> list[Any]:
    return [pytest.param(suite, id=f"suite {suite}") for suite in range(1, 8)]


def sent(room: Room, body: bytes, code: int = 0xF003, **changed: Any) -> MLSMessage:
    return room.propose(1, Proposal(ProposalType(code), Unparsed(body)), **changed)


def body_of(message: MLSMessage) -> object:
    assert isinstance(message.message, PublicMessage)
    content = message.message.content.content
    assert isinstance(content, Proposal)
    return content.body


@pytest.mark.parametrize("suite", rooms())
@pytest.mark.parametrize("body", BODIES)
def test_the_end_of_an_unknown_body_is_found_in_every_suite_and_place(suite: int, body: str) -> None:
    room = crowd(2, suite=suite)
    message, other = sent(room, BODIES[body]), room.propose(0, Remove(1))
    read = MLS_MESSAGE.decode(message.encoded)
    assert body_of(read) == Unparsed(BODIES[body])
    assert rebuilt(read).encoded == message.encoded
    request = SendRequest(message, KEY, None)
    assert decode(SendRequest, encode(request)) == SendRequest(read, KEY, None)
    batch = (request, SendRequest(other, KEY, None), request)
    assert [each.message.encoded for each in SEND_REQUESTS.decode(SEND_REQUESTS.encode(batch))] == [
        each.message.encoded for each in batch
    ]
    epoch = Epoch((Message(message, None), Message(message, None), Message(other, None), Message(message, None)))
    again = decode(Epoch, encode(epoch))
    assert [each.message.encoded for each in again.messages] == [each.message.encoded for each in epoch.messages]


@pytest.mark.parametrize("body", ["one octet", "fixed size"])
def test_an_end_that_parses_by_chance_is_not_taken(body: str) -> None:
    """With one octet of 7 as body, an opaque<V> ends within the signature, and the next octet is taken for a length."""
    octets = sent(crowd(2, suite=1), BODIES[body]).encoded
    at = octets.index(b"\x40\x40", octets.index(b"\xf0\x03"))
    random = Random(2)
    for _ in range(3000):
        message = octets[: at + 2] + random.randbytes(64) + b"\x20" + random.randbytes(32)
        assert body_of(MLS_MESSAGE.decode(message)) == Unparsed(BODIES[body])


@pytest.mark.parametrize("suite", rooms())
def test_proposals_of_external_senders_end_in_their_signature(suite: int) -> None:
    room = crowd(2, suite=suite)
    outsider = Client.of(9, suite=suite)
    unknown = Proposal(ProposalType(0xF003), Unparsed(b""))
    message = room.propose(Sender(SenderType.EXTERNAL, 0), unknown, by=outsider.signer)
    assert body_of(MLS_MESSAGE.decode(message.encoded)) == Unparsed(b"")
    for partition in (None, room.suite.hash(b"key")):
        request = ExternalProposalRequest(message, partition)  # type: ignore[arg-type]
        assert encode(decode(ExternalProposalRequest, encode(request))) == encode(request)
        assert decode(ExternalProposalRequest, encode(request)).partition == partition


def test_an_opaque_body_is_read_as_before() -> None:
    room = crowd(2)
    message = room.propose(1, b"custom")
    assert body_of(MLS_MESSAGE.decode(message.encoded)) == b"custom"


def test_a_type_of_a_draft_may_have_another_layout() -> None:
    """An AppDataUpdate or SelfRemove that is sent as a custom proposal: in one opaque<V>."""
    room = crowd(2)
    for code in (ProposalType.APP_DATA_UPDATE, ProposalType.SELF_REMOVE, ProposalType.APP_EPHEMERAL):
        for inner in (b"", b"\x00\x22\x01\x03abc"):
            if code is ProposalType.APP_EPHEMERAL and not inner:
                continue
            message = sent(room, OPAQUE_V.encode(inner), code)
            read = MLS_MESSAGE.decode(message.encoded)
            assert body_of(read) == Unparsed(OPAQUE_V.encode(inner))
            assert rebuilt(read).encoded == message.encoded


def test_a_message_that_ends_like_no_suite_is_malformed() -> None:
    room = crowd(2)
    octets = sent(room, b"\xff\xff").encoded
    for damaged in (octets[:-1], octets + b"\0", octets[:-33] + b"\x1f" + octets[-32:]):
        with pytest.raises(WireError):
            MLS_MESSAGE.decode(damaged)


def test_a_message_that_would_end_elsewhere_among_others_is_refused() -> None:
    """A follower would read two messages where the hub sequenced one."""
    room = crowd(2)
    ending = b"\x40\x40" + bytes(64) + b"\x20" + bytes(32)
    for inside in (ending + bytes.fromhex("00010002"), ending + bytes(16) + bytes.fromhex("00010001")):
        message = sent(room, b"\xff\xff" + inside)
        with pytest.raises(WireError):
            MLS_MESSAGE.decode(message.encoded)
        with pytest.raises(WireError):
            decode(SendRequest, encode(SendRequest(message, KEY, None)))


def commit_of(*items: ProposalOrRef) -> Commit:
    return codec(Commit).decode(encode(Commit(items, None)))


def unparsed(body: bytes, code: int = 0xF003) -> ProposalOrRef:
    return ProposalOrRef(ProposalOrRefType.PROPOSAL, Proposal(ProposalType(code), Unparsed(body)))


REMOVE, REF = by_value(Remove(1)), by_reference(ProposalRef(bytes(range(32))))


@pytest.mark.parametrize(
    "items",
    [
        (unparsed(b""),),
        (unparsed(b""), REMOVE, REF),
        (REF, unparsed(b""), unparsed(b"", 0xF004), REMOVE),
        (by_value(ExternalInit(bytes(32))), unparsed(b""), REF),
        (by_value(b"custom"), REMOVE, REF, by_value(b"")),
        (unparsed(OPAQUE_V.encode(b"\x00\x22\x01\x03abc"), ProposalType.APP_DATA_UPDATE), REMOVE),
    ],
)
def test_unknown_proposals_in_a_commit_are_delimited(items: tuple[ProposalOrRef, ...]) -> None:
    assert commit_of(*items).proposals == items


def test_an_unknown_proposal_whose_end_is_not_found_takes_the_rest_of_the_list() -> None:
    body = bytes.fromhex("ffffffff")
    found = commit_of(REMOVE, unparsed(body), REF)
    assert found.proposals == (REMOVE, unparsed(body + encode(REF)))
    assert encode(found) == encode(Commit((REMOVE, unparsed(body), REF), None))


def test_an_attempt_that_fails_within_a_vector_does_not_shorten_the_list() -> None:
    """The empty layout fails in the extensions of a proposal, which end before the list does."""
    cut_short = OPAQUE_V.encode(b"\xf0\x01\x41")
    proposals = encode(unparsed(b"")) + bytes.fromhex("010007") + cut_short + bytes(40)
    octets = OPAQUE_V.encode(proposals) + b"\x00"
    assert encode(codec(Commit).decode(octets)) == octets


def test_a_list_of_known_proposals_that_does_not_parse_is_malformed() -> None:
    octets = encode(Commit((REMOVE, by_value(Add(Client.of(3).key_package()))), None))
    for damaged in (octets[:2] + b"\x03" + octets[3:], octets[:-1] + b"\x02"):
        with pytest.raises(WireError):
            codec(Commit).decode(damaged)


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize(
    "unit",
    ["00010001", "0001000130", "000100011030", "00010001403030", "000100014040", "4040", "1030", "00010001082030"],
)
def test_hostile_octets_take_few_steps_each(unit: str, tagged: bool) -> None:
    """Many messages seem to begin, or many signatures to end, within the body."""
    body = (bytes.fromhex(unit) * 4096)[:4096]
    data = body + b"\x40\x40" + bytes([7] * 64) + (b"\x20" + bytes([7] * 32)) * tagged
    steps = 0

    def count(frame: FrameType | None, event: str, argument: object) -> None:
        nonlocal steps
        steps += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        end_of_message(data, 0, len(data), tagged=tagged, declared=None)
    finally:
        sys.setprofile(before)
    assert steps < 30 * len(data)


def test_hostile_octets_take_little_memory() -> None:
    """A signature seems to begin at each octet."""
    data = b"\x40" * (1 << 20)
    tracemalloc.start()
    try:
        end_of_message(data, 0, len(data), tagged=True, declared=None)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("unit", ["00010001" + "30" * 8, "000100014040", "0001000120" + "20" * 32])
def test_octets_near_many_ends_are_searched_for_signatures_once(
    unit: str, tagged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message of 12 KiB took 60 ms of the event loop, because each of 2,000 places was searched anew."""
    pattern, searched = extents._SIGNATURE, 0

    class Counting:
        def finditer(self, data: bytes, start: int, stop: int) -> Any:
            nonlocal searched
            searched += min(stop, len(data)) - start
            return pattern.finditer(data, start, stop)

    monkeypatch.setattr(extents, "_SIGNATURE", Counting())
    data = bytes.fromhex(unit) * 1000 + b"\x40\x40" + bytes([7] * 64) + (b"\x20" + bytes([7] * 32)) * tagged
    end_of_message(data, 0, len(data), tagged=tagged, declared=None)
    assert searched <= 5 * len(data)

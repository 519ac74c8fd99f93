"""Cutting a push into parts."""

from __future__ import annotations

import attrs

from mimids.ds.following.slices import (
    COST_OF_A_HANDSHAKE,
    COST_OF_A_KIB,
    COST_OF_A_PART,
    COST_OF_AN_EPOCH,
    parts_of,
)
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.wire.ids import MLS10, PartitionKey
from mimids.wire.messages import Epoch, GroupInfoResponse, Message
from tests.support.federation import Room
from tests.support.followers import HUB, epoch
from tests.support.signing import crowd


def test_parts_have_a_bounded_cost_and_lose_nothing() -> None:
    room = Room(hub=HUB)
    epochs = [
        epoch(room, room.key, ["x"] * 10_000),
        *(epoch(room, PartitionKey(n.to_bytes(16, "big")), []) for n in range(3000)),
    ]
    epochs += [epoch(room, room.key, ["c"] * 600, next_key=room.key)]
    parts = list(parts_of(epochs))
    assert max(sum(len(piece.epoch.messages) for _, piece in part) for part in parts) <= COST_OF_A_PART
    for number, each in enumerate(epochs):
        pieces = [piece for part in parts for n, piece in part if n == number]
        assert tuple(m for piece in pieces for m in piece.epoch.messages) == each.epoch.messages
        assert [piece.counter for piece in pieces] == [
            each.counter + sum(len(before.epoch.messages) for before in pieces[:n]) for n in range(len(pieces))
        ]


def test_large_public_messages_are_in_parts_of_their_own_and_no_piece_is_without_messages() -> None:
    """A piece without messages would say that the hub keeps nothing before its counter."""
    room, signed = Room(hub=HUB), crowd(2)
    large = tuple(Message(signed.propose(0, bytes(size)), None) for size in (400_000, 1000, 400_000, 100, 300_000))
    pushed = attrs.evolve(epoch(room, room.key, [], 7), epoch=Epoch(large))  # type: ignore[misc]
    pieces = [piece for part in parts_of([pushed]) for _, piece in part]
    assert [(piece.counter, len(piece.epoch.messages)) for piece in pieces] == [
        (7, 1),
        (8, 1),
        (9, 1),
        (10, 1),
        (11, 1),
    ]
    assert all(len(part) == 1 for part in parts_of([pushed, pushed]))


def test_a_part_is_filled_to_its_bound() -> None:
    room, signed = Room(hub=HUB), crowd(2)
    fit = COST_OF_A_PART - COST_OF_AN_EPOCH
    half = COST_OF_A_PART // 2 - COST_OF_AN_EPOCH

    def sizes(*numbers: int) -> list[list[int]]:
        """Return how many messages the pieces of each part have, for epochs of so many application messages."""
        parts = parts_of([epoch(room, room.key, ["x"] * number) for number in numbers])
        return [[len(piece.epoch.messages) for _, piece in part] for part in parts]

    assert sizes(fit) == [[fit]]
    assert sizes(fit + 1) == [[fit], [1]]
    assert sizes(half, half) == [[half, half]]
    assert sizes(half, half + 1) == [[half], [half + 1]]

    large = Message(signed.propose(0, bytes(150_000)), None)
    cost = COST_OF_A_HANDSHAKE + len(large.message.encoded) * COST_OF_A_KIB // 1024
    for more, pieces in ((0, 1), (1, 2)):
        pushed = epoch(room, room.key, ["x"] * (fit - cost + more))
        pushed = attrs.evolve(pushed, epoch=Epoch((large, *pushed.epoch.messages)))  # type: ignore[misc]
        assert sum(len(part) for part in parts_of([pushed])) == pieces


def test_only_the_first_piece_of_an_epoch_has_its_opening() -> None:
    room, signed = Room(hub=HUB), crowd(2)
    opening = GroupInfoResponse(MLSMessage(MLS10, WireFormat.GROUP_INFO, signed.info()), None)
    pushed = attrs.evolve(epoch(room, room.key, ["x"] * COST_OF_A_PART), opening=opening)  # type: ignore[misc]
    assert [piece.opening for part in parts_of([pushed]) for _, piece in part] == [opening, None]

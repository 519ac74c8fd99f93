"""Cutting a push into parts."""

from __future__ import annotations

from mimids.ds.following.slices import COST_OF_A_PART, parts_of
from mimids.wire.ids import PartitionKey
from tests.support.federation import Room
from tests.support.followers import HUB, epoch


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

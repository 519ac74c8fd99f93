"""Cutting a hub's epochs into parts, each stored in its own transaction, so that other writers get their turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mimids.mls.framing import PrivateMessage
from mimids.wire.ids import Counter
from mimids.wire.messages import Epoch, Message, PushedEpoch

# The largest cost of a part, and the costs of its items. One unit is the time to store an application message.
COST_OF_A_PART: Final = 4096
COST_OF_A_HANDSHAKE: Final = 16  # of a public message, which is judged
COST_OF_A_KIB: Final = 16  # added for each KiB of a public message: a commit may have thousands of small proposals
COST_OF_AN_EPOCH: Final = 4

Numbered = tuple[int, PushedEpoch]  # an epoch, or a part of one, with the number of its epoch


def parts_of(epochs: Sequence[PushedEpoch]) -> Iterator[list[Numbered]]:
    """Yield the epochs in parts, in order; an epoch with many messages continues in the next part."""
    part: list[Numbered] = []
    room = COST_OF_A_PART
    for number, epoch in enumerate(epochs):
        for piece in _pieces_of(epoch):
            cost = _cost(piece)
            if part and cost > room:
                yield part
                part, room = [], COST_OF_A_PART
            part.append((number, piece))
            room -= cost
    if part:
        yield part


def _pieces_of(epoch: PushedEpoch) -> Iterator[PushedEpoch]:
    if _cost(epoch) <= COST_OF_A_PART:
        yield epoch  # nearly all epochs are so small
        return
    start, room = 0, COST_OF_A_PART - COST_OF_AN_EPOCH
    for at, message in enumerate(epoch.epoch.messages):
        room -= _cost_of(message)
        if room < 0 and at > start:
            yield _piece(epoch, start, at)
            start, room = at, COST_OF_A_PART - COST_OF_AN_EPOCH - _cost_of(message)
    yield _piece(epoch, start, len(epoch.epoch.messages))


def _piece(epoch: PushedEpoch, start: int, stop: int) -> PushedEpoch:
    opening = None if start else epoch.opening
    messages = Epoch(epoch.epoch.messages[start:stop])
    return PushedEpoch(epoch.group_id, epoch.masked_partition_key, Counter(epoch.counter + start), opening, messages)


def _cost(epoch: PushedEpoch) -> int:
    return COST_OF_AN_EPOCH + sum(map(_cost_of, epoch.epoch.messages))


def _cost_of(message: Message) -> int:
    if isinstance(message.message.message, PrivateMessage):
        return 1
    return COST_OF_A_HANDSHAKE + len(message.message.encoded) * COST_OF_A_KIB // 1024

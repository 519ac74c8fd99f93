"""Which epochs of unknown partitions are stored, by their counter and messages alone."""

from __future__ import annotations

import attrs
import pytest

from mimids.ds.following.followed_groups import answer_if_unstored
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.wire.ids import LAST_COUNTER, MLS10, NO_LONGER_FOLLOWED, Counter
from mimids.wire.messages import GroupInfoResponse
from tests.support.federation import Room
from tests.support.followers import HUB, epoch
from tests.support.signing import crowd

OPENING = GroupInfoResponse(MLSMessage(MLS10, WireFormat.GROUP_INFO, crowd(2).info()), None)


@pytest.mark.parametrize(
    ("counter", "count", "opening", "answer"),
    [
        (0, 1, None, None),
        (0, 1, OPENING, None),
        (1, 1, None, 0),  # the messages before it are missing
        (0, 0, None, 0),  # it tells nothing
        (0, 0, OPENING, None),
        (7, 0, None, None),  # the messages before it are no longer kept
        (LAST_COUNTER - 2, 2, None, 0),
        (LAST_COUNTER - 1, 2, None, NO_LONGER_FOLLOWED),
        (LAST_COUNTER, 0, None, None),
        (LAST_COUNTER, 1, None, NO_LONGER_FOLLOWED),
    ],
)
def test_an_epoch_of_an_unknown_partition_is_stored_from_its_beginning(
    counter: int, count: int, opening: GroupInfoResponse | None, answer: int | None
) -> None:
    room = Room(hub=HUB)
    pushed = attrs.evolve(epoch(room, room.key, ["x"] * count), counter=Counter(counter), opening=opening)  # type: ignore[misc]
    assert answer_if_unstored(pushed) == answer

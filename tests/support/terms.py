"""Terms in tests: operator commands, and waiting until a follower has accepted."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from mimids.values import Device
from mimids.wire.ids import GroupId, ProviderId
from mimids.wire.messages import GroupInfoRequest
from tests.support.commands import command
from tests.support.federation import device
from tests.support.provider import Assembled
from tests.support.stored import until

A = ProviderId("a.example")
BOB = "mimi://b.example/u/bob"
JOBS = ("delivery", "outgoing_welcomes", "accepted_terms")
NOBODY = GroupId(b"no group")


async def ask_hub(follower: Assembled) -> None:
    """Call the hub for an unknown group: its answer names the revision of its terms."""
    with pytest.raises(Exception, match=r"unknown|terms|group"):
        await follower.services.hub_router.hub(A).group_info(device(follower, "other", 9), GroupInfoRequest(NOBODY))


async def wait_in_force(follower: Assembled, revision: int) -> None:
    """Wait until the follower has accepted a revision of the hub's terms and the hub has confirmed it.

    The job that did this has ended, too: it has set the time of its next attempt, so a stopped clock may be moved.
    """

    shown: dict[str, Any] = {}

    async def look() -> bool:
        shown.update(await command(follower, "provider show", provider=A))
        is_told = bool(shown["their_terms_accepted"] == revision and shown["their_terms_told"])
        return is_told and A not in follower.services.accepted_terms._busy

    try:
        await until(look)
    except trio.TooSlowError:
        raise AssertionError(f"revision {revision} is not in force: {shown}") from None


def bob(follower: Assembled) -> Device:
    return device(follower, "bob")

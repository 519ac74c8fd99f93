"""Terms in tests: operator commands, and waiting until a follower has accepted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from mimids.ds.commands import Context, command_named
from mimids.ds.terms import reports
from mimids.ds.terms.report import Report
from mimids.values import Device
from mimids.wire.ids import GroupId, ProviderId
from mimids.wire.messages import GroupInfoRequest
from tests.support.federation import device
from tests.support.provider import Assembled

A = ProviderId("a.example")
BOB = "mimi://b.example/u/bob"
JOBS = ("delivery", "outgoing_welcomes", "accepted_terms")
NOBODY = GroupId(b"no group")


async def command(of: Assembled, name: str, /, **arguments: Any) -> Any:
    """Run an operator's command, and notify the jobs that read what it changed."""
    made = command_named(name)
    context = Context.of(of.config, of.services.clock.now())
    answer = await of.services.store.write_or_refuse(made.refusable(context, made.given(arguments)))
    if made.effects:
        of.services.offered_terms.forget()
        of.services.accepted_terms.forget()
        of.services.notifier.notify(reports.TOPIC)
    return answer


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(20):
        while not await look():  # noqa: ASYNC110  # waits for a row
            await trio.sleep(0.01)


async def ask_hub(follower: Assembled) -> None:
    """Call the hub for an unknown group: its answer names the revision of its terms."""
    with pytest.raises(Exception, match=r"unknown|terms|group"):
        await follower.services.hub_router.hub(A).group_info(device(follower, "other", 9), GroupInfoRequest(NOBODY))


async def wait_in_force(follower: Assembled, revision: int) -> None:
    """Wait until the follower has accepted a revision of the hub's terms and the hub has confirmed it."""

    async def look() -> bool:
        shown = await command(follower, "provider show", provider=A)
        return bool(shown["their_terms_accepted"] == revision and shown["their_terms_told"])

    await until(look)


def bob(follower: Assembled) -> Device:
    return device(follower, "bob")


def report(*evidence: bytes, note: str = "", kind: str = "spam", accused: str = "mimi://c.example/u/carol") -> Report:
    """Return a report on a group of a.example."""
    return Report(A, GroupId(b"mimi://a.example/g/1"), accused, kind, note, evidence)

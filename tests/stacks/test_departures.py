"""Members with released MLS libraries accept the Remove of a provider whose device was lost, and commit it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimids.testing import Session
from tests.support.live_group import live_group
from tests.support.stage import eventually

pytestmark = pytest.mark.slow

MIXED = ("mls-rs", "openmls")


@pytest.mark.parametrize(
    ("stacks", "suite"),
    [
        (MIXED, 2),
        pytest.param(("mls-rs",), 1, marks=pytest.mark.soak),
        pytest.param(("openmls",), 1, marks=pytest.mark.soak),
        pytest.param(MIXED[::-1], 3, marks=pytest.mark.soak),
        pytest.param(("mls-rs",), 7, marks=pytest.mark.soak),
    ],
)
async def test_lost_devices_are_out_of_the_group_once_a_member_commits(
    stacks: tuple[str, ...], suite: int, stacks_program: Path, mimids_session: Session
) -> None:
    async with live_group(stacks_program, mimids_session, stacks=stacks, suite=suite) as group:
        alice, bob, carol, frank = (group.people[name] for name in ("alice", "bob", "carol", "frank"))
        await group.create(alice, listing=[alice, bob])
        adds = [await group.fetch(alice, each) for each in (bob, carol, frank)]
        await group.commit(alice, adds, adding=[bob, carol, frank])
        await group.say(bob, "my last words")
        await group.lose(bob)  # a user of another provider than the hub
        await group.join_external(group.people["dave"])  # its commit does not cover the Remove
        await group.wait_for_remove()
        await group.commit(carol)
        await group.lose(frank)  # a user of the hub
        await group.commit(carol)
        assert [person.name for person in group.members] == ["alice", "carol", "dave"]
        state = alice.mls.ask("state", group_id=group.group_id)
        identities = {each["identity"] for each in state["members"]}
        assert identities == {person.mls.identity for person in group.members}
        await group.say(alice, "only we three read this")
        assert carol.heard[-1] == "only we three read this"
        for name in ("a.example", "b.example"):

            async def nothing_is_left(name: str = name) -> bool:
                return not group.federation[name].command("device removals")["removals"]

            await eventually(nothing_is_left, seconds=30)

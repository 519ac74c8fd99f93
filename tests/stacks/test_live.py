"""Members with released MLS libraries talk through three live providers, at random and to the end."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mimids.testing import Session
from tests.support.live_group import COMPONENT, live_group
from tests.support.random_play import play_at_random

pytestmark = pytest.mark.slow

MIXED = ("mls-rs", "openmls")
STEPS = 24


@pytest.mark.parametrize(
    ("stacks", "suite", "encrypted", "tree"),
    [
        (("mls-rs",), 7, False, True),
        (("mls-rs",), 2, True, True),
        (("mls-rs",), 1, False, False),
        (("openmls",), 3, False, True),
        (("openmls",), 2, True, True),
        (("openmls",), 1, False, False),
        (MIXED, 1, False, True),
        (MIXED, 3, True, True),
        (MIXED[::-1], 2, False, False),
    ],
)
async def test_members_agree_and_hear_everything_once(
    stacks: tuple[str, ...], suite: int, encrypted: bool, tree: bool, stacks_program: Path, mimids_session: Session
) -> None:
    choices = random.Random(f"{stacks} {suite} {encrypted} {tree}")
    async with live_group(
        stacks_program, mimids_session, stacks=stacks, suite=suite, encrypted=encrypted, tree=tree
    ) as group:
        # The libraries have different code points for SelfRemove.
        await play_at_random(group, choices, STEPS, self_removes=len(stacks) == 1)
        await group.check()


async def test_application_data_changes_in_a_live_group(stacks_program: Path, mimids_session: Session) -> None:
    async with live_group(stacks_program, mimids_session, stacks=["openmls"], suite=1) as group:
        alice, bob, carol = (group.people[name] for name in ("alice", "bob", "carol"))
        await group.create(alice)
        await group.commit(alice, [await group.fetch(alice, each) for each in (bob, carol)], adding=[bob, carol])
        await group.commit(bob, [{"type": "app_data", "component": COMPONENT, "data": b"first"}])
        await group.propose(alice, {"type": "app_data", "component": COMPONENT, "data": b"second"})
        await group.commit(carol)
        await group.commit(carol, [{"type": "app_data", "component": COMPONENT}])
        await group.say(bob, "we all know")
        await group.check()

"""Eight members with OpenMLS and mls-rs race in a linear group, through three providers (semantics: linear-groups)."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Final

import pytest
import trio

from mimids.mls.group_info import GroupInfo
from mimids.testing import Provider, Session
from tests.support.live_group import LiveGroup, live_group
from tests.support.racing import Race
from tests.support.stage import AWAY, HUB, NAMES, eventually

pytestmark = [pytest.mark.slow, AWAY]

RACERS: Final = 8
NEWCOMERS: Final = 4
COMMITS: Final = (24, pytest.param(200, marks=pytest.mark.soak))
PEOPLE: Final = {f"member{number}": number % 3 for number in range(RACERS + NEWCOMERS)}
KILLED_EVERY: Final = 20  # commits
MOST_SECONDS: Final = 600


async def begin(group: LiveGroup) -> None:
    """Create the linear group with all racers."""
    first, *others = list(group.people.values())[:RACERS]
    await group.create(first, linear=True)
    await group.commit(first, [await group.fetch(first, each) for each in others], adding=others)


async def check(group: LiveGroup, race: Race) -> None:
    """Check that every epoch has one winner, all members agree, and no KeyPackage and no Welcome is lost."""
    hub = group.federation[HUB]
    commits = len(race.won) + 1  # the first one added the racers
    assert commits > race.commits
    assert len(set(race.won.values())) == RACERS, "everybody won now and then"
    assert race.lost > RACERS
    per_epoch = hub.read("SELECT count(*) FROM messages WHERE kind = 3 GROUP BY partition")
    assert per_epoch == [(1,)] * commits
    assert hub.read("SELECT count(*) FROM partitions") == [(commits + 1,)]
    await race.catch_up()
    states = [person.mls.ask("state", group_id=group.group_id) for person in group.members]
    assert len(states) == RACERS + NEWCOMERS
    assert len({(state["epoch"], state["partition_key"], state["tree_hash"]) for state in states}) == 1
    info = (await group.members[0].device.group_info(HUB, group.group_id)).info.group_info.message
    assert isinstance(info, GroupInfo)
    assert info.group_context.tree_hash.hex() == states[0]["tree_hash"]
    claimed = "SELECT count(*) FROM key_package_refs WHERE claimed_at IS NOT NULL"
    assert sum(each.read(claimed)[0][0] for each in group.federation) == len(PEOPLE) - 1

    async def delivered() -> bool:
        return {state for (state,) in hub.read("SELECT state FROM outgoing_welcomes")} == {"delivered"}

    await eventually(delivered)
    for person in group.people.values():
        assert await person.device.welcomes() == ()


async def race_in(group: LiveGroup, race: Race) -> None:
    people = list(group.people.values())
    with trio.fail_after(MOST_SECONDS):
        await race.run(people[:RACERS], people[RACERS:])


@pytest.mark.parametrize("commits", COMMITS)
async def test_commits_of_eight_members_have_one_winner_for_each_epoch(
    commits: int, stacks_program: Path, mimids_session: Session
) -> None:
    async with live_group(
        stacks_program, mimids_session, stacks=("mls-rs", "openmls"), suite=1, people=PEOPLE
    ) as group:
        await begin(group)
        race = Race(group, commits, random.Random(8))
        await race_in(group, race)
        await check(group, race)
        assert race.failures == 0


@pytest.mark.parametrize("commits", COMMITS)
async def test_the_same_while_the_hub_and_a_follower_are_killed(
    commits: int, stacks_program: Path, mimids_session: Session
) -> None:
    async with live_group(
        stacks_program, mimids_session, stacks=("openmls", "mls-rs"), suite=2, people=PEOPLE
    ) as group:
        await begin(group)
        race = Race(group, commits, random.Random(9))
        async with trio.open_nursery() as harming:
            harming.start_soon(kill_in_turn, group, race)
            await race_in(group, race)
            harming.cancel_scope.cancel()
        assert race.failures > 0
        await check(group, race)


async def kill_in_turn(group: LiveGroup, race: Race) -> None:
    """Kill the hub and a follower in turn, again and again, and start each again at once."""
    for number, name in enumerate(cycle(NAMES[:2]), 1):

        async def reached(number: int = number) -> bool:
            return len(race.won) >= number * KILLED_EVERY

        await eventually(reached, seconds=MOST_SECONDS)
        await trio.to_thread.run_sync(_kill(group.federation[name]))


def _kill(provider: Provider) -> Callable[[], None]:
    def kill() -> None:
        provider.kill()
        provider.start()

    return kill

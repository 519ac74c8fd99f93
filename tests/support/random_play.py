"""What members of a live group may do, chosen at random."""

from __future__ import annotations

import random

from tests.support.live_group import PSK_ID, Change, LiveGroup, Person
from tests.support.played import note
from tests.support.stacks import LIBRARIES


# Longer than 40 lines: one case for each thing that a member may do.
async def play_at_random(group: LiveGroup, choices: random.Random, steps: int, *, self_removes: bool) -> None:
    """Let members do things at random, one after the other, from the creation of the group on."""
    await group.create(group.people["alice"])
    for step in range(steps):
        by = choices.choice(group.members)
        others = [person for person in group.members if person is not by and person.name != "alice"]
        can_shrink = len(group.members) > 3
        kind = choices.choice(
            ("talk", "talk", "add", "add", "join", "update", "psk", "remove", "rejoin", "leave", "race")
        )
        if kind == "add" and group.outside:
            added = choices.sample(group.outside, choices.randint(1, min(2, len(group.outside))))
            await group.commit(by, [await group.fetch(by, each) for each in added], adding=added)
        elif kind == "join" and (outside := _near(group)):
            joiner = choices.choice(outside)
            if choices.random() < 0.5:
                await group.join_external(joiner, [PSK_ID])
            else:
                await group.propose_join(joiner)
                await group.commit(by, adding=[joiner])
        elif kind == "update" and others:
            await group.propose(choices.choice(others), {"type": "update"})
            await group.commit(by, [{"type": "update"}])
        elif kind == "psk":
            change: Change = {"type": "psk", "psk_id": PSK_ID}
            if choices.random() < 0.5 and others:
                await group.propose(choices.choice(others), change)
                await group.commit(by)
            else:
                await group.commit(by, [change])
        elif kind == "remove" and others and can_shrink:
            await group.commit(by, [{"type": "remove", "leaf": group.leaf(choices.choice(others))}])
        elif kind == "rejoin":
            await group.join_external(by)
        elif kind == "leave" and others and can_shrink and self_removes:
            await group.propose(choices.choice(others), {"type": "self_remove"})
            await group.commit(by)
        elif kind == "race" and others:
            racers = [by, choices.choice(others)]
            for racer in racers:
                note(LIBRARIES[racer.mls.stack], racer.mls.suite, "racing commits")
            for racer, made in [(racer, group.make_commit(racer, [{"type": "update"}])) for racer in racers]:
                await group.send_commit(racer, made)
            await group.catch_up()
        else:
            await group.say(by, f"{by.name} in step {step}")


def _near(group: LiveGroup) -> list[Person]:
    """Return those outside the group whose provider has a member, and so may see the group's GroupInfo."""
    near = {person.provider for person in group.members}
    return [person for person in group.outside if person.provider in near]

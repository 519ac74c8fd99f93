"""Whatever befalls three providers, in the end every device has what was said, in order, none of it twice."""

from __future__ import annotations

import random
import time

import pytest
import trio

from mimids.testing import Session
from tests.e2e.chaos import HARMS, NAMES, Chaos, talking
from tests.e2e.stage import AWAY

pytestmark = [pytest.mark.slow, AWAY]

SEED = 5
MOST_SECONDS = 120
HARM_SECONDS = 0.6
CALM_SECONDS = 0.3
SOAKS = 20


async def harm_each_in_turn(chaos: Chaos, chance: random.Random) -> None:
    """Do everything to every provider, in some order."""
    deeds = [(name, harm) for name in NAMES for harm in HARMS]
    chance.shuffle(deeds)
    for name, harm in deeds:
        await HARMS[harm](chaos.federation, chaos.federation[name], HARM_SECONDS)
        await trio.sleep(CALM_SECONDS)


async def test_every_device_has_what_was_said_through_every_harm(mimids_session: Session) -> None:
    began = time.monotonic()
    chance = random.Random(SEED)
    async with talking(mimids_session, chance) as chaos:
        await harm_each_in_turn(chaos, chance)
    assert chaos.messages > 300
    assert sum(talk.forks for talk in chaos.talks) > 3
    assert time.monotonic() - began < MOST_SECONDS


@pytest.mark.parametrize(
    ("who", "point"),
    [("a.example", "calling"), ("a.example", "answered"), ("b.example", "handling"), ("b.example", "answering")],
    ids=["hub-before-push", "hub-before-settling", "follower-before-storing", "follower-before-answering"],
)
async def test_a_crash_on_either_side_of_a_push_loses_and_doubles_nothing(
    who: str, point: str, mimids_session: Session
) -> None:
    chance = random.Random(SEED)
    async with talking(mimids_session, chance) as chaos:
        provider = chaos.federation[who]
        for skip in (0, 3):
            await trio.to_thread.run_sync(lambda skip=skip: provider.die_at(point, "/ds/v1/push", skip=skip))  # type: ignore[arg-type, misc]
            assert await trio.to_thread.run_sync(provider.wait_ended) == -9
            await trio.to_thread.run_sync(provider.start)
    assert chaos.messages > 20


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SOAKS))
async def test_the_same_for_longer(seed: int, mimids_session: Session) -> None:
    chance = random.Random(seed)
    async with talking(mimids_session, chance) as chaos:
        for _ in range(3):
            await harm_each_in_turn(chaos, chance)

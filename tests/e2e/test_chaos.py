"""Under crashes and network faults at three providers, every device gets every message, in order and once."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import attrs
import pytest
import trio

from mimids.client import Problem, Unreachable
from mimids.testing import Session
from mimids.wire.messages import SendResponse
from tests.e2e.test_conversations import (
    every_branch_is_read_by_its_key_alone,
    every_welcome_stays_until_it_is_acknowledged,
    play,
    upload_and_fetch,
)
from tests.support.chaos import AGAIN_SECONDS, CONFIG, HARMS, Chaos, talking
from tests.support.recordings import Recorded
from tests.support.stage import AWAY, NAMES, Stage, staged

pytestmark = [pytest.mark.slow, AWAY]

P = ParamSpec("P")
T = TypeVar("T")

SEED = 5
MOST_SECONDS = 120
HARM_SECONDS = 0.6
CALM_SECONDS = 0.3
SHORT_SECONDS = 0.3
PACE_SECONDS = 0.05
SOAKS = 20


async def harm_each_in_turn(chaos: Chaos, chance: random.Random) -> None:
    """Cause every fault at every provider, in random order."""
    deeds = [(name, harm) for name in NAMES for harm in HARMS]
    chance.shuffle(deeds)
    for name, harm in deeds:
        await HARMS[harm](chaos.federation, chaos.federation[name], HARM_SECONDS)
        await trio.sleep(CALM_SECONDS)


async def test_every_device_gets_every_message_despite_all_faults(mimids_session: Session) -> None:
    began = time.monotonic()
    chance = random.Random(SEED)
    async with talking(mimids_session, chance) as chaos:
        await harm_each_in_turn(chaos, chance)
        await chaos.wait_said(300)
    assert sum(talk.forks for talk in chaos.talks) > 3
    assert time.monotonic() - began < MOST_SECONDS


@attrs.frozen
class Stubborn(Stage):
    """A stage whose devices repeat a request until its answer is final."""

    async def create(self) -> None:
        await stubbornly(super().create)

    async def offer(self, recorded: Recorded) -> SendResponse:
        await trio.sleep(PACE_SECONDS)
        return await stubbornly(super().offer, recorded)


async def stubbornly(ask: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    while True:
        try:
            return await ask(*args, **kwargs)
        except Unreachable:
            await trio.sleep(AGAIN_SECONDS)
        except Problem as problem:
            if not problem.is_temporary:
                raise
            await trio.sleep(AGAIN_SECONDS)


async def play_through_harm(name: str, chance: random.Random, session: Session) -> None:
    async with staged(name, session, config=CONFIG) as calm:
        await upload_and_fetch(calm)
        stage = Stubborn(calm.federation, calm.recording, calm.devices)
        done = trio.Event()
        harmed: list[str] = []

        async def harm() -> None:
            while not done.is_set():
                harmed.append(chance.choice(tuple(HARMS)))
                await HARMS[harmed[-1]](calm.federation, calm.federation[chance.choice(NAMES)], SHORT_SECONDS)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(harm)
            sequenced = await play(stage)
            done.set()
        await every_branch_is_read_by_its_key_alone(stage, sequenced)
        await every_welcome_stays_until_it_is_acknowledged(stage, sequenced)
    assert len(harmed) > 5


@pytest.mark.parametrize("name", ["public", "private"])
async def test_a_recorded_conversation_gets_the_same_verdicts_despite_all_faults(
    name: str, mimids_session: Session
) -> None:
    await play_through_harm(name, random.Random(SEED), mimids_session)


@pytest.mark.parametrize(
    ("who", "point"),
    [("a.example", "calling"), ("a.example", "answered"), ("b.example", "handling"), ("b.example", "answering")],
    ids=["hub-before-push", "hub-before-settling", "follower-before-storing", "follower-before-answering"],
)
async def test_a_crash_on_either_side_of_a_push_loses_and_repeats_nothing(
    who: str, point: str, mimids_session: Session
) -> None:
    chance = random.Random(SEED)
    async with talking(mimids_session, chance) as chaos:
        provider = chaos.federation[who]
        for skip in (0, 3):
            await trio.to_thread.run_sync(lambda skip=skip: provider.die_at(point, "/ds/v1/push", skip=skip))  # type: ignore[arg-type, misc]
            assert await trio.to_thread.run_sync(provider.wait_ended) == -9
            await trio.to_thread.run_sync(provider.start)
        await chaos.wait_said(20)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SOAKS))
async def test_the_same_for_longer(seed: int, mimids_session: Session) -> None:
    chance = random.Random(seed)
    async with talking(mimids_session, chance) as chaos:
        for _ in range(3):
            await harm_each_in_turn(chaos, chance)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SOAKS))
@pytest.mark.parametrize("name", ["public", "private"])
async def test_recorded_conversations_for_longer(name: str, seed: int, mimids_session: Session) -> None:
    await play_through_harm(name, random.Random(seed), mimids_session)

"""Hub, follower and gateway are killed many times under load: nothing that was promised is lost, and nothing is twice.

The load has messages, their delivery, KeyPackages fetched over OHTTP, and Welcomes.
"""

from __future__ import annotations

import random

import pytest
import trio

from mimids.testing import Provider, Session, open_federation
from tests.support.honest_load import UNLIMITED, HonestLoad, honest_load
from tests.support.stage import AWAY, NAMES

pytestmark = [pytest.mark.slow, AWAY]

SEED = 20
KILLS = 25
SOAK_KILLS = 1000
UP_SECONDS = (0.01, 0.5)
RETRIES = {"delivery": {"backoff_cap_seconds": 1}, "federation": {"connect_seconds": 2, "answer_seconds": 4}}


async def kill_often(providers: list[Provider], kills: int, chance: random.Random) -> dict[str, int]:
    """Kill one provider after the other at random moments, sometimes two at once; return the kills of each."""
    killed = dict.fromkeys((provider.name for provider in providers), 0)
    while sum(killed.values()) < kills:
        await trio.sleep(chance.uniform(*UP_SECONDS))
        victims = chance.sample(providers, chance.choice((1, 1, 1, 2)))
        for victim in victims:
            await trio.to_thread.run_sync(victim.kill)
            killed[victim.name] += 1
        await trio.sleep(chance.uniform(0, 0.1))
        for victim in victims:
            await trio.to_thread.run_sync(victim.start)
    await trio.sleep(0.2)
    return killed


async def kill_under_load(session: Session, kills: int, seed: int) -> HonestLoad:
    config = {**UNLIMITED, **RETRIES}
    async with open_federation(*NAMES, config=config, session=session) as federation:
        async with honest_load(federation) as load:
            killed = await kill_often(list(federation), kills, random.Random(seed))
        print(f"kills: {killed}; {load.summary()}")
    assert min(killed.values()) > kills // 10
    assert load.repeats > 0
    return load


async def test_kills_lose_and_repeat_nothing(mimids_session: Session) -> None:
    load = await kill_under_load(mimids_session, KILLS, SEED)
    assert min(len(load.sent), len(load.fetched)) > KILLS
    assert len(load.welcomed) > KILLS // 5


@pytest.mark.soak
async def test_a_thousand_kills_lose_and_repeat_nothing(mimids_session: Session) -> None:
    load = await kill_under_load(mimids_session, SOAK_KILLS, SEED)
    assert len(load.welcomed) > SOAK_KILLS // 5

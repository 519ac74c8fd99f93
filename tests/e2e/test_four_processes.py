"""Four processes of one provider on one PostgreSQL, killed at random under load: nothing is lost or given twice."""

from __future__ import annotations

import random
import secrets
import ssl
import time
from typing import Any

import httpx
import pytest
import trio

from mimids.client.contacts import Contact, SignedKeys
from mimids.client.ohttp import seal
from mimids.testing import Federation, Provider, PushService, Session, open_federation, push_service
from mimids.wire.ids import MLS10
from mimids.wire.messages import KeyPackageRequest
from tests.support import postgresql
from tests.support.cluster import Cluster, cluster
from tests.support.honest_load import UNLIMITED, honest_load
from tests.support.joins_and_phones import ANY_JOINS, OPEN_TO_ALL, more_load
from tests.support.stage import AWAY, HUB, SUITE
from tests.support.tables import ON_POSTGRESQL

pytestmark = [
    AWAY,
    pytest.mark.slow,
    pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing())),
]

SEED = 20
RETRIES = {"federation": {"connect_seconds": 2, "answer_seconds": 4}, "delivery": {"backoff_cap_seconds": 1}}
FOLLOWERS, SECONDS, KILLS = 2, 6, 2  # in `make test`
ALL_FOLLOWERS, ALL_SECONDS, ALL_KILLS = 10, 60, 20  # in `make soak`
PACE_SECONDS = 0.02
GATEWAY = "/.well-known/ohttp-gateway"


async def ask(process: Provider, content: bytes | None = None) -> httpx.Response:
    """Ask the gateway of one process for its keys, or to answer a sealed request."""
    trust = ssl.create_default_context(cafile=process.ca_file)
    async with httpx.AsyncClient(verify=trust, base_url=process.public_url) as client:
        if content is None:
            return await client.get(GATEWAY)
        return await client.post(GATEWAY, content=content, headers={"content-type": "message/ohttp-req"})


async def check_same_octets(found: Cluster, card: Contact) -> None:
    """Fail unless each process answers one sealed request with the same octets."""
    keys = await ask(found.processes[0])
    signed = SignedKeys(keys.content, keys.headers["mimids-keys-signature"])
    now = int(time.time())
    request = KeyPackageRequest(card.user_id, card.bearer_token, MLS10, SUITE)
    config = card.key_config(signed, now)
    sealed = seal(config, card.provider, [request], date_seconds=now, ephemeral=secrets.token_bytes(32))
    answers = [await ask(process, sealed.message) for process in found.processes]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    (result,) = sealed.open(answers[0].content)
    assert result.key_package is not None


async def serve_under_load(session: Session, url: str, *, followers: int, seconds: float, kills: int) -> None:
    chance = random.Random(SEED)
    names = [HUB, *(f"{chr(ord('b') + number)}.example" for number in range(followers))]
    with push_service(session) as service:
        config: dict[str, dict[str, Any]] = {
            **RETRIES,
            "push": {"endpoints": [service.origin], "quiet_seconds": 1},
            "limits": UNLIMITED["limits"] | ANY_JOINS,
            "group": OPEN_TO_ALL,
        }
        async with (
            open_federation(
                *names, config=config, configs={HUB: {"store": {"url": url}}}, session=session
            ) as federation,
            cluster(federation, federation[HUB], chance) as found,
        ):
            await kill_under_load(federation, found, service, chance, seconds=seconds, kills=kills)


async def kill_under_load(
    federation: Federation, found: Cluster, service: PushService, chance: random.Random, *, seconds: float, kills: int
) -> None:
    hub, *others = list(federation)
    roles, pause = (hub, others[0], hub), seconds / kills
    async with (
        honest_load(federation, pace_seconds=PACE_SECONDS, roles=roles, listening_at=[hub, *others]) as load,
        more_load(load, service, [hub, *others], kills=kills) as more,
    ):
        await found.kill(kills, chance, up=(pause / 2, pause), down=(0, pause / 2))
    card = await trio.to_thread.run_sync(hub.contact, "carol")
    await check_same_octets(found, card)
    for process in found.processes:
        assert "Traceback" not in process.log
    assert more.joined
    print(load.summary(), f"{len(more.joined)} joins; phones woken {more.woken.total()} times, {len(more.asleep)} not")


@pytest.mark.skipif(ON_POSTGRESQL, reason="its database is in PostgreSQL anyway")
async def test_four_processes_lose_and_repeat_nothing(mimids_session: Session) -> None:
    url = postgresql.new_database()
    await serve_under_load(mimids_session, url, followers=FOLLOWERS, seconds=SECONDS, kills=KILLS)


@pytest.mark.soak
async def test_four_processes_lose_and_repeat_nothing_in_a_minute(mimids_session: Session) -> None:
    url = postgresql.new_database()
    await serve_under_load(mimids_session, url, followers=ALL_FOLLOWERS, seconds=ALL_SECONDS, kills=ALL_KILLS)

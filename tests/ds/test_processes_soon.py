"""What one process revokes holds at every process within a second: the database tells them, and none has to look.

A process hears of a change in a few milliseconds. The longest time until it acts is `READ_SECONDS`. All other times in
which a process looks by itself are hours here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from mimids.ds import processes
from mimids.ds.key_packages import gateway_keys
from mimids.errors import MimiError, ProviderNotAllowed, Unauthenticated
from mimids.wire.base64url import from_base64url
from mimids.wire.ids import MLS10, BearerToken, ProviderId, Secret, UserId
from mimids.wire.messages import KeyPackageRequest
from tests.support import postgresql
from tests.support.provider import Assembled, assembled
from tests.support.stage import SUITE
from tests.support.stored import until
from tests.support.twins import ran, shared_config

pytestmark = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))

PROCESSES = 4
HOURS = 36_000.0
B = ProviderId("b.example")


@pytest.fixture(autouse=True)
def only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.READ_SECONDS < 1
    monkeypatch.setattr(processes, "ALIVE_SECONDS", HOURS)
    monkeypatch.setattr(gateway_keys, "CHECK_SECONDS", HOURS)


@asynccontextmanager
async def several(directory: Path) -> AsyncIterator[list[Assembled]]:
    config = shared_config(directory)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(assembled(config)) for _ in range(PROCESSES)]


async def at_every(found: list[Assembled], holds: Callable[[Assembled], Awaitable[bool]]) -> None:
    """Wait until something holds at every process."""
    for each in found:

        async def look(each: Assembled = each) -> bool:
            return await holds(each)

        await until(look)


@pytest.mark.parametrize("command", ["device remove", "device rotate-token"])
async def test_a_device_that_is_removed_or_gets_a_new_token_is_refused(command: str, tmp_path: Path) -> None:
    async with several(tmp_path) as found, trio.open_nursery() as serving:
        token = Secret((await found[0].add_device()).encode())
        ended = []

        async def serve(at: Assembled) -> None:
            device = await at.services.devices.authenticate(token)
            assert device is not None
            with pytest.raises(Unauthenticated):
                async with at.services.sessions.open(device):
                    await trio.sleep_forever()
            ended.append(at)

        async def refuses(at: Assembled) -> bool:
            return at in ended and await at.services.devices.authenticate(token) is None

        async def serves(at: Assembled) -> bool:
            return at.services.sessions.statistics().open == 1

        for each in found:
            serving.start_soon(serve, each)
        await at_every(found, serves)
        await ran(found[0], command, user="alice", name="phone")
        await at_every(found, refuses)


async def test_a_bearer_token_that_is_revoked_gets_nothing(tmp_path: Path) -> None:
    async with several(tmp_path) as found:
        await found[0].add_device()
        issued = await ran(found[0], "token issue", user="alice", scheme="shared")
        alice = UserId(b"mimi://a.example/u/alice")
        request = KeyPackageRequest(alice, BearerToken(from_base64url(issued["bearer_token"])), MLS10, SUITE)

        async def refusal(at: Assembled) -> MimiError | None:
            now, stock = at.services.clock.now(), at.services.key_packages
            claimed = await at.services.store.write(lambda tx: stock.claim_within(tx, [request], now))
            return claimed.outcomes[0].refusal

        before = [type(await refusal(each)) for each in found]
        await ran(found[0], "token revoke", user="alice", id=issued["id"])
        after = [type(await refusal(each)) for each in found]
        assert len({*before}) == len({*after}) == 1
        assert before != after


async def test_a_provider_that_is_banned_is_refused(tmp_path: Path) -> None:
    async with several(tmp_path) as found:

        async def is_refused(at: Assembled) -> bool:
            try:
                await at.services.offered_terms.load(B)
            except ProviderNotAllowed:
                return True
            return False

        assert [await is_refused(each) for each in found] == [False] * PROCESSES
        await ran(found[0], "ban add", subject=B)
        await at_every(found, is_refused)


async def test_an_ohttp_key_that_is_made_is_served_and_an_old_one_that_is_retired_opens_nothing(tmp_path: Path) -> None:
    async with several(tmp_path) as found:
        (old,) = found[0].services.ohttp_keys.live()
        made = await ran(found[0], "ohttp rotate", retire_others=True)

        async def has_only_the_new_one(at: Assembled) -> bool:
            return set(at.services.ohttp_keys.live()) == {made["key_id"]}

        await at_every(found, has_only_the_new_one)
        assert made["key_id"] != old
        assert len({each.services.ohttp_keys.served().body for each in found}) == 1
